//! Tests of the pool index: changes or files go in, snapshots come out.

mod files;
mod fixtures;
mod index;
