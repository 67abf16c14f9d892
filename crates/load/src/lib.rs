//! Load on an OpenAI endpoint, measured: the HTTP client, event streams, an even pace, and the tutorial's load tool.
//! With it, what every program of the driver prints and ends with. It knows of no cluster.

pub mod multi_round_qa;

pub mod client;

pub mod chat;

pub mod sse;

pub mod pacer;

pub mod rows;

pub mod ending;

pub mod interrupt;

pub mod output;

pub mod table;

pub mod stats;

pub mod clock;
