//! See `mock-vllm --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mock_vllm::cli::main(std::env::args_os())
}
