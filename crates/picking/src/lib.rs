//! A pool as a picker sees it: loads, requests in flight and prefixes; the endpoint for a request, and what its answer
//! teaches. Pure: no I/O, no clock, no async; the time and randomness are arguments.
//!
//! ```text
//! place ─► lease ─► on_first_token ─► on_end        of each request
//! on_scrape, on_lost                                of each endpoint
//! ```

pub mod picker;

pub mod matching;

pub mod request;

pub mod lease;

pub mod estimate;

pub mod endpoint;

pub mod cache_facts;

pub mod gauges;

pub mod moment;
