//! The filter that asks a pool's picker.

use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::FailureMode;
use serde_json::{Value, json};

use crate::render::{extension, picker_cluster, picker_filter, typed};

/// Longest wait for one answer of a picker whose pool fails closed; Envoy does not apply it to streamed bodies.
const STREAMED_MESSAGE_TIMEOUT: &str = "10s";
/// Longest wait for one answer of a picker whose pool fails open; after it the request goes on without a pick.
const FAIL_OPEN_MESSAGE_TIMEOUT: &str = "2s";

/// The filter of the picker, disabled until a route enables it.
pub(super) fn ext_proc(pool: &ObjectKey, failure_mode: FailureMode) -> Value {
    let (fails_open, message_timeout, processing_mode) = match failure_mode {
        FailureMode::FailClose => (
            false,
            STREAMED_MESSAGE_TIMEOUT,
            json!({
                "request_header_mode": "SEND",
                "request_body_mode": "FULL_DUPLEX_STREAMED",
                "request_trailer_mode": "SEND",
                "response_header_mode": "SEND",
                "response_body_mode": "FULL_DUPLEX_STREAMED",
                "response_trailer_mode": "SEND",
            }),
        ),
        // A streamed request body cannot fail open: the picker may have taken part of it.
        FailureMode::FailOpen => (
            true,
            FAIL_OPEN_MESSAGE_TIMEOUT,
            json!({
                "request_header_mode": "SEND",
                "request_body_mode": "BUFFERED",
                "response_header_mode": "SEND",
                "response_body_mode": "STREAMED",
            }),
        ),
    };
    json!({
        "name": picker_filter(pool),
        "disabled": true,
        "typed_config": typed(
            "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
            json!({
                "grpc_service": {
                    "envoy_grpc": { "cluster_name": picker_cluster(pool) },
                    // Pools may share a picker.
                    "initial_metadata": [{ "key": keys::INFERENCE_POOL, "value": pool.to_string() }],
                    // A picker that has just died does not count as dead yet; another picker may take the request.
                    "retry_policy": {
                        "retry_on": "connect-failure,refused-stream",
                        "num_retries": 2,
                        // If there is no other picker, the request fails within a tenth of a second.
                        "retry_back_off": { "base_interval": "0.020s", "max_interval": "0.050s" },
                        "retry_host_predicate": [previous_hosts()],
                        "host_selection_retry_max_attempts": 5,
                    },
                },
                "failure_mode_allow": fails_open,
                "message_timeout": message_timeout,
                "processing_mode": processing_mode,
                "metadata_options": {
                    "forwarding_namespaces": { "untyped": [keys::LB_METADATA, keys::SUBSET_METADATA] },
                    "receiving_namespaces": { "untyped": [keys::LB_METADATA] },
                },
            }),
        ),
    })
}

pub(super) fn previous_hosts() -> Value {
    extension(
        "envoy.retry_host_predicates.previous_hosts",
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        json!({}),
    )
}
