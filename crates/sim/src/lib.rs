//! A fleet in virtual time: the very engine and policy that the servers run, without servers, sockets or clocks.
//!
//! ```text
//! workload ──request──► router ──pick──► (c_pre) ──► pod: step ─ step ─ step ──(c_post)──► workload
//!    ▲                    └ prefix index, scheduling::pick                                    │
//!    └──────────────────────────── what came of it ◄──────────────────────────────────────────┘
//! ```
//! One seed gives one run, whatever machine it runs on.

pub mod world;

pub mod router;

pub mod pod;

pub mod model;

pub mod calibrate;
