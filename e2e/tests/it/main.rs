//! Tests of the driver with real processes: clusters of stubs, the watchdog, and the report in a browser.

mod browser;
mod cluster;
mod compare_page;
#[cfg(feature = "containers")]
mod containers;
mod engines;
mod explain;
mod gateways;
mod interrupts;
#[cfg(feature = "kubernetes")]
mod kind;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod log;
#[cfg(not(feature = "kubernetes"))]
mod on;
mod policies;
mod probes;
mod programs;
mod report_page;
mod routes;
mod shapes;
mod skips;
mod soak;
mod state_dir;
mod strange_pickers;
mod stubs;
mod their_picker;
mod watchdog;
