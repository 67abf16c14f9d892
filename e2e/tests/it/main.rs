//! Tests of the driver with real processes: clusters of stubs, the watchdog, and the report in a browser.

mod browser;
mod cluster;
mod compare_page;
mod explain;
mod interrupts;
mod log;
mod probes;
mod programs;
mod report_page;
mod skips;
mod soak;
mod state_dir;
mod stubs;
mod watchdog;
