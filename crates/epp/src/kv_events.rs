//! Precise mode: the blocks in each engine's KV cache, from the events that it publishes.
//!
//! ```text
//! engine ──(ZMQ PUB: topic, number, batch)──► follow ──► sequence ──► wire ──► prefix_index::blocks
//!        ◄─(ZMQ ROUTER: again from number n)── when numbers are missing, and when a connection begins
//! ```
//! While an endpoint's events are unknown or incomplete, the estimate is used for it.

pub mod follow;

pub mod replay;

pub mod sequence;

pub mod wire;
