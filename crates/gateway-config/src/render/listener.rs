//! A listener: connection manager, access log, virtual hosts, routes, and the filters of the pools that it routes to.

use std::net::SocketAddr;
use std::time::Duration;

use inference_api::gateway::{PathMatch, PathMatchKind};
use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::FailureMode;
use serde_json::{Map, Value, json};

use crate::attachment::{Attachment, Responses};
use crate::error::MissingBinding;
use crate::plan::{Backend, Listener, Plan, Route};
use crate::render::filters::{body_reports, filter_names, filters, previous_hosts};
use crate::render::{Bindings, address, extension, listener_port, observer_filter, picker_filter, typed};

/// Largest request body of a pool that fails open: Envoy must hold it whole, and answers 413 above this.
pub(crate) const FAIL_OPEN_BUFFER_BYTES: u32 = 50 << 20;
/// Shortest idle timeout that Envoy Gateway gives a route with a request timeout.
const MIN_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

pub(super) fn render(listener: &Listener, plan: &Plan, bindings: &Bindings) -> Result<Value, MissingBinding> {
    let port = listener_port(listener, bindings)?;
    let pools = pools(listener, plan, bindings.responses);
    let manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        connection_manager(listener, plan, &pools, bindings),
    );
    let mut value = json!({
        "name": listener.xds_name(),
        "address": address(SocketAddr::new(bindings.listen, port)),
    });
    if pools.iter().any(|pool| pool.failure_mode == FailureMode::FailOpen) {
        value["per_connection_buffer_limit_bytes"] = json!(FAIL_OPEN_BUFFER_BYTES);
    }
    value["default_filter_chain"] = json!({ "filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }] });
    Ok(value)
}

/// Pools that this listener routes to, each once.
fn pools<'a>(listener: &Listener, plan: &'a Plan, responses: Responses) -> Vec<Attachment<'a>> {
    let mut pools = plan.pools();
    pools.retain(|pool| listener.routes.iter().any(|route| pool_of(route, plan) == Some(pool.key)));
    pools.into_iter().map(|pool| Attachment::new(pool, responses)).collect()
}

fn pool_of<'a>(route: &Route, plan: &'a Plan) -> Option<&'a ObjectKey> {
    match &plan.clusters[route.cluster_idx].backend {
        Backend::Pool { key, .. } => Some(key),
        Backend::Service { .. } => None,
    }
}

