//! The tutorial's load tool as a separate program; see `multi-round-qa --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    load::multi_round_qa::cli::main()
}
