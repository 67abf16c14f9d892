//! InferencePool, the objects that refer to one, and the Gateway API objects: types, parsing, header and metadata keys.
//!
//! Plain data without a Kubernetes client, so that the local path compiles none. Every object is checked once, here,
//! into a form that needs no further check. Fields that nothing in Warmpath honours are listed beside the object; the
//! reader of the picker's own files refuses them.

pub mod condition;
pub mod picker_config;
pub mod manifest;
pub mod lenient;
pub mod crd;
pub mod kinds;
pub mod traffic;
mod ai_gateway;
pub mod gateway;
pub mod objective;
pub mod model_rewrite;
pub mod pool;
pub mod keys;
pub mod workload;
pub mod remark;
pub mod selector;
pub mod object;
pub mod fields;
pub mod field;

pub mod probe;
pub mod port;
