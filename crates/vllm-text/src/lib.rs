//! The text of a model that has no weights: token ids, chat templates, and replies made up of real tokens.
//! It does not know HTTP, requests or time.
pub mod reply;

pub mod tokens;

pub mod python_text;
