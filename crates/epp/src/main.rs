//! Endpoint picker: an Envoy ext_proc server that picks a pod by prefix and load.

use std::process::ExitCode;

fn main() -> ExitCode {
    epp::cli::main()
}
