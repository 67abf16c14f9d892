//! Precise mode: what each engine's KV cache holds, from the events that it publishes.
//!
//! ```text
//! engine ──(ZMQ PUB: topic, number, batch)──► follow ──► sequence ──► wire ──► prefix_index::blocks
//!        ◄─(ZMQ ROUTER: again from number n)── when numbers are missing, and when a connection begins
//! ```
//! An endpoint whose events are not known, or not all of them, is judged by the estimate meanwhile.

pub mod follow;

pub mod replay;

pub mod sequence;

pub mod wire;
