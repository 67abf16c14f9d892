//! vLLM's engine without its kernels: scheduler, KV cache, block hashes, and a latency model in place of the GPU.
//! It is a step function over virtual time: it does no I/O, reads no clock and spawns nothing.
pub mod trace;

pub mod engine;

pub mod latency;
pub mod prefix;

pub mod block_pool;
pub mod index_list;
pub mod step;

pub mod event;
pub mod config;

pub mod hash;
pub mod request;

pub mod vllm_version;
