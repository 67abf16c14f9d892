//! Measured load on an OpenAI endpoint: the HTTP client, event streams, an even pace, and the tutorial's load tool.
//! It also has the output, the plots and the endings of all the driver's programs. It must not know of clusters.

pub mod multi_round_qa;

pub mod client;

pub mod chat;

pub mod sse;

pub mod pacer;

pub mod rows;

pub mod ending;

pub mod interrupt;

pub mod log;

pub mod output;

pub mod table;

pub mod plot;

pub mod stats;

pub mod clock;
