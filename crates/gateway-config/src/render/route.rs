//! Virtual hosts and routes: what a request must be, what is changed of it, and where it goes.

use std::time::Duration;

use inference_api::gateway::{
    Header, HeaderModifier, PathMatch, PathMatchKind, RequestRedirect, ValueMatch, ValueMatchKind,
};
use inference_api::object::ObjectKey;
use inference_api::traffic::{
    BackOff, ConsistentHash, HashCookie, HashKind, HttpTimeout, LoadBalancer, LoadBalancerKind, Named,
    PerRetry, Retry,
};
use serde_json::{Map, Value, json};

use crate::attachment::{Attachment, Share};
use crate::plan::{
    ANY_HOST, Backend, Changes, Listener, Matcher, PathChange, Plan, Route, RouteAction, Weighted,
};
use crate::render::filters::{body_reports, disabled, filter_names, previous_hosts};
use crate::render::{duration, observer_filter, typed};

/// Shortest idle timeout that Envoy Gateway gives a route with a request timeout.
const MIN_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Conditions and number of retries that do not name their own (Envoy Gateway).
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";
const NUM_RETRIES: u32 = 2;
/// Name of the cluster that does not exist, as Envoy Gateway calls it.
const NO_CLUSTER: &str = "invalid-backend-cluster";

/// Facts that the routes of one listener share.
struct Context<'a> {
    plan: &'a Plan,
    pools: &'a [Attachment<'a>],
    /// True if routes are chosen again when the body is known.
    reads_model: bool,
    /// True if the listener has an idle timeout of its own.
    has_stream_idle_timeout: bool,
}

