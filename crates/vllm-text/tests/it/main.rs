//! One binary for all integration tests of the crate.

mod replies;
mod tokens;
mod tokens_corpus;
mod tutorial;
