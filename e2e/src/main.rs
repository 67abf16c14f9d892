//! The driver's program; see `e2e --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    e2e::cli::main()
}
