//! Envoy's ext_proc protocol as generated Rust, reduced to what an endpoint picker needs.
