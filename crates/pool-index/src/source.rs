//! Sources of changes.

pub mod files;

pub mod watched;

pub mod kept;

pub mod reading;
