//! Pure picking policy: filters, scorers and the decision as a value.
//!
//! Candidates and their loads come in, a decision with its reason goes out. No I/O, no clock, no async; randomness is
//! an argument.

pub mod saturation;

pub mod load_index;

pub mod pick;

mod filter;

pub mod score;

pub mod affinity;

pub mod candidate;
