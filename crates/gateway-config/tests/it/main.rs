//! Translation of the tutorial's manifests, field by field, and an error for everything that is not translated.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

mod fixtures;
mod refusals;
mod rendering;
mod policies;
mod routing;
#[cfg(feature = "xds")]
mod strange_pickers;
#[cfg(feature = "xds")]
mod xds;
