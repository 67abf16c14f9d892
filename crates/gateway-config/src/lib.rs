//! Translates Gateway API objects to Envoy configuration, with the names that Envoy Gateway uses.
//!
//! ```text
//! [Object] ──plan──► Plan (what is routed where; checked) ──render + Bindings (ports, endpoints)──► Rendered (JSON)
//! ```
//!
//! On Kubernetes, Envoy Gateway translates the objects itself; with the feature `xds`, edits of its messages attach the
//! pools that it does not know. Both ways render the same filters, policies and clusters of pickers.
//!
//! Never touches processes, sockets or files. Anything that it cannot translate is an error that names object and
//! field.

#[cfg(feature = "xds")]
pub mod xds;

pub mod render;

pub mod attachment;

pub mod plan;

#[cfg(feature = "xds")]
mod wire;

pub mod error;
