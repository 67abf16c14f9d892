//! Gateway API objects to Envoy configuration, with the names that Envoy Gateway gives.
