//! The filters of a pool's picker: the one that asks it, and the one that reports responses to it.

use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::{BodyMode, FailureMode};
use serde_json::{Value, json};

use crate::attachment::{Attachment, Maker, Responses, Share};
use crate::render::{access_log_name, extension, observer_filter, picker_cluster, picker_filter, typed};

/// Longest wait for one answer of a picker whose pool fails closed; Envoy does not apply it to streamed bodies.
const STREAMED_MESSAGE_TIMEOUT: &str = "10s";
/// Longest wait for one answer of a picker whose pool fails open; after it the request goes on without a pick.
const FAIL_OPEN_MESSAGE_TIMEOUT: &str = "2s";

/// Time from the end of a response to the end of its report, which tells the picker of it. If the picker reads the whole
/// response, it does not wait for that.
const REPORT_END: &str = "0.010s";
/// Longest time for which Envoy gathers the ends of requests, before it tells the picker.
const ENTRIES_WAIT: &str = "0.020s";

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
    /// Reports this share of the responses, with their bodies.
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
        Responses::Through | Responses::Observed(Share::NONE) => {}
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

    /// Returns true if the filter sees every request of its pool.
    fn sees_all(self) -> bool {
        match self {
            Self::Presence | Self::Buffer | Self::Picker => true,
            Self::Observer(share) => share == Share::ALL,
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

/// Names of the filters that see every request of an attachment, in their order.
pub(crate) fn filter_names(attachment: &Attachment<'_>) -> Vec<String> {
    let names = of(attachment).into_iter().filter(|filter| filter.sees_all());
    names.map(|filter| filter.name(attachment.pool)).collect()
}

/// Names of the filters that requests of `own` pass by if the listener enables all those of `attachment`, and what disables
/// each of them for a route.
pub(super) fn disabled(attachment: &Attachment<'_>, own: Option<&Attachment<'_>>) -> Vec<(String, Value)> {
    let is_own = own.is_some_and(|own| own.pool == attachment.pool);
    let off = |filter: Filter| {
        (filter.name(attachment.pool), typed(filter.route_message(), json!({ "disabled": true })))
    };
    of(attachment).into_iter().filter(|filter| !(is_own && filter.sees_all())).map(off).collect()
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
            Filter::Observer(_) => observer(pool),
        };
        json!({ "name": filter.name(pool), "disabled": true, "typed_config": config })
    };
    of(&attachment).into_iter().map(render).collect()
}

/// The share of the requests for which a route enables the observer of `attachment`, and the configuration that does;
/// `None` if it sees all requests or none.
pub(crate) fn body_reports(attachment: &Attachment<'_>) -> Option<(Share, Value)> {
    of(attachment).into_iter().find_map(|filter| match filter {
        Filter::Observer(share) if !filter.sees_all() => {
            Some((share, typed(filter.route_message(), json!({ "overrides": {} }))))
        }
        Filter::Presence | Filter::Buffer | Filter::Picker | Filter::Observer(_) => None,
    })
}

/// The access log that tells the picker how each request that it has named has ended, and each that has no name: its
/// client may have hung up before Envoy had the answer with the name. Envoy gathers entries, sends them and goes on: a
/// picker that hangs or dies holds and cuts nothing.
pub(crate) fn access_log(attachment: &Attachment<'_>) -> Option<Value> {
    let Attachment { pool, failure_mode: _, responses, maker: _ } = attachment;
    if *responses == Responses::Through {
        return None;
    }
    let is_named_by_picker = json!({
        "filter": keys::LB_METADATA,
        "path": [{ "key": keys::TICKET }],
        "value": { "string_match": { "prefix": format!("{pool}/") } },
    });
    let service = json!({ "envoy_grpc": { "cluster_name": picker_cluster(pool) } });
    let mut log = extension(
        &access_log_name(pool),
        "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
        json!({ "common_config": {
            "log_name": pool.to_string(),
            "grpc_service": service,
            "buffer_flush_interval": ENTRIES_WAIT,
        } }),
    );
    log["filter"] =
        json!({ "metadata_filter": { "matcher": is_named_by_picker, "match_if_key_not_found": true } });
    Some(log)
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

/// The filter that reports responses, with their bodies, to the picker that has picked. It sends and goes on: a picker
/// that hangs, dies or fails holds and cuts nothing. The report begins when the request is sent on, so its end is the
/// request's end, whatever comes of it.
fn observer(pool: &ObjectKey) -> Value {
    let picker = format!("%DYNAMIC_METADATA({}:{})%", keys::LB_METADATA, keys::PICKER);
    let metadata = json!([
        { "key": keys::INFERENCE_POOL, "value": pool.to_string() },
        { "key": keys::PICKER, "value": picker },
    ]);
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
                "processing_mode": {
                    "request_header_mode": "SEND",
                    "request_body_mode": "NONE",
                    "response_header_mode": "SEND",
                    "response_body_mode": "STREAMED",
                    "response_trailer_mode": "SEND",
                },
                "forward_rules": { "allowed_headers": { "patterns": reported_headers() } },
                "metadata_options": { "forwarding_namespaces": { "untyped": [keys::LB_METADATA] } },
        }),
    )
}

/// The headers that a report needs: those of the response that tell how to read it.
fn reported_headers() -> Vec<Value> {
    [":status", "content-type", "content-encoding"].map(|name| json!({ "exact": name })).to_vec()
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
