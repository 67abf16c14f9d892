//! The tutorial's load tool, vLLM production-stack's `multi-round-qa.py`: its schedule and its figures.
//! Knows neither a clock nor a network: moments are passed in.

pub mod prompts;

pub mod records;

pub mod schedule;

pub mod sharegpt;
