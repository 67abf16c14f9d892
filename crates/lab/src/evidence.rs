//! Records of a request from each program's log, joined by Envoy's request id.
//!
//! ```text
//! client: SSE id ── x-request-id ──┬─ Envoy's access log      upstream_host, picked, served
//!                                  ├─ picker: /debug/decisions endpoint, reason, ratio
//!                                  └─ pod's request log        pod, cached_tokens
//! ```

pub mod join;

pub mod picker;

pub mod pod;

pub mod access_log;
