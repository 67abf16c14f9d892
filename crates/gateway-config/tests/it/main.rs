//! The translation of the tutorial's manifests, field by field, and an error for everything that is not translated.

mod fixtures;
mod refusals;
mod rendering;
