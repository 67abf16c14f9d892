//! Pools, models and endpoints from a source, published as immutable snapshots.
//!
//! ```text
//! source::files ─┐
//!                ├─ Change ─► index::Index ─ Arc<Snapshot> ─► snapshot::Reader (any number)
//! (watches)    ──┘
//! ```
//! Sources translate what they see into changes; only the index knows which pool selects what. Nothing here knows of
//! gRPC, Envoy or the prefix index.

pub mod source;

pub mod index;

mod slots;

pub mod snapshot;

pub mod address;
