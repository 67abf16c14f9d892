//! Manifests as users write them, valid and invalid.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod crd;
mod lenient;
mod manifest;
