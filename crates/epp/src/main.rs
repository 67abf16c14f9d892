//! Endpoint picker: an Envoy ext_proc server that picks a pod by prefix and load.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A request allocates some 150 times, mostly on a worker's thread, where glibc's allocator grows and shrinks its arena. Its pages are not
/// huge ones (feature `no_thp`), with which long bodies take half as much again as their length.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    epp::cli::main()
}