fn connection_manager(
    listener: &Listener,
    plan: &Plan,
    pools: &[Attachment<'_>],
    bindings: &Bindings,
) -> Value {
    let mut value = json!({
        "stat_prefix": format!("http-{}", listener.port),
        "use_remote_address": true,
        "normalize_path": true,
        "merge_slashes": true,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "server_header_transformation": "PASS_THROUGH",
        "common_http_protocol_options": { "headers_with_underscores_action": "REJECT_REQUEST" },
    });
    if !pools.is_empty() {
        value["early_header_mutation_extensions"] = json!([without_forbidden_headers(bindings.explains)]);
    }
    value["access_log"] = json!([extension(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        json!({ "path": bindings.access_log, "log_format": { "json_format": access_log_format(pools) } }),
    )]);
    value["route_config"] = json!({
        "name": listener.xds_name(),
        "ignore_port_in_host_matching": true,
        "virtual_hosts": virtual_hosts(listener, plan, pools),
    });
    if pools.iter().any(|pool| pool.responses != Responses::Through) {
        // Headers that a picker adds to the responses that go through it.
        value["always_set_request_id_in_response"] = json!(true);
        if bindings.explains {
            value["route_config"]["response_headers_to_add"] = json!([decision_header()]);
        }
    }
    let mut chain: Vec<Value> = pools.iter().copied().flat_map(filters).collect();
    chain.push(extension(
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
        json!({ "suppress_envoy_headers": true }),
    ));
    value["http_filters"] = json!(chain);
    value
}

/// Removes from requests the headers that no client may set: a client must never be able to choose a pod, or learn more
/// about pods than the operator allows.
pub(crate) fn without_forbidden_headers(explains: bool) -> Value {
    let question = (!explains).then_some(keys::EXPLAIN);
    let removed: Vec<Value> = std::iter::once(keys::DESTINATION_ENDPOINT)
        .chain(question)
        .map(|header| json!({ "remove": header }))
        .collect();
    extension(
        "envoy.http.early_header_mutation.header_mutation",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        json!({ "mutations": removed }),
    )
}

/// The header that tells a client the picker's reasons, for responses that go past the picker.
pub(crate) fn decision_header() -> Value {
    json!({
        "header": {
            "key": keys::DECISION,
            "value": format!("%DYNAMIC_METADATA({}:{})%", keys::LB_METADATA, keys::DECISION),
        },
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    })
}

/// Format of the access log, as JSON. A missing value is written as `null`.
fn access_log_format(pools: &[Attachment<'_>]) -> Value {
    let ext_proc: String = match pools {
        [] => "%FILTER_STATE(envoy.filters.http.ext_proc:PLAIN)%".to_owned(),
        pools => {
            pools.iter().map(|pool| format!("%FILTER_STATE({}:PLAIN)%", picker_filter(pool.pool))).collect()
        }
    };
    let metadata = |key: &str| format!("%DYNAMIC_METADATA({}:{key})%", keys::LB_METADATA);
    json!({
        "start_time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "code": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "duration_ms": "%DURATION%",
        "ttfb_ms": "%RESPONSE_DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
        "upstream_host": "%UPSTREAM_HOST%",
        "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "picked": metadata(keys::DESTINATION_ENDPOINT),
        "served": metadata(keys::DESTINATION_ENDPOINT_SERVED),
        "ext_proc": ext_proc,
    })
}

fn virtual_hosts(listener: &Listener, plan: &Plan, pools: &[Attachment<'_>]) -> Vec<Value> {
    let mut hosts: Vec<&str> = Vec::new();
    for route in &listener.routes {
        if !hosts.contains(&route.host.as_str()) {
            hosts.push(&route.host);
        }
    }
    let render = |host: &&str| {
        let routes: Vec<Value> = listener
            .routes
            .iter()
            .filter(|route| route.host == **host)
            .flat_map(|planned| routes(planned, plan, pools))
            .collect();
        json!({
            "name": format!("{}/{}", listener.xds_name(), host.replace('.', "_")),
            "domains": [host],
            "routes": routes,
        })
    };
    hosts.iter().map(render).collect()
}

/// Envoy's routes of `planned`: if bodies of responses are reported for a share of the requests, a route with this share
/// comes first.
fn routes(planned: &Route, plan: &Plan, pools: &[Attachment<'_>]) -> Vec<Value> {
    let pool = pool_of(planned, plan);
    let attachment = pools.iter().find(|attachment| Some(attachment.pool) == pool);
    let plain = route(planned, plan, attachment);
    let Some((attachment, (share, reports))) =
        attachment.and_then(|attachment| Some((attachment, body_reports(attachment)?)))
    else {
        return vec![plain];
    };
    let mut reporting = plain.clone();
    reporting["match"]["runtime_fraction"] =
        json!({ "default_value": { "numerator": share.per_million(), "denominator": "MILLION" } });
    reporting["typed_per_filter_config"][observer_filter(attachment.pool)] = reports;
    vec![reporting, plain]
}

fn route(route: &Route, plan: &Plan, attachment: Option<&Attachment<'_>>) -> Value {
    let mut action = Map::new();
    action.insert("cluster".to_owned(), json!(plan.clusters[route.cluster_idx].name));
    if let Some(timeout) = route.timeout {
        let idle = if timeout.is_zero() { timeout } else { timeout.max(MIN_IDLE_TIMEOUT) };
        action.insert("timeout".to_owned(), json!(duration(timeout)));
        action.insert("idle_timeout".to_owned(), json!(duration(idle)));
    }
    action.insert("upgrade_configs".to_owned(), json!([{ "upgrade_type": "websocket" }]));
    let mut value = json!({ "name": route.name, "match": path_match(&route.path) });
    if let Some(attachment) = attachment {
        action.insert("retry_policy".to_owned(), retry_policy());
        let names = filter_names(attachment).into_iter();
        value["typed_per_filter_config"] = names.map(|name| (name, enabled())).collect();
    }
    value["route"] = Value::Object(action);
    value
}

/// Enables for a route a filter that is disabled for the listener.
pub(crate) fn enabled() -> Value {
    typed("envoy.config.route.v3.FilterConfig", json!({ "config": {} }))
}

fn path_match(path: &PathMatch) -> Value {
    let PathMatch { kind, value } = path;
    match kind {
        PathMatchKind::Exact => json!({ "path": value }),
        PathMatchKind::RegularExpression => json!({ "safe_regex": { "regex": value } }),
        PathMatchKind::PathPrefix => match value.trim_end_matches('/') {
            "" => json!({ "prefix": "/" }),
            prefix => json!({ "path_separated_prefix": prefix }),
        },
    }
}

/// Retries only before a pod has received a byte, and on another pod each time.
pub(crate) fn retry_policy() -> Value {
    json!({
        "retry_on": "connect-failure,refused-stream",
        "num_retries": 2,
        "retry_host_predicate": [previous_hosts()],
        "host_selection_retry_max_attempts": 5,
    })
}

/// Protobuf's JSON form of a duration.
fn duration(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        millis => format!("{}.{millis:03}s", duration.as_secs()),
    }
}
