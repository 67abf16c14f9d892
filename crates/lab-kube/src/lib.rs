//! The lab on Kubernetes: clusters of kind, and clusters that are there, both with stock Envoy Gateway. It is the only
//! crate of the driver that speaks to an API server; Docker, kind and kubectl are run as a user runs them.
//!
//! ```text
//! Plan ──► stand: images ──► kind ──► Envoy Gateway ──► components ──► settle ──┬─► tutorial: commands, judged
//!                                                                              └─► stage ──► cluster: the lab's checks
//! ```

pub mod tutorial;

pub mod stage;

pub mod cluster;

pub mod stand;

pub mod pods;

pub mod images;

pub mod envoy_gateway;

pub mod settle;

pub mod node;

pub mod wait;

#[cfg(test)]
mod stub;

pub mod api;

pub mod kind;

pub mod files;

pub mod tool;
