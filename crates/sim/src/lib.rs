//! A fleet in virtual time. It runs the same engine and policy as the servers, but without servers, sockets or clocks.
//!
//! ```text
//! workload ──request──► router ──pick──► (c_pre) ──► pod: step ─ step ─ step ──(c_post)──► workload
//!    ▲                    └ prefix index, scheduling::pick                                    │
//!    └──────────────────────────── what came of it ◄──────────────────────────────────────────┘
//! ```
//! One seed gives the same run on every machine.

pub mod simulation;

pub mod router;

pub mod pod;

pub mod model;

pub mod calibrate;
pub mod fit;
