//! The Kubernetes source of pools, models and endpoints.
//!
//! ```text
//! API server ─ watches ─► source ─ events ─► view (pure) ─ Change ─► pool_index::Index ─► snapshots
//! ```
//! A watch that breaks is resumed, and while the API server is away the last snapshot stays in force. Nothing is
//! published before every list is in: a picker is ready with all that it should know, or not at all.

pub mod source;

pub mod metrics;

pub mod connect;
pub mod watches;

mod retry;

pub mod view;

pub mod store;

pub mod pods;
