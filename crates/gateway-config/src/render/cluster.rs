//! Clusters: the pods behind a rule, and the pools' pickers.

use std::net::SocketAddr;
use std::path::Path;

use inference_api::gateway::Fraction;
use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::AppProtocol;
use inference_api::traffic::{CircuitBreaker, HttpTimeout, LoadBalancer, LoadBalancerKind, RetryBudget};
use serde_json::{Map, Value, json};

use crate::attachment::Maker;
use crate::plan::{Backend, Cluster, Traffic};
use crate::render::{PickerBinding, PickerTls, address, duration, extension, picker_cluster, typed};

/// Most connections, pending requests and requests of a cluster. Envoy's default of 1024 is too low: each open stream
/// counts, and also holds a gRPC stream to the picker.
const MAX_REQUESTS: u32 = 40_000;
/// Most retries at a time: Envoy Gateway's default.
const MAX_RETRIES: u32 = 1024;
/// Longest wait for a connection to a pod: Envoy Gateway's default.
const CONNECT_TIMEOUT: &str = "10s";
/// Message with the protocol of a cluster, and its key among the cluster's extensions.
pub(crate) const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Service name under which a picker reports its health (upstream's name).
const PICKER_SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";

/// The cluster with its endpoints in a watched file.
pub(super) fn discovered(cluster: &Cluster, eds_file: &Path) -> Value {
    let watched = eds_file.parent().unwrap_or(eds_file);
    let mut value = common(cluster, "EDS");
    value["eds_cluster_config"] = json!({
        "eds_config": {
            "path_config_source": { "path": eds_file, "watched_directory": { "path": watched } },
            "resource_api_version": "V3",
        },
    });
    value
}

/// The cluster with its endpoints inline.
pub(super) fn fixed(cluster: &Cluster, load_assignment: Value) -> Value {
    let mut value = common(cluster, "STATIC");
    value["load_assignment"] = load_assignment;
    value
}

pub(super) fn load_assignment(cluster_name: &str, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> =
        endpoints.iter().map(|endpoint| json!({ "endpoint": { "address": address(*endpoint) } })).collect();
    json!({ "cluster_name": cluster_name, "endpoints": [{ "lb_endpoints": endpoints }] })
}

/// Most frames that wait to be written to a picker. Envoy makes one frame of each that a client sends, and above this
/// bound it ends the connection, and with it the requests of all clients. Its default of 10,000 is a sixth of what one
/// client can send at a time.
const MAX_FRAMES: u32 = 1_000_000;

/// The cluster of a picker on this machine.
pub(super) fn picker(pool: &ObjectKey, picker: &PickerBinding) -> Value {
    let PickerBinding { addresses, tls, maker } = picker;
    let name = picker_cluster(pool);
    let mut value = picker_at(&name, "STATIC", load_assignment(&name, addresses), *maker);
    match tls {
        Some(PickerTls::Authority { server_name, trusted_ca }) => {
            value["transport_socket"] = tls_to(server_name, json!({ "filename": trusted_ca }));
        }
        Some(PickerTls::Any) => value["transport_socket"] = tls_to_any(),
        None => {}
    }
    value
}

/// The cluster of a picker whose addresses `load_assignment` says, without TLS.
pub(crate) fn picker_at(name: &str, kind: &str, load_assignment: Value, maker: Maker) -> Value {
    // A picker that shuts down reports it first, so one failed answer is enough; a single late check means nothing.
    // If all pickers are down, all are tried, so a picker that is alone is never given up.
    let reported_health = || {
        json!([{
            "timeout": "1s",
            "interval": "1s",
            "no_traffic_interval": "1s",
            "unhealthy_interval": "0.250s",
            "unhealthy_threshold": 2,
            "healthy_threshold": 1,
            "grpc_health_check": { "service_name": PICKER_SERVICE },
        }])
    };
    let (health_checks, keepalive) = match maker {
        // The only guard against a hung picker: a streamed body has no message timeout.
        Maker::Warmpath => (reported_health(), json!({ "interval": "5s", "timeout": "2s" })),
        // Its health may be served elsewhere. A server of Go's gRPC ends a connection, and all requests on it, after four
        // pings between which it has written nothing, if they come within five minutes of each other. So there is one only
        // before a new request.
        Maker::Other(_) => (json!([]), json!({ "connection_idle_interval": "5s", "timeout": "2s" })),
    };
    json!({
        "name": name,
        "type": kind,
        "connect_timeout": "1s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": MAX_REQUESTS,
            "max_pending_requests": MAX_REQUESTS,
            "max_requests": MAX_REQUESTS,
            "max_retries": MAX_REQUESTS,
        }] },
        "typed_extension_protocol_options": protocol_options(http2(json!({
            "connection_keepalive": keepalive,
            "max_outbound_frames": MAX_FRAMES,
        }))),
        "health_checks": health_checks,
        "load_balancing_policy": picker_that_picked(),
        "load_assignment": load_assignment,
    })
}

