//! One ext_proc stream: the exchange of its messages, the scan of bodies and responses, and the replies. Pure: no I/O,
//! no clock, no async, no knowledge of endpoints.
//!
//! ```text
//! ProcessingRequest → exchange → ProcessingResponse
//!                        ├ body, response: scanners
//!                        ├ pick_request: the director's input
//!                        ├ rewrite: bodies with another name of the model
//!                        └ reply, refusal, compat: the answers
//! ```

pub mod observation;

pub mod exchange;

pub mod compat;

pub mod rewrite;

pub mod reply;

pub mod pick_request;

pub mod subset;

pub mod refusal;

pub mod budget;

pub mod body;

pub mod response;

mod json;
