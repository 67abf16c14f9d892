//! Endpoint picker: Envoy ext_proc server that picks a pod by prefix and load.
