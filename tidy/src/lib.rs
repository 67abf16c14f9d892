//! House rules over the source tree: what a compiler and clippy do not check.
//!
//! Each rule is a function from sources to complaints, so that a test can show that it fails on a bad example before
//! it is trusted with the project.

pub mod imports;
pub mod purity;
pub mod sizes;
pub mod tree;