pub(super) fn virtual_hosts(listener: &Listener, plan: &Plan, pools: &[Attachment<'_>]) -> Vec<Value> {
    let has_stream_idle_timeout = listener.client.timeout.http.stream_idle_timeout.is_some();
    let context = Context { plan, pools, reads_model: listener.reads_model(), has_stream_idle_timeout };
    let mut hosts: Vec<&str> = Vec::new();
    for route in &listener.routes {
        if !hosts.contains(&route.host.as_str()) {
            hosts.push(&route.host);
        }
    }
    if context.reads_model && !hosts.contains(&ANY_HOST) {
        hosts.push(ANY_HOST);
    }
    let render = |host: &&str| {
        let own = listener.routes.iter().filter(|route| route.host == **host);
        let mut routes: Vec<Value> = own.flat_map(|planned| context.routes(planned)).collect();
        routes.extend(context.no_route());
        json!({
            "name": format!("{}/{}", listener.xds_name(), host.replace('.', "_")),
            "domains": [host],
            "routes": routes,
        })
    };
    hosts.iter().map(render).collect()
}

impl Context<'_> {
    /// Envoy's routes of `planned`: if bodies of responses are reported for a share of the requests, a route with this
    /// share comes first.
    fn routes(&self, planned: &Route) -> Vec<Value> {
        let plain = self.route(planned);
        let RouteAction::Forward(targets) = &planned.action else { return vec![plain] };
        let mut reporting = plain.clone();
        let share = match reporting.pointer_mut("/route/weighted_clusters/clusters") {
            Some(Value::Array(clusters)) => {
                let shares = targets.iter().zip(clusters);
                // Shares do not differ: the operator names one for all pools.
                shares.fold(None, |share, (target, cluster)| self.report_bodies(target, cluster).or(share))
            }
            _ => targets.first().and_then(|target| self.report_bodies(target, &mut reporting)),
        };
        let Some(share) = share else { return vec![plain] };
        reporting["match"]["runtime_fraction"] = fraction(share);
        vec![reporting, plain]
    }

    /// Makes a route, or one of its weighted clusters, report the bodies of responses if `target` is a pool of which a
    /// share is reported. Returns the share.
    fn report_bodies(&self, target: &Weighted, value: &mut Value) -> Option<Share> {
        let attachment = self.attachment(target.cluster_idx?)?;
        let (share, reports) = body_reports(attachment)?;
        value["typed_per_filter_config"][observer_filter(attachment.pool)] = reports;
        Some(share)
    }

    /// The route of requests that no other takes: without it, the filters of all pools would see them.
    fn no_route(&self) -> Option<Value> {
        let answer = json!({
            "name": "no-route",
            "match": { "prefix": "/" },
            "direct_response": { "status": 404 },
            "typed_per_filter_config": self.filter_config(None),
        });
        self.reads_model.then_some(answer)
    }

    fn attachment(&self, cluster_idx: usize) -> Option<&Attachment<'_>> {
        let pool = pool_of(cluster_idx, self.plan)?;
        self.pools.iter().find(|attachment| attachment.pool == pool)
    }

    /// The filters of `own`, and not those of other pools.
    fn filter_config(&self, own: Option<&Attachment<'_>>) -> Map<String, Value> {
        let mut config = Map::new();
        if self.reads_model {
            config.extend(self.pools.iter().flat_map(|attachment| disabled(attachment, own)));
        } else if let Some(own) = own {
            config.extend(filter_names(own).into_iter().map(|name| (name, enabled())));
        }
        config
    }

    fn route(&self, route: &Route) -> Value {
        let mut value = json!({ "name": route.name, "match": matcher(&route.matcher) });
        let own = match &route.action {
            RouteAction::Forward(targets) => {
                let single = single(targets).and_then(|cluster_idx| self.attachment(cluster_idx));
                // Each of several weighted clusters has its own: it cannot take back what its route disables.
                let config = if targets.len() > 1 { Map::new() } else { self.filter_config(single) };
                if !config.is_empty() {
                    value["typed_per_filter_config"] = Value::Object(config);
                }
                single
            }
            RouteAction::Redirect(_) | RouteAction::Fixed(_) => {
                let config = self.filter_config(None);
                if !config.is_empty() {
                    value["typed_per_filter_config"] = Value::Object(config);
                }
                None
            }
        };
        headers(&mut value, ("request", &route.request_headers));
        headers(&mut value, ("response", &route.response_headers));
        match &route.action {
            RouteAction::Forward(targets) => value["route"] = self.forward(route, targets, own.is_some()),
            RouteAction::Redirect(redirect_to) => value["redirect"] = redirect(route, redirect_to),
            RouteAction::Fixed(status) => value["direct_response"] = json!({ "status": status }),
        }
        value
    }

    fn forward(&self, route: &Route, targets: &[Weighted], is_pool: bool) -> Value {
        let mut action = Map::new();
        let name = |target: &Weighted| match target.cluster_idx {
            Some(cluster_idx) => self.plan.clusters[cluster_idx].name.as_str(),
            None => NO_CLUSTER,
        };
        let mut is_pool = is_pool;
        match targets {
            [target] if target.changes == Changes::default() => {
                action.insert("cluster".to_owned(), json!(name(target)));
            }
            targets => {
                let clusters: Vec<Value> = targets
                    .iter()
                    .map(|target| {
                        let mut cluster = json!({ "name": name(target), "weight": target.weight });
                        let attachment = target.cluster_idx.and_then(|idx| self.attachment(idx));
                        is_pool |= attachment.is_some();
                        let config = self.filter_config(attachment);
                        if !config.is_empty() {
                            cluster["typed_per_filter_config"] = Value::Object(config);
                        }
                        let Changes { request_headers, response_headers, host_rewrite } = &target.changes;
                        headers(&mut cluster, ("request", request_headers));
                        headers(&mut cluster, ("response", response_headers));
                        if let Some(host) = host_rewrite {
                            cluster["host_rewrite_literal"] = json!(host);
                        }
                        cluster
                    })
                    .collect();
                action.insert("weighted_clusters".to_owned(), json!({ "clusters": clusters }));
                action.insert("cluster_not_found_response_code".to_owned(), json!("INTERNAL_SERVER_ERROR"));
            }
        }
        action.extend(timeouts(&route.traffic.timeout.http, self.has_stream_idle_timeout));
        action.insert("upgrade_configs".to_owned(), json!([{ "upgrade_type": "websocket" }]));
        let asked = route.traffic.retry.as_ref().map(retries);
        if let Some(policy) = asked.or_else(|| is_pool.then(retry_policy)) {
            action.insert("retry_policy".to_owned(), policy);
        }
        let hashes = route.traffic.load_balancer.as_ref().map(hashes).unwrap_or_default();
        if !hashes.is_empty() {
            if let Some(clusters) = action.get_mut("weighted_clusters") {
                clusters["use_hash_policy"] = json!(true);
            }
            action.insert("hash_policy".to_owned(), json!(hashes));
        }
        if let Some(host) = &route.host_rewrite {
            action.insert("host_rewrite_literal".to_owned(), json!(host));
        }
        action.extend(rewrite(route));
        if !route.mirrors.is_empty() {
            let mirrors: Vec<Value> = route
                .mirrors
                .iter()
                .map(|mirror| {
                    let share = json!({ "numerator": mirror.per_million, "denominator": "MILLION" });
                    json!({
                        "cluster": self.plan.clusters[mirror.cluster_idx].name,
                        "runtime_fraction": { "default_value": share },
                    })
                })
                .collect();
            action.insert("request_mirror_policies".to_owned(), json!(mirrors));
        }
        Value::Object(action)
    }
}

