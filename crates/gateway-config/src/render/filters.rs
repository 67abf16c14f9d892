//! The filters of a pool's picker: the one that asks it, and the one that reports responses to it.

use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::FailureMode;
use serde_json::{Value, json};

use crate::attachment::{Attachment, Maker, Responses, Share};
use crate::render::{extension, observer_filter, picker_cluster, picker_filter, typed};

/// Longest wait for one answer of a picker whose pool fails closed; Envoy does not apply it to streamed bodies.
const STREAMED_MESSAGE_TIMEOUT: &str = "10s";
/// Longest wait for one answer of a picker whose pool fails open; after it the request goes on without a pick.
const FAIL_OPEN_MESSAGE_TIMEOUT: &str = "2s";

/// Time from the end of a response to the end of its report, which tells the picker of it. If the picker reads the whole
/// response, it does not wait for that.
const REPORT_END: &str = "0.010s";

/// Namespace of the dynamic metadata with the model that a body names.
const MODEL_METADATA: &str = "warmpath.model";

/// Names of the filters of an attachment, in their order.
pub(crate) fn filter_names(attachment: &Attachment<'_>) -> Vec<String> {
    let Attachment { pool, failure_mode: _, responses, maker: _ } = attachment;
    match responses {
        Responses::Through => vec![picker_filter(pool)],
        Responses::Observed(_) => vec![picker_filter(pool), observer_filter(pool)],
    }
}

/// The filters of an attachment, disabled until a route enables them.
pub(crate) fn filters(attachment: Attachment<'_>) -> Vec<Value> {
    match attachment.responses {
        Responses::Through => vec![picker(attachment)],
        Responses::Observed(bodies) => vec![picker(attachment), observer(attachment.pool, bodies)],
    }
}

/// The share of the requests for which the observer of `attachment` is told by the route to send bodies, and what it is
/// told; `None` if it does the same for all requests.
pub(crate) fn body_reports(attachment: &Attachment<'_>) -> Option<(Share, Value)> {
    match attachment.responses {
        Responses::Through | Responses::Observed(Share::NONE | Share::ALL) => None,
        Responses::Observed(bodies) => {
            let overrides = json!({
                "processing_mode": observer_modes("STREAMED"),
                "grpc_initial_metadata": [reports_bodies()],
            });
            // It enables the filter, too, because it configures it.
            let config = typed(
                "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
                json!({ "overrides": overrides }),
            );
            Some((bodies, config))
        }
    }
}

/// The filter that asks the picker, and waits for its answers.
fn picker(attachment: Attachment<'_>) -> Value {
    let Attachment { pool, failure_mode, responses, maker } = attachment;
    let (fails_open, message_timeout) = match failure_mode {
        FailureMode::FailClose => (false, STREAMED_MESSAGE_TIMEOUT),
        FailureMode::FailOpen => (true, FAIL_OPEN_MESSAGE_TIMEOUT),
    };
    let (mut modes, response_modes) = match (failure_mode, maker) {
        // A body that is buffered is sent when the headers are answered: a picker that waits for it would never answer.
        (FailureMode::FailClose, _) | (FailureMode::FailOpen, Maker::Other) => (
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
        (FailureMode::FailOpen, Maker::Warmpath) => (
            json!({ "request_header_mode": "SEND", "request_body_mode": "BUFFERED" }),
            json!({ "response_header_mode": "SEND", "response_body_mode": "STREAMED" }),
        ),
    };
    // Pools may share a picker.
    let mut metadata = vec![json!({ "key": keys::INFERENCE_POOL, "value": pool.to_string() })];
    let response_modes = match responses {
        Responses::Through => response_modes,
        Responses::Observed(_) => {
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
fn observer(pool: &ObjectKey, bodies: Share) -> Value {
    let picker = format!("%DYNAMIC_METADATA({}:{})%", keys::LB_METADATA, keys::PICKER);
    let mut metadata = vec![
        json!({ "key": keys::INFERENCE_POOL, "value": pool.to_string() }),
        json!({ "key": keys::PICKER, "value": picker }),
    ];
    let mut body_mode = "NONE";
    if bodies == Share::ALL {
        metadata.push(reports_bodies());
        body_mode = "STREAMED";
    }
    ext_proc(
        observer_filter(pool),
        json!({
                "grpc_service": {
                    "envoy_grpc": { "cluster_name": picker_cluster(pool) },
                    "initial_metadata": metadata,
                },
                "observability_mode": true,
                "deferred_close_timeout": REPORT_END,
                "failure_mode_allow": true,
                "processing_mode": observer_modes(body_mode),
                "forward_rules": { "allowed_headers": { "patterns": reported_headers() } },
                "metadata_options": { "forwarding_namespaces": { "untyped": [keys::LB_METADATA] } },
        }),
    )
}

/// The picker cannot tell from a report's messages that a body will follow.
fn reports_bodies() -> Value {
    json!({ "key": keys::REPORTED, "value": keys::BODY })
}

/// The headers that a report needs: those of the response that tell how to read it.
fn reported_headers() -> Vec<Value> {
    [":status", "content-type", "content-encoding"].map(|name| json!({ "exact": name })).to_vec()
}

fn observer_modes(body_mode: &str) -> Value {
    json!({
        "request_header_mode": "SEND",
        "request_body_mode": "NONE",
        "response_header_mode": "SEND",
        "response_body_mode": body_mode,
        "response_trailer_mode": "SEND",
    })
}

/// The filters that set the header of the model from the body, and choose the route again.
pub(super) fn model_filters() -> [Value; 2] {
    let rule = json!({
        "selectors": [{ "key": "model" }],
        "on_present": { "metadata_namespace": MODEL_METADATA, "key": "model", "type": "STRING" },
    });
    let reader = extension(
        "envoy.filters.http.json_to_metadata",
        "envoy.extensions.filters.http.json_to_metadata.v3.JsonToMetadata",
        json!({ "request_rules": {
            "rules": [rule],
            // The types with which people and client libraries send JSON.
            "allow_content_types": [
                "application/json",
                "application/json; charset=utf-8",
                "application/json;charset=utf-8",
                "application/json; charset=UTF-8",
                "application/x-www-form-urlencoded",
            ],
            "allow_empty_content_type": true,
        } }),
    );
    let header = keys::MODEL_NAME;
    let script = format!(
        "function envoy_on_request(handle)\n  \
         local found = handle:streamInfo():dynamicMetadata():get(\"{MODEL_METADATA}\")\n  \
         if found ~= nil and found[\"model\"] ~= nil then\n    \
         handle:headers():replace(\"{header}\", found[\"model\"])\n    \
         handle:clearRouteCache()\n  end\nend\n"
    );
    let setter = extension(
        "envoy.filters.http.lua",
        "envoy.extensions.filters.http.lua.v3.Lua",
        json!({ "default_source_code": { "inline_string": script } }),
    );
    [reader, setter]
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
