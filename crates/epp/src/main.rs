//! Endpoint picker: an Envoy ext_proc server that picks a pod by prefix and load.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A request allocates some 150 times, mostly on a worker's thread, where glibc's allocator grows and shrinks its arena.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    epp::cli::main()
}
