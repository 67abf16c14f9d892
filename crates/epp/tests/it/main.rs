//! Tests of the picker from outside: its pure parts by tables, the whole by our own proxy over real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod budget;
mod compat;
mod conversation;
mod dashboard;
mod decision_header;
mod estimate;
mod exchange;
mod explain;
mod files;
mod fixtures;
mod floods;
mod frames;
mod headers;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod limits;
mod log;
mod models;
mod objectives;
mod scrape_times;
mod pages;
mod observed;
mod patience;
mod peers;
mod picker_config;
mod picking;
mod precise;
mod process;
mod program;
mod protocol;
mod records;
mod response;
mod scrape;
mod sequences;
mod spans;
mod spill;
mod styles;
mod tls;
mod tuning;
mod tutorial;
mod unreported;
