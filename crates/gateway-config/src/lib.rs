//! Translates Gateway API objects to Envoy configuration, with the names that Envoy Gateway uses.
//!
//! ```text
//! [Object] ──plan──► Plan (what is routed where; checked) ──render + Bindings (ports, endpoints)──► Rendered (JSON)
//! ```
//!
//! Never touches processes, sockets or files. Anything that it cannot translate is an error that names object and
//! field.

pub mod render;

pub mod attachment;

pub mod plan;

pub mod error;
