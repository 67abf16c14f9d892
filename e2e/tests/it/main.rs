//! The report in a real browser.

mod browser;
mod cluster;
mod guard;
mod programs;
mod report_page;
mod stubs;
