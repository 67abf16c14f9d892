//! Behaviour of the pool index: changes or files in, snapshots out.

mod files;
mod fixtures;
mod index;