/// TLS that accepts only a certificate for `server_name`, signed by one of the authorities in `trusted_ca`, a data
/// source: whoever answers as the picker sees every prompt.
pub(crate) fn tls_to(server_name: &str, trusted_ca: Value) -> Value {
    let validation = json!({
        "trusted_ca": trusted_ca,
        "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": server_name } }],
    });
    extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({
            "sni": server_name,
            "common_tls_context": { "alpn_protocols": ["h2"], "validation_context": validation },
        }),
    )
}

/// TLS that accepts any certificate.
pub(crate) fn tls_to_any() -> Value {
    extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({ "common_tls_context": { "alpn_protocols": ["h2"] } }),
    )
}

fn common(cluster: &Cluster, kind: &str) -> Value {
    let Cluster { name, backend, traffic } = cluster;
    let (policy, protocol) = match backend {
        Backend::Service { .. } => (balancer(traffic.load_balancer.as_ref()), AppProtocol::Http),
        Backend::Pool { app_protocol, .. } => (override_host(), *app_protocol),
    };
    let mut value = json!({
        "name": name,
        "type": kind,
        "connect_timeout": traffic.timeout.tcp.connect_timeout.map_or_else(|| CONNECT_TIMEOUT.to_owned(), duration),
        "circuit_breakers": circuit_breakers(&traffic.circuit_breaker),
        "load_balancing_policy": policy,
    });
    if let Some(limit) = traffic.connection.buffer_limit {
        value["per_connection_buffer_limit_bytes"] = json!(limit);
    }
    let connections = connection_options(traffic);
    let mut options = match protocol {
        AppProtocol::Http if connections.is_empty() => return value,
        AppProtocol::Http => json!({ "explicit_http_config": { "http_protocol_options": {} } }),
        AppProtocol::H2c => http2(json!({})),
    };
    if !connections.is_empty() {
        options["common_http_protocol_options"] = Value::Object(connections);
    }
    value["typed_extension_protocol_options"] = protocol_options(options);
    value
}

/// Options of the cluster's connections, whatever their protocol.
fn connection_options(traffic: &Traffic) -> Map<String, Value> {
    let HttpTimeout { connection_idle_timeout, max_connection_duration, .. } = traffic.timeout.http;
    let fields = [
        ("idle_timeout", connection_idle_timeout.map(|idle| json!(duration(idle)))),
        ("max_connection_duration", max_connection_duration.map(|longest| json!(duration(longest)))),
        (
            "max_requests_per_connection",
            traffic.circuit_breaker.max_requests_per_connection.map(|most| json!(most)),
        ),
    ];
    fields.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))).collect()
}

