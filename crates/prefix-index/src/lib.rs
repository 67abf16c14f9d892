//! Who holds which prefix: block schedule, chained hashes and the index over endpoints.
//!
//! A text becomes a [`chain::Chain`] of block hashes; [`index::PrefixIndex`] answers how much of a chain each endpoint
//! is believed to hold. [`blocks::BlockIndex`] answers the same from what engines say. Pure: no I/O, no clock, no async, no knowledge of requests or of Kubernetes.

pub mod index;

pub mod blocks;

pub mod matches;

mod tree;

mod recency;

mod holders;

pub mod endpoint;

pub mod usage;

pub mod chain;

pub mod schedule;
