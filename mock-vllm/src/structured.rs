//! Text with a required form: JSON of a schema, a choice, a regular expression, or tool calls. It is pure: bodies and
//! randomness come in, text comes out, and it does not know HTTP, tokens or time.
//!
//! ```text
//! body ─┬─ Constraint::parse ── Constraint::generate ─────────────────────────► text of the reply
//!       └─ ToolRequest::parse ─ ToolRequest::decide ─ ToolReply ─┬─ text ─────► text of the reply, to be tokenized
//!                                                                ├─ message ──► `content` and `tool_calls`
//!                                                                └─ stream ───► deltas, from pieces of the text
//! ```

pub mod constraint;
pub mod tools;

pub mod schema;

pub mod json_text;
pub mod pattern;

mod decimal;
mod format;
mod words;
