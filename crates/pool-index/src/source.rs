//! Where changes come from.

pub mod files;
