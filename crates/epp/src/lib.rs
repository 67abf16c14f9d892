//! Endpoint picker: an Envoy ext_proc server that picks a pod by prefix and load.
//!
//! ```text
//! server (tonic) → ext-proc (one stream, pure) → director → datastore
//!                                                   ├ picking ◄─ scrape, kv_events (precise mode; tokens)
//!                                                   └ policies, explain, metrics, log
//! ```

pub mod cli;

pub mod server;

pub mod follow_peers;

pub mod reports;

pub mod kv_events;

pub mod tokens;

pub mod http_client;

pub mod replay;

pub mod director;

pub mod observed;

pub mod peers;

pub mod policies;

pub mod scrape;

pub mod datastore;

pub mod source;

pub mod status;

pub mod metrics;

pub mod spans;

pub mod explain;

pub mod tuning;

pub mod log;
