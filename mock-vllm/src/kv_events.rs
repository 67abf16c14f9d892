//! KV events as vLLM publishes them: what one engine step stored, evicted or cleared, as a message on a ZeroMQ PUB socket,
//! with a replay socket beside it. Knows nothing of HTTP and nothing of when steps happen.
//!
//! ```text
//! driver's thread                          task on the runtime
//! KvEventPublisher::publish ──bounded──► KvEventService: encode ─┬─► per subscriber: bounded queue ─► peer
//!                                                               └─► ReplayBuffer ◄── replay requests
//! ```
//! The driver never waits: what finds a queue full is dropped and counted, and leaves a gap in the sequence numbers.

pub mod config;
pub mod publisher;
pub mod service;

pub mod encoding;
pub mod stats;

mod peer;
mod replay;
mod zmtp;
