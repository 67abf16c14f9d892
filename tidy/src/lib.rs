//! House rules for the source tree: rules that neither the compiler nor clippy checks.
//!
//! Each rule is a function from sources to complaints, so that a test can first show that it fails on a bad example.

pub mod imports;
pub mod order;
pub mod pods;
pub mod purity;
pub mod sizes;
pub mod tree;
