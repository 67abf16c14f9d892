//! The driver with a client for Kubernetes; see `e2e --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    e2e::cli::main()
}
