//! Endpoint picker: an Envoy ext_proc server that picks a pod by prefix and load.
//!
//! ```text
//! server (tonic) → exchange (one stream, pure) → director → candidates
//!                     └ body, reply                  ├ picking ◄─ scrape, kv_events (precise mode; tokens)
//!                                                    └ policies, explain, metrics, log
//! ```

pub mod cli;

pub mod server;

pub mod follow_peers;

pub mod kv_events;

pub mod tokens;

pub mod replay;

pub mod director;

pub mod peers;

pub mod policies;

pub mod scrape;

pub mod candidates;

pub mod status;

pub mod metrics;

pub mod spans;

pub mod exchange;

pub mod compat;

pub mod reply;

pub mod inquiry;

pub mod subset;

pub mod refusal;

pub mod budget;

pub mod body;

pub mod explain;

pub mod tuning;

pub mod response;

mod json;

pub mod log;