/// Timeouts of a route. The idle timeout is never shorter than the request timeout, unless a policy says so.
fn timeouts(asked: &HttpTimeout, has_stream_idle_timeout: bool) -> Vec<(String, Value)> {
    let HttpTimeout { request_timeout, stream_idle_timeout, max_stream_duration, .. } = asked;
    let of_request = |request: Duration| match request.is_zero() {
        true => request,
        false => request.max(MIN_IDLE_TIMEOUT),
    };
    let usual_idle = request_timeout.filter(|_| !has_stream_idle_timeout).map(of_request);
    let longest = max_stream_duration.map(|longest| json!({ "max_stream_duration": duration(longest) }));
    let fields = [
        ("timeout", request_timeout.map(|request| json!(duration(request)))),
        ("idle_timeout", stream_idle_timeout.or(usual_idle).map(|idle| json!(duration(idle)))),
        ("max_stream_duration", longest),
    ];
    fields.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))).collect()
}

/// Retries that a rule or a policy asks for, with Envoy Gateway's defaults.
fn retries(asked: &Retry) -> Value {
    let Retry { num_retries, retry_on, per_retry } = asked;
    let mut policy = retry_policy();
    policy["num_retries"] = json!(num_retries.unwrap_or(NUM_RETRIES));
    let triggers = retry_on.as_ref().map(|retry_on| retry_on.triggers.as_slice()).unwrap_or_default();
    let triggers: Vec<Value> = triggers.iter().map(|trigger| json!(trigger)).collect();
    let triggers: Vec<&str> = triggers.iter().filter_map(Value::as_str).collect();
    policy["retry_on"] = if triggers.is_empty() { json!(RETRY_ON) } else { json!(triggers.join(",")) };
    policy["retriable_status_codes"] =
        retry_on.as_ref().map_or_else(|| json!([503]), |retry_on| json!(retry_on.http_status_codes));
    let PerRetry { timeout, back_off: BackOff { base_interval, max_interval } } = per_retry;
    if let Some(timeout) = timeout {
        policy["per_try_timeout"] = json!(duration(*timeout));
    }
    for (field, interval) in [("base_interval", base_interval), ("max_interval", max_interval)] {
        if let Some(interval) = interval {
            policy["retry_back_off"][field] = json!(duration(*interval));
        }
    }
    policy
}

/// Parts of a request by which a consistent hash chooses.
fn hashes(asked: &LoadBalancer) -> Vec<Value> {
    let Some(hash) =
        asked.consistent_hash.as_ref().filter(|_| asked.kind == LoadBalancerKind::ConsistentHash)
    else {
        return Vec::new();
    };
    let ConsistentHash { kind, header, headers, cookie, query_params, table_size: _ } = hash;
    let of_header = |Named { name }: &Named| json!({ "header": { "header_name": name } });
    match kind {
        HashKind::SourceIP => vec![json!({ "connection_properties": { "source_ip": true } })],
        HashKind::Header => header.iter().map(of_header).collect(),
        HashKind::Headers => headers.iter().map(of_header).collect(),
        HashKind::QueryParams => {
            query_params.iter().map(|Named { name }| json!({ "query_parameter": { "name": name } })).collect()
        }
        HashKind::Cookie => cookie
            .iter()
            .map(|HashCookie { name, ttl }| match ttl {
                Some(ttl) => json!({ "cookie": { "name": name, "ttl": duration(*ttl) } }),
                None => json!({ "cookie": { "name": name } }),
            })
            .collect(),
    }
}

fn redirect(route: &Route, to: &RequestRedirect) -> Value {
    let RequestRedirect { scheme, hostname, path: _, port, status_code } = to;
    let mut action = match &route.path_rewrite {
        Some(PathChange::Full(path)) => Map::from_iter([("path_redirect".to_owned(), json!(path))]),
        Some(PathChange::Prefix(_)) | None => rewrite(route),
    };
    for (field, value) in [("scheme_redirect", scheme), ("host_redirect", hostname)] {
        if let Some(value) = value {
            action.insert(field.to_owned(), json!(value));
        }
    }
    if let Some(port) = port {
        action.insert("port_redirect".to_owned(), json!(port));
    }
    let code = match status_code {
        Some(301) => "MOVED_PERMANENTLY",
        Some(303) => "SEE_OTHER",
        Some(307) => "TEMPORARY_REDIRECT",
        Some(308) => "PERMANENT_REDIRECT",
        Some(_) | None => "FOUND",
    };
    action.insert("response_code".to_owned(), json!(code));
    Value::Object(action)
}

