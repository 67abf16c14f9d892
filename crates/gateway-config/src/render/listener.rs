//! A listener: connection manager, access log, and the filters of the pools that it routes to.

use std::net::SocketAddr;

use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::traffic::HttpClientTimeout;
use serde_json::{Value, json};

use crate::attachment::{Attachment, Maker, Responses};
use crate::error::MissingBinding;
use crate::plan::{Listener, Plan, Route, RouteAction};
use crate::render::filters::{HELD_BODY_BYTES, access_log, filters, model_filters};
use crate::render::route::{pool_of, virtual_hosts};
use crate::render::{Bindings, address, duration, extension, listener_port, picker_filter, typed};

pub(super) fn render(listener: &Listener, plan: &Plan, bindings: &Bindings) -> Result<Value, MissingBinding> {
    let port = listener_port(listener, bindings)?;
    let pools = pools(listener, plan, bindings);
    let manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        connection_manager(listener, plan, &pools, bindings),
    );
    let mut value = json!({
        "name": listener.xds_name(),
        "address": address(SocketAddr::new(bindings.listen, port)),
    });
    let holds_bodies = listener.reads_model() || pools.iter().any(Attachment::holds_bodies);
    if let Some(limit) = listener.client.connection.buffer_limit.or(holds_bodies.then_some(HELD_BODY_BYTES)) {
        value["per_connection_buffer_limit_bytes"] = json!(limit);
    }
    value["default_filter_chain"] = json!({ "filters": [{
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }] });
    Ok(value)
}

/// Pools that this listener routes to, each once.
fn pools<'a>(listener: &Listener, plan: &'a Plan, bindings: &Bindings) -> Vec<Attachment<'a>> {
    let mut pools = plan.pools();
    pools.retain(|pool| {
        let mut clusters = listener.routes.iter().flat_map(Route::cluster_idxs);
        clusters.any(|cluster_idx| pool_of(cluster_idx, plan) == Some(pool.key))
    });
    let maker = |pool: &ObjectKey| bindings.pickers.get(pool).map_or(Maker::Warmpath, |picker| picker.maker);
    pools.into_iter().map(|pool| Attachment::new(pool, bindings.responses, maker(pool.key))).collect()
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
    add_timeouts(&mut value, &listener.client.timeout.http);
    if !pools.is_empty() {
        value["early_header_mutation_extensions"] = json!([without_forbidden_headers(bindings.explains)]);
    }
    let file = extension(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        json!({ "path": bindings.access_log, "log_format": { "json_format": access_log_format(pools) } }),
    );
    value["access_log"] = std::iter::once(file).chain(pools.iter().filter_map(access_log)).collect();
    value["route_config"] = json!({
        "name": listener.xds_name(),
        "ignore_port_in_host_matching": true,
        "virtual_hosts": virtual_hosts(listener, plan, pools),
    });
    let has_missing = |route: &Route| match &route.action {
        RouteAction::Forward(targets) => targets.iter().any(|target| target.cluster_idx.is_none()),
        RouteAction::Redirect(_) | RouteAction::Fixed(_) => false,
    };
    if listener.routes.iter().any(has_missing) {
        value["route_config"]["validate_clusters"] = json!(false);
    }
    if pools.iter().any(|pool| pool.responses != Responses::Through) {
        // Headers that a picker adds to the responses that go through it.
        value["always_set_request_id_in_response"] = json!(true);
        if bindings.explains {
            value["route_config"]["response_headers_to_add"] = json!([decision_header()]);
        }
    }
    let mut chain: Vec<Value> = pools.iter().copied().flat_map(filters).collect();
    if listener.reads_model() {
        // The route is not known before the body, and with it which filters are wanted.
        for filter in &mut chain {
            if let Value::Object(filter) = filter {
                filter.shift_remove("disabled");
            }
        }
        chain.splice(0..0, model_filters());
    }
    chain.push(extension(
        "envoy.filters.http.router",
        "envoy.extensions.filters.http.router.v3.Router",
        json!({ "suppress_envoy_headers": true }),
    ));
    value["http_filters"] = json!(chain);
    value
}

/// Adds the timeouts that a policy for clients asks for.
fn add_timeouts(manager: &mut Value, asked: &HttpClientTimeout) {
    let HttpClientTimeout {
        request_received_timeout,
        request_headers_received_timeout,
        idle_timeout,
        stream_idle_timeout,
    } = asked;
    for (field, timeout) in [
        ("request_timeout", request_received_timeout),
        ("request_headers_timeout", request_headers_received_timeout),
        ("stream_idle_timeout", stream_idle_timeout),
    ] {
        if let Some(timeout) = timeout {
            manager[field] = json!(duration(*timeout));
        }
    }
    if let Some(idle) = idle_timeout {
        manager["common_http_protocol_options"]["idle_timeout"] = json!(duration(*idle));
    }
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
