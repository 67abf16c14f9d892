//! The filters of a pool's picker: the one that asks it, and the one that reports responses to it.

use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::{BodyMode, FailureMode};
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

const EXT_PROC: &str = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor";

/// Largest request body that Envoy holds for a picker; it answers 413 above this.
pub(crate) const HELD_BODY_BYTES: u32 = 50 << 20;

/// Times that a picker is asked whether it is there: the next of several may answer.
const PRESENCE_TRIES: u32 = 2;
/// Longest wait for one of its answers.
const PRESENCE_TIMEOUT_MS: u32 = 1000;
/// Namespace of the dynamic metadata in which a request notes that its picker is away.
const PICKER_METADATA: &str = "warmpath.picker";
/// Key of that note.
const AWAY: &str = "away";

/// Namespace of the dynamic metadata with the model that a body names.
const MODEL_METADATA: &str = "warmpath.model";

/// A filter of an attachment.
#[derive(Clone, Copy)]
enum Filter {
    /// Looks whether the picker is there.
    Presence,
    /// Waits for the whole body.
    Buffer,
    /// Asks the picker.
    Picker,
    /// Reports responses, and the bodies of this share of them.
    Observer(Share),
}

/// Filters of an attachment, in their order.
fn of(attachment: &Attachment<'_>) -> Vec<Filter> {
    let Attachment { pool: _, failure_mode, responses, maker } = attachment;
    let mut filters = match (maker, failure_mode) {
        (Maker::Warmpath, _) => vec![],
        // It answers a part of a body before the headers, and Envoy would send the part on without them.
        (Maker::Other(BodyMode::Streamed), _) => vec![Filter::Buffer],
        (Maker::Other(BodyMode::FullDuplexStreamed), FailureMode::FailClose) => vec![],
        // Envoy keeps nothing of a body that it has sent to a picker in full duplex, so it must know before.
        (Maker::Other(BodyMode::FullDuplexStreamed), FailureMode::FailOpen) => vec![Filter::Presence],
    };
    filters.push(Filter::Picker);
    match responses {
        Responses::Through => {}
        Responses::Observed(bodies) => filters.push(Filter::Observer(*bodies)),
    }
    filters
}

impl Filter {
    fn name(self, pool: &ObjectKey) -> String {
        match self {
            Self::Presence => format!("{}/presence", picker_filter(pool)),
            Self::Buffer => format!("{}/buffer", picker_filter(pool)),
            Self::Picker => picker_filter(pool),
            Self::Observer(_) => observer_filter(pool),
        }
    }

    /// The message that configures the filter for a route.
    fn route_message(self) -> &'static str {
        match self {
            Self::Presence => "envoy.extensions.filters.http.lua.v3.LuaPerRoute",
            Self::Buffer => "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            Self::Picker | Self::Observer(_) => "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
        }
    }
}

/// Names of the filters of an attachment, in their order.
pub(crate) fn filter_names(attachment: &Attachment<'_>) -> Vec<String> {
    of(attachment).into_iter().map(|filter| filter.name(attachment.pool)).collect()
}

/// Names of the filters of an attachment, and what disables each of them for a route if the listener enables it.
pub(super) fn disabled(attachment: &Attachment<'_>) -> Vec<(String, Value)> {
    let off = |filter: Filter| {
        (filter.name(attachment.pool), typed(filter.route_message(), json!({ "disabled": true })))
    };
    of(attachment).into_iter().map(off).collect()
}

/// The filters of an attachment, disabled until a route enables them.
pub(crate) fn filters(attachment: Attachment<'_>) -> Vec<Value> {
    let pool = attachment.pool;
    let render = |filter: Filter| {
        let config = match filter {
            Filter::Presence => presence(pool),
            Filter::Buffer => typed(
                "envoy.extensions.filters.http.buffer.v3.Buffer",
                json!({ "max_request_bytes": HELD_BODY_BYTES }),
            ),
            Filter::Picker => picker(attachment),
            Filter::Observer(bodies) => observer(pool, bodies),
        };
        json!({ "name": filter.name(pool), "disabled": true, "typed_config": config })
    };
    of(&attachment).into_iter().map(render).collect()
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
    // Pools may share a picker.
    let mut metadata = vec![json!({ "key": keys::INFERENCE_POOL, "value": pool.to_string() })];
    if responses != Responses::Through {
        metadata.push(json!({ "key": keys::RESPONSES, "value": keys::OBSERVED }));
    }
    let mut config = json!({
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
        "processing_mode": picker_modes(attachment),
        "metadata_options": {
            "forwarding_namespaces": { "untyped": [keys::LB_METADATA, keys::SUBSET_METADATA] },
            "receiving_namespaces": { "untyped": [keys::LB_METADATA] },
        },
    });
    if maker == Maker::Other(BodyMode::Streamed) {
        // It answers headers when it has the body.
        config["send_body_without_waiting_for_header_response"] = json!(true);
    }
    let config = typed(EXT_PROC, config);
    match of(&attachment).as_slice() {
        [Filter::Presence, ..] => unless_away(config),
        _ => config,
    }
}

