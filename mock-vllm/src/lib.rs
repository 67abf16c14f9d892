//! vLLM without the GPU: exact blocks, scheduler steps and wire, with a latency model in place of kernels.
pub mod cli;
pub mod server;

pub mod http;

pub mod check_trace;
pub mod driver;
pub mod faults;
pub mod send_schedule;
pub mod kv_events;
pub mod metrics;
pub mod oracle;
pub mod request_log;
pub mod structured;

pub mod cache_log;
pub mod clock;
pub mod json_lines;
