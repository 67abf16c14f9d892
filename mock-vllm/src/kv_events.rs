//! KV events as vLLM publishes them: a message on a ZeroMQ PUB socket says what one engine step stored, evicted or
//! cleared; a replay socket is beside it. This module does not know HTTP, nor when steps happen.
//!
//! ```text
//! driver's thread                          task on the runtime
//! KvEventPublisher::publish ──bounded──► KvEventService: encode ─┬─► per subscriber: bounded queue ─► peer
//!                                                               └─► ReplayBuffer ◄── replay requests
//! ```
//! The driver never waits: a batch that finds a queue full is dropped and counted, and leaves a gap in the sequence
//! numbers.

pub mod service;
pub mod config;
pub mod publisher;

pub mod encoding;
mod peer;

pub mod stats;
mod replay;
mod zmtp;
