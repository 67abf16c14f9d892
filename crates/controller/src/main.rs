//! The controller's program.

use std::process::ExitCode;

fn main() -> ExitCode {
    controller::cli::main()
}
