//! Manifests as a user writes them, right and wrong.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod manifest;
