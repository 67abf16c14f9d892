//! Indexes of the prefixes that endpoints hold: block schedule, chained hashes and two indexes.
//!
//! A text becomes a [`chain::Chain`] of block hashes; [`index::PrefixIndex`] estimates how much of a chain each
//! endpoint holds. [`blocks::BlockIndex`] answers the same question from the KV events of engines. Pure: no I/O, no
//! clock, no async, no knowledge of requests or of Kubernetes.

pub mod index;

pub mod blocks;

mod tree;

pub mod matches;

mod recency;

mod node_id;

pub mod stats;

mod holders;

pub mod endpoint;

pub mod usage;

pub mod chain;

pub mod schedule;