/// The parts of requests and responses that the picker gets.
fn picker_modes(attachment: Attachment<'_>) -> Value {
    let Attachment { pool: _, failure_mode, responses, maker } = attachment;
    let full_duplex = || {
        (
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
        )
    };
    let streamed = || json!({ "response_header_mode": "SEND", "response_body_mode": "STREAMED" });
    let (mut modes, response_modes) = match (maker, failure_mode) {
        (Maker::Other(BodyMode::Streamed), _) => {
            (json!({ "request_header_mode": "SEND", "request_body_mode": "STREAMED" }), streamed())
        }
        // A body that is buffered is sent when the headers are answered: a picker that waits for it would never answer.
        (Maker::Other(BodyMode::FullDuplexStreamed), _) | (Maker::Warmpath, FailureMode::FailClose) => {
            full_duplex()
        }
        // A streamed request body cannot fail open: the picker may have taken part of it.
        (Maker::Warmpath, FailureMode::FailOpen) => {
            (json!({ "request_header_mode": "SEND", "request_body_mode": "BUFFERED" }), streamed())
        }
    };
    let response_modes = match responses {
        Responses::Through => response_modes,
        Responses::Observed(_) => json!({ "response_header_mode": "SKIP", "response_body_mode": "NONE" }),
    };
    if let (Value::Object(modes), Value::Object(response_modes)) = (&mut modes, response_modes) {
        modes.extend(response_modes);
    }
    modes
}

/// The filter that asks the picker for its health, and notes in the request's metadata that it is away if nothing answers.
/// Any answer is one of a picker that is there, also that it knows no such question. Envoy's own answer for it is the status
/// 14, "unavailable".
fn presence(pool: &ObjectKey) -> Value {
    let cluster = picker_cluster(pool);
    let script = format!(
        r#"function envoy_on_request(handle)
  local question = {{
    [":method"] = "POST",
    [":path"] = "/grpc.health.v1.Health/Check",
    [":authority"] = "{cluster}",
    ["content-type"] = "application/grpc",
    ["te"] = "trailers",
  }}
  for _ = 1, {PRESENCE_TRIES} do
    local answer = handle:httpCall("{cluster}", question, "\0\0\0\0\0", {PRESENCE_TIMEOUT_MS})
    if answer[":status"] == "200" and answer["grpc-status"] ~= "14" then
      return
    end
  end
  handle:streamInfo():dynamicMetadata():set("{PICKER_METADATA}", "{AWAY}", true)
end
"#
    );
    lua(&script)
}

/// A filter that is skipped for requests whose picker is away.
fn unless_away(filter: Value) -> Value {
    let input = extension(
        "envoy.matching.inputs.dynamic_metadata",
        "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
        json!({ "filter": PICKER_METADATA, "path": [{ "key": AWAY }] }),
    );
    let is_true = extension(
        "envoy.matching.matchers.metadata_matcher",
        "envoy.extensions.matching.input_matchers.metadata.v3.Metadata",
        json!({ "value": { "bool_match": true } }),
    );
    let skip = extension("skip", "envoy.extensions.filters.common.matcher.action.v3.SkipFilter", json!({}));
    typed(
        "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        json!({
            "extension_config": { "name": "envoy.filters.http.ext_proc", "typed_config": filter },
            "xds_matcher": { "matcher_list": { "matchers": [{
                "predicate": { "single_predicate": { "input": input, "custom_match": is_true } },
                "on_match": { "action": skip },
            }] } },
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
    typed(
        EXT_PROC,
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
    [reader, json!({ "name": "envoy.filters.http.lua", "typed_config": lua(&script) })]
}

fn lua(script: &str) -> Value {
    typed(
        "envoy.extensions.filters.http.lua.v3.Lua",
        json!({ "default_source_code": { "inline_string": script } }),
    )
}

pub(super) fn previous_hosts() -> Value {
    extension(
        "envoy.retry_host_predicates.previous_hosts",
        "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
        json!({}),
    )
}
