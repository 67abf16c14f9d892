//! Pools, models and endpoints from a source, as immutable snapshots.
