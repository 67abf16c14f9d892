//! The state of a pool as a picker sees it: loads, requests in flight and prefixes. Picks the endpoint for a request,
//! and learns from its answer. Pure: no I/O, no clock, no async; time and randomness are arguments.
//!
//! ```text
//! place ─► lease ─► on_first_token ─► on_end        for each request
//! on_scrape, on_lost                                for each endpoint
//! ```

pub mod picker;

pub mod matching;

pub mod request;

pub mod lease;

pub mod estimate;

pub mod endpoint;

mod awaited;

pub mod cache_facts;

pub mod gauges;

pub mod moment;
