//! The tutorial's load tool, vLLM production-stack's `multi-round-qa.py`, with its schedule and its figures.
//! Only [`run`] and [`cli`] use a clock or the network; the other modules take moments as arguments.

pub mod cli;

pub mod run;

pub mod answer;

pub mod prompts;

pub mod records;

pub mod schedule;

pub mod sharegpt;
