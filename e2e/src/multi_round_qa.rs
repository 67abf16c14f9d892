//! The tutorial's load tool, vLLM production-stack's `multi-round-qa.py`: its schedule and its figures.
//! All but [`run`] knows neither a clock nor a network: moments are passed in.

pub mod cli;

pub mod run;

pub mod answer;

pub mod prompts;

pub mod records;

pub mod schedule;

pub mod sharegpt;
