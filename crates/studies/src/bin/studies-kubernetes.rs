//! The studies' program with a client for Kubernetes; see `e2e step5 --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    studies::cli::main()
}
