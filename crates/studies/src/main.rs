//! The studies' program, as which `e2e step5` and its neighbours go on: see `e2e step5 --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    studies::cli::main()
}