/// Bounds of a cluster of pods: those of a policy before the usual ones.
fn circuit_breakers(asked: &CircuitBreaker) -> Value {
    let mut bounds = thresholds();
    for (field, bound) in [
        ("max_connections", asked.max_connections),
        ("max_pending_requests", asked.max_pending_requests),
        ("max_requests", asked.max_parallel_requests),
        ("max_retries", asked.max_parallel_retries),
    ] {
        if let Some(bound) = bound {
            bounds[field] = json!(bound);
        }
    }
    if let Some(RetryBudget { percent, min_retry_concurrency }) = &asked.retry_budget {
        let Fraction { numerator, denominator } = percent;
        let percent = 100.0 * f64::from(*numerator) / f64::from(denominator.unwrap_or(100).max(1));
        bounds["retry_budget"] = json!({ "budget_percent": { "value": percent } });
        if let Some(least) = min_retry_concurrency {
            bounds["retry_budget"]["min_retry_concurrency"] = json!(least);
        }
    }
    let mut breakers = json!({ "thresholds": [bounds] });
    if let Some(most) = asked.per_endpoint.max_connections {
        breakers["per_host_thresholds"] = json!([{ "max_connections": most }]);
    }
    breakers
}

/// The balancer that a policy asks for. One that only a cluster has is least request, as without a policy.
fn balancer(asked: Option<&LoadBalancer>) -> Value {
    let Some(LoadBalancer { kind, consistent_hash }) = asked else { return least_request() };
    let (name, message, config) = match kind {
        LoadBalancerKind::LeastRequest
        | LoadBalancerKind::BackendUtilization
        | LoadBalancerKind::DynamicModule => return least_request(),
        LoadBalancerKind::Random => ("random", "random.v3.Random", json!({})),
        LoadBalancerKind::RoundRobin => ("round_robin", "round_robin.v3.RoundRobin", json!({})),
        LoadBalancerKind::ConsistentHash => {
            let table_size = consistent_hash.as_ref().and_then(|hash| hash.table_size);
            let config = table_size.map_or_else(|| json!({}), |size| json!({ "table_size": size }));
            ("maglev", "maglev.v3.Maglev", config)
        }
    };
    let policy = extension(
        &format!("envoy.load_balancing_policies.{name}"),
        &format!("envoy.extensions.load_balancing_policies.{message}"),
        config,
    );
    json!({ "policies": [{ "typed_extension_config": policy }] })
}

/// Protocol options of a cluster whose endpoints speak HTTP/2 without being asked.
pub(crate) fn http2(options: Value) -> Value {
    json!({ "explicit_http_config": { "http2_protocol_options": options } })
}

/// The cluster's extension with its protocol options.
pub(crate) fn protocol_options(options: Value) -> Value {
    json!({ PROTOCOL_OPTIONS: typed(PROTOCOL_OPTIONS, options) })
}

/// Bounds of a cluster of pods.
pub(crate) fn thresholds() -> Value {
    json!({
        "max_connections": MAX_REQUESTS,
        "max_pending_requests": MAX_REQUESTS,
        "max_requests": MAX_REQUESTS,
        "max_retries": MAX_RETRIES,
    })
}

fn least_request() -> Value {
    let policy = extension(
        "envoy.load_balancing_policies.least_request",
        "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
        json!({}),
    );
    json!({ "policies": [{ "typed_extension_config": policy }] })
}

/// Balances by the picker's choice in the dynamic metadata, which no client can write; without one, by least request.
pub(crate) fn override_host() -> Value {
    let policy = extension(
        "envoy.load_balancing_policies.override_host",
        "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
        json!({
            "override_host_sources": [{ "metadata": metadata_key(keys::DESTINATION_ENDPOINT) }],
            "selected_host_key": metadata_key(keys::DESTINATION_ENDPOINT_SERVED),
            "fallback_policy": least_request(),
        }),
    );
    json!({ "policies": [{ "typed_extension_config": policy }] })
}

/// Sends the report of a response to the picker that has picked, and requests to the pickers in turn.
fn picker_that_picked() -> Value {
    let in_turn = extension(
        "envoy.load_balancing_policies.round_robin",
        "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin",
        json!({}),
    );
    let policy = extension(
        "envoy.load_balancing_policies.override_host",
        "envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost",
        json!({
            "override_host_sources": [{ "header": keys::PICKER }],
            "fallback_policy": { "policies": [{ "typed_extension_config": in_turn }] },
        }),
    );
    json!({ "policies": [{ "typed_extension_config": policy }] })
}

fn metadata_key(key: &str) -> Value {
    json!({ "key": keys::LB_METADATA, "path": [{ "key": key }] })
}
