//! Tests of the driver with real processes: clusters of stubs, the guard, and the report in a browser.

mod browser;
mod cluster;
mod compare_page;
mod guard;
mod interrupts;
mod log;
mod probes;
mod programs;
mod report_page;
mod skips;
mod soak;
mod state_dir;
mod stubs;
