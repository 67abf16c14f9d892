//! vLLM without the GPU: exact blocks, scheduler steps and wire, with a latency model in place of kernels.
pub mod engine;
pub mod trace;
