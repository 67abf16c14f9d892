//! The filters of a pool's picker: the one that asks it, and the one that reports responses to it.

use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::FailureMode;
use serde_json::{Value, json};

use crate::attachment::{Attachment, Responses};
use crate::render::{extension, observer_filter, picker_cluster, picker_filter, typed};

/// Longest wait for one answer of a picker whose pool fails closed; Envoy does not apply it to streamed bodies.
const STREAMED_MESSAGE_TIMEOUT: &str = "10s";
/// Longest wait for one answer of a picker whose pool fails open; after it the request goes on without a pick.
const FAIL_OPEN_MESSAGE_TIMEOUT: &str = "2s";

/// Time for which a report goes on after its response has broken off. A report that is complete ends at once.
const REPORT_END: &str = "0.010s";

/// Names of the filters of an attachment, in their order.
pub(crate) fn filter_names(attachment: &Attachment<'_>) -> Vec<String> {
    let Attachment { pool, failure_mode: _, responses } = attachment;
    match responses {
        Responses::Through => vec![picker_filter(pool)],
        Responses::Observed => vec![picker_filter(pool), observer_filter(pool)],
    }
}

/// The filters of an attachment, disabled until a route enables them.
pub(crate) fn filters(attachment: Attachment<'_>) -> Vec<Value> {
    match attachment.responses {
        Responses::Through => vec![picker(attachment)],
        Responses::Observed => vec![picker(attachment), observer(attachment.pool)],
    }
}

/// The filter that asks the picker, and waits for its answers.
fn picker(attachment: Attachment<'_>) -> Value {
    let Attachment { pool, failure_mode, responses } = attachment;
    let (fails_open, message_timeout, mut modes, response_modes) = match failure_mode {
        FailureMode::FailClose => (
            false,
            STREAMED_MESSAGE_TIMEOUT,
            json!({
                "request_header_mode": "SEND",
                "request_body_mode": "FULL_DUPLEX_STREAMED",
                "request_trailer_mode": "SEND",
            }),
            json!({
                "response_header_mode": "SEND",
                "response_body_mode": "FULL_DUPLEX_STREAMED",
                "response_trailer_mode": "SEND",
            }),
        ),
        // A streamed request body cannot fail open: the picker may have taken part of it.
        FailureMode::FailOpen => (
            true,
            FAIL_OPEN_MESSAGE_TIMEOUT,
            json!({ "request_header_mode": "SEND", "request_body_mode": "BUFFERED" }),
            json!({ "response_header_mode": "SEND", "response_body_mode": "STREAMED" }),
        ),
    };
    // Pools may share a picker.
    let mut metadata = vec![json!({ "key": keys::INFERENCE_POOL, "value": pool.to_string() })];
    let response_modes = match responses {
        Responses::Through => response_modes,
        Responses::Observed => {
            metadata.push(json!({ "key": keys::RESPONSES, "value": keys::OBSERVED }));
            json!({ "response_header_mode": "SKIP", "response_body_mode": "NONE" })
        }
    };
    if let (Value::Object(modes), Value::Object(response_modes)) = (&mut modes, response_modes) {
        modes.extend(response_modes);
    }
    ext_proc(
        picker_filter(pool),
        json!({
                "grpc_service": {
                    "envoy_grpc": { "cluster_name": picker_cluster(pool) },
                    "initial_metadata": metadata,
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
                "processing_mode": modes,
                "metadata_options": {
                    "forwarding_namespaces": { "untyped": [keys::LB_METADATA, keys::SUBSET_METADATA] },
                    "receiving_namespaces": { "untyped": [keys::LB_METADATA] },
                },
        }),
    )
}

/// The filter that reports responses to the picker that has picked. It sends and goes on: a picker that hangs, dies or
/// fails holds and cuts nothing. The report begins when the request is sent on, so its end is the request's end, whatever
/// comes of it.
fn observer(pool: &ObjectKey) -> Value {
    let picker = format!("%DYNAMIC_METADATA({}:{})%", keys::LB_METADATA, keys::PICKER);
    ext_proc(
        observer_filter(pool),
        json!({
                "grpc_service": {
                    "envoy_grpc": { "cluster_name": picker_cluster(pool) },
                    "initial_metadata": [
                        { "key": keys::INFERENCE_POOL, "value": pool.to_string() },
                        { "key": keys::PICKER, "value": picker },
                    ],
                },
                "observability_mode": true,
                "deferred_close_timeout": REPORT_END,
                "failure_mode_allow": true,
                "processing_mode": {
                    "request_header_mode": "SEND",
                    "request_body_mode": "NONE",
                    "response_header_mode": "SEND",
                    "response_body_mode": "STREAMED",
                    "response_trailer_mode": "SEND",
                },
                "metadata_options": { "forwarding_namespaces": { "untyped": [keys::LB_METADATA] } },
        }),
    )
}

/// A filter that calls a picker, disabled until a route enables it.
fn ext_proc(name: String, config: Value) -> Value {
    let config = typed("envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor", config);
    json!({ "name": name, "disabled": true, "typed_config": config })
}

pub(super) fn previous_hosts() -> Value {
    extension(
        "envoy.retry_host_predicates.previous_hosts",
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        json!({}),
    )
}
