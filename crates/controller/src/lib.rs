//! Serves InferencePools on Kubernetes with stock Envoy Gateway.
//!
//! ```text
//! Envoy Gateway ──hook──► hooks ──resolve(pool, World)──► edits of gateway-config ──► answer
//! API server ──objects──► World ──► objects, status ──► what the API server should have
//! ```
//!
//! Its knowledge of the cluster is a [`world::World`], a value; the rules over it are pure. Decisions about requests are
//! not made here but by the pickers.

pub mod hooks;

pub mod pickers;
pub mod objects;
pub mod status;

pub mod resolve;
pub mod world;

pub mod sweep;

pub mod names;
