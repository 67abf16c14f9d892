//! Serves InferencePools on Kubernetes with stock Envoy Gateway.
//!
//! ```text
//! Envoy Gateway ──hook──► hooks ──resolve(pool, Facts)──► edits of gateway-config ──► answer
//! API server ──watches──► Cluster ──► Facts ──► Plan ──► writer ──► API server
//! ```
//!
//! Its knowledge of the cluster is a [`facts::Facts`], a value; the rules over it are pure, and end in a
//! [`plan::Plan`]. Nothing is remembered that the API server does not hold, so that it can restart at any moment.
//! Decisions about requests are not made here but by the pickers.

pub mod cli;

pub mod server;
pub mod pages;
pub mod tls;
pub mod hooks;

pub mod reconciler;
pub mod writer;
pub mod probes;
pub mod probe;

pub mod metrics;

pub mod plan;
pub mod certificates;
pub mod deployments;
pub mod routes;
pub mod pickers;
pub mod objects;
pub mod status;
pub mod rules;
pub mod resolve;

pub mod setup;
pub mod cluster;
pub mod facts;

pub mod sweep;

pub mod names;