fn rewrite(route: &Route) -> Map<String, Value> {
    let regex = |pattern: String, substitution: &str| json!({ "pattern": { "regex": pattern }, "substitution": substitution });
    let mut fields = Map::new();
    match &route.path_rewrite {
        None => {}
        Some(PathChange::Full(path)) => {
            fields.insert("regex_rewrite".to_owned(), regex("^/.*$".to_owned(), path));
        }
        Some(PathChange::Prefix(replacement)) => {
            let replacement = replacement.trim_end_matches('/');
            match (route.matcher.path.value.trim_end_matches('/'), replacement) {
                ("", replacement) => {
                    fields.insert("prefix_rewrite".to_owned(), json!(format!("{replacement}/")));
                }
                // A prefix that goes away must leave a path that begins with one slash.
                (prefix, "") => {
                    fields.insert("regex_rewrite".to_owned(), regex(format!("^{}/*", quoted(prefix)), "/"));
                }
                (_, replacement) => {
                    fields.insert("prefix_rewrite".to_owned(), json!(replacement));
                }
            }
        }
    }
    fields
}

/// A text as a regular expression that matches it alone.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for found in text.chars() {
        if !found.is_ascii_alphanumeric() && found.is_ascii() && found != '/' && found != '_' {
            quoted.push('\\');
        }
        quoted.push(found);
    }
    quoted
}

/// Adds changes of the headers of `side`, requests or responses.
fn headers(value: &mut Value, (side, modifier): (&str, &HeaderModifier)) {
    let HeaderModifier { set, add, remove } = modifier;
    let change = |Header { name, value }: &Header, action: &str| {
        // A percent sign would begin one of Envoy's own variables.
        json!({ "header": { "key": name, "value": value.replace('%', "%%") }, "append_action": action })
    };
    let mut changes: Vec<Value> =
        set.iter().map(|header| change(header, "OVERWRITE_IF_EXISTS_OR_ADD")).collect();
    changes.extend(add.iter().map(|header| change(header, "APPEND_IF_EXISTS_OR_ADD")));
    if !changes.is_empty() {
        value[format!("{side}_headers_to_add")] = json!(changes);
    }
    if !remove.is_empty() {
        value[format!("{side}_headers_to_remove")] = json!(remove);
    }
}

fn matcher(matcher: &Matcher) -> Value {
    let Matcher { path, headers, query_params, method } = matcher;
    let mut value = path_match(path);
    let string_match = |condition: &ValueMatch| match condition.kind {
        ValueMatchKind::Exact => json!({ "exact": condition.value }),
        ValueMatchKind::RegularExpression => json!({ "safe_regex": { "regex": condition.value } }),
    };
    let header = |condition: &ValueMatch| json!({ "name": condition.name.trim(), "string_match": string_match(condition) });
    let mut conditions: Vec<Value> = headers.iter().map(header).collect();
    conditions.extend(
        method.iter().map(|method| json!({ "name": ":method", "string_match": { "exact": method } })),
    );
    if !conditions.is_empty() {
        value["headers"] = json!(conditions);
    }
    if !query_params.is_empty() {
        value["query_parameters"] = query_params.iter().map(header).collect();
    }
    value
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

/// The only target's cluster, if nothing is changed for it alone.
fn single(targets: &[Weighted]) -> Option<usize> {
    match targets {
        [Weighted { cluster_idx, weight: _, changes }] if *changes == Changes::default() => *cluster_idx,
        _ => None,
    }
}

pub(super) fn pool_of(cluster_idx: usize, plan: &Plan) -> Option<&ObjectKey> {
    match &plan.clusters[cluster_idx].backend {
        Backend::Pool { key, .. } => Some(key),
        Backend::Service { .. } => None,
    }
}

/// The condition that a share of the requests meets.
pub(crate) fn fraction(share: Share) -> Value {
    json!({ "default_value": { "numerator": share.per_million(), "denominator": "MILLION" } })
}

/// Enables for a route a filter that is disabled for the listener.
pub(crate) fn enabled() -> Value {
    typed("envoy.config.route.v3.FilterConfig", json!({ "config": {} }))
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
