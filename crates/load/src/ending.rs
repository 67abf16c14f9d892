//! Ends of the driver's commands, and their exit codes.

use std::process::ExitCode;

use crate::{log, output};

/// Exit code for wrong usage and for programs that cannot be started; clap uses the same.
const EXIT_ENVIRONMENT: u8 = 2;

/// The end of a command that had no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Good,
    Failed,
    Interrupted,
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        match end {
            End::Good => Self::SUCCESS,
            End::Failed => Self::from(1),
            End::Interrupted => Self::from(130),
        }
    }
}

/// Runs a command to its end, with the log that the user asks for, and returns its exit code.
pub fn block_on(command: impl Future<Output = anyhow::Result<End>>) -> ExitCode {
    match run(command) {
        Ok(end) => end.into(),
        Err(error) => {
            output::complain(&format!("{error:#}"));
            ExitCode::from(EXIT_ENVIRONMENT)
        }
    }
}

fn run(command: impl Future<Output = anyhow::Result<End>>) -> anyhow::Result<End> {
    log::init()?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}
