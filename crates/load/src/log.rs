//! The driver's log: what it starts, sends and inflicts, on standard error, above the line of progress. It is off unless
//! `RUST_LOG` asks for it.

use std::env::VarError;
use std::io::{self, Write};

use anyhow::{Context as _, Result, anyhow};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::output;

/// Crates that log: the driver's, and those of its HTTP client.
const CRATES: [&str; 5] = ["lab", "load", "studies", "hyper_util", "h2"];

/// Writes each event as one message.
struct Messages;

/// Logs what `RUST_LOG` asks for, from now on. A second call has no effect.
///
/// # Errors
/// If the variable's value is not a filter.
#[expect(
    clippy::disallowed_methods,
    reason = "programs that use `tracing` share this variable, so it has no flag"
)]
pub fn init() -> Result<()> {
    let text = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) => text,
        Err(VarError::NotPresent) => return Ok(()),
        Err(error @ VarError::NotUnicode(_)) => return Err(error).context("RUST_LOG"),
    };
    let filter = parse(&text)?;
    for name in unknown(&text) {
        output::talk(&format!(
            "warning: RUST_LOG: `{name}` is neither a level nor one of {}, so it has no effect",
            CRATES.join(", ")
        ));
    }
    // An error means that the program has a log already.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Messages).try_init();
    Ok(())
}

fn parse(text: &str) -> Result<EnvFilter> {
    EnvFilter::builder().with_default_directive(LevelFilter::OFF.into()).parse(text).map_err(|error| {
        anyhow!("RUST_LOG={text}: {error}; write a level, or levels of crates: `debug`, `warn,lab=debug`")
    })
}

/// Returns the names in a filter that belong to no crate that logs.
fn unknown(text: &str) -> Vec<&str> {
    let names = text.split(',').filter_map(|directive| directive.trim().split(['=', '[', ':']).next());
    names
        .filter(|name| !name.is_empty() && name.parse::<LevelFilter>().is_err() && !CRATES.contains(name))
        .collect()
}

impl Write for Messages {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        output::write(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{parse, unknown};

    #[test]
    fn filters_that_are_none_are_refused_by_name() {
        for text in ["", "debug", "lab=debug,load", "warn,lab::cluster=trace", "lab[{program}]=info"] {
            assert!(parse(text).is_ok(), "{text}");
        }
        for text in ["lab=loud", "lab=debug=info", "warn, lab=debug", "="] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("RUST_LOG={text}: ")) && error.contains("`debug`"), "{error}");
        }
    }

    #[test]
    fn names_without_effect_are_found() {
        assert_eq!(unknown("debgu,e2e=debug,lab"), ["debgu", "e2e"]);
        assert_eq!(unknown("debug,lab::cluster=info,[{program}]=trace,INFO,3,"), Vec::<&str>::new());
    }
}
