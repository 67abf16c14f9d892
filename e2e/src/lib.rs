//! The lab: stands the tutorial up, runs its steps, asserts what it claims and reports.
