//! Envoy Gateway's policies: what each setting becomes, and which of several policies counts.

use gateway_config::plan::Plan;
use gateway_config::render::Rendered;
use inference_api::remark::Remark;
use serde_json::{Value, json};

use crate::fixtures::{bindings, plan};
use crate::routing::{GATEWAYS, manager, pool, route, routes, to_pool};

const RULES: &str = "rules: [{name: n, backendRefs: [{name: s, port: 8000}]}]";
const TO_GATEWAY: &str = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g}]";
const TO_ROUTE: &str = "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}]";
const TO_RULE: &str =
    "targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: n}]";
const TO_LISTENER: &str =
    "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: g, sectionName: http}]";

fn policy(kind: &str, (name, more): (&str, &str), spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.envoyproxy.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}{more}}}\nspec: {{{spec}}}\n"
    )
}

fn backend_policy(name: &str, spec: &str) -> String {
    policy("BackendTrafficPolicy", (name, ""), spec)
}

/// A route to a Service, and policies.
fn with(policies: &[String]) -> Plan {
    plan(&[GATEWAYS, &route(RULES), &policies.concat()].concat()).unwrap()
}

fn action(plan: &Plan) -> Value {
    routes(plan)[0]["route"].clone()
}

fn cluster(plan: &Plan) -> Value {
    let rendered = Rendered::new(plan, &bindings(plan)).unwrap().static_equivalent;
    rendered["static_resources"]["clusters"][0].clone()
}

/// The plan with one policy of these settings on the Gateway.
fn set(settings: &str) -> Plan {
    with(&[backend_policy("p", &format!("{TO_GATEWAY}, {settings}"))])
}

#[test]
fn timeouts_are_the_routes_and_the_connections() {
    let plan = set(
        "timeout: {tcp: {connectTimeout: 3s}, http: {requestTimeout: 2h, streamIdleTimeout: 5s, maxStreamDuration: 0s, \
         connectionIdleTimeout: 7s, maxConnectionDuration: 8s}}",
    );
    let route = action(&plan);
    assert_eq!((&route["timeout"], &route["idle_timeout"]), (&json!("7200s"), &json!("5s")));
    assert_eq!(route["max_stream_duration"]["max_stream_duration"], "0s");
    let cluster = cluster(&plan);
    assert_eq!(cluster["connect_timeout"], "3s");
    let options = cluster["typed_extension_protocol_options"].as_object().unwrap().values().next().unwrap();
    assert_eq!(
        options["common_http_protocol_options"],
        json!({ "idle_timeout": "7s", "max_connection_duration": "8s" })
    );
    let control = with(&[]);
    let route = action(&control);
    assert!(route.get("timeout").is_none() && route.get("idle_timeout").is_none(), "{route}");
    let cluster = self::cluster(&control);
    assert_eq!(cluster["connect_timeout"], "10s");
    assert!(cluster.get("typed_extension_protocol_options").is_none());
    assert_eq!(
        action(&set("timeout: {http: {requestTimeout: 2h}}"))["idle_timeout"],
        "7200s",
        "as the request"
    );
}

#[test]
fn retries_have_envoy_gateways_defaults() {
    let retry = |settings: &str| action(&set(settings))["retry_policy"].clone();
    let default = retry("retry: {}");
    assert_eq!(default["num_retries"], 2);
    assert_eq!(default["retriable_status_codes"], json!([503]));
    assert_eq!(
        default["retry_on"],
        "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
    );
    let asked = retry(
        "retry: {numRetries: 5, retryOn: {triggers: [5xx, retriable-4xx, gateway-error], httpStatusCodes: [502]}, perRetry: \
         {timeout: 250ms, backOff: {baseInterval: 100ms, maxInterval: 10s}}}",
    );
    assert_eq!((&asked["num_retries"], &asked["per_try_timeout"]), (&json!(5), &json!("0.250s")));
    assert_eq!(asked["retry_on"], "5xx,retriable-4xx,gateway-error");
    assert_eq!(asked["retriable_status_codes"], json!([502]));
    assert_eq!(asked["retry_back_off"], json!({ "base_interval": "0.100s", "max_interval": "10s" }));
    assert!(action(&with(&[])).get("retry_policy").is_none());
}

#[test]
fn circuit_breakers_bound_a_cluster() {
    let plan = set(
        "circuitBreaker: {maxConnections: 1, maxPendingRequests: 2, maxParallelRequests: 3, maxParallelRetries: 4, \
         maxRequestsPerConnection: 5, perEndpoint: {maxConnections: 6}, retryBudget: {percent: {numerator: 1, denominator: 4}, \
         minRetryConcurrency: 7}}",
    );
    let found = cluster(&plan);
    assert_eq!(
        found["circuit_breakers"],
        json!({
            "thresholds": [{
                "max_connections": 1, "max_pending_requests": 2, "max_requests": 3, "max_retries": 4,
                "retry_budget": { "budget_percent": { "value": 25.0 }, "min_retry_concurrency": 7 },
            }],
            "per_host_thresholds": [{ "max_connections": 6 }],
        })
    );
    let options = found["typed_extension_protocol_options"].as_object().unwrap().values().next().unwrap();
    assert_eq!(options["common_http_protocol_options"]["max_requests_per_connection"], 5);
    assert_eq!(cluster(&with(&[]))["circuit_breakers"]["thresholds"][0]["max_connections"], 40_000);
    assert_eq!(cluster(&set("connection: {bufferLimit: 1Mi}"))["per_connection_buffer_limit_bytes"], 1 << 20);
}

#[test]
fn a_load_balancer_is_a_services() {
    let balancer = |settings: &str| {
        let plan = set(&format!("loadBalancer: {settings}"));
        let policy =
            &cluster(&plan)["load_balancing_policy"]["policies"][0]["typed_extension_config"]["name"];
        let name = policy.as_str().unwrap().rsplit('.').next().unwrap().to_owned();
        (name, action(&plan).get("hash_policy").cloned())
    };
    let without_hash = |name: &str| (name.to_owned(), None);
    assert_eq!(balancer("{type: RoundRobin}"), without_hash("round_robin"));
    assert_eq!(balancer("{type: Random}"), without_hash("random"));
    assert_eq!(balancer("{type: LeastRequest}"), without_hash("least_request"));
    assert_eq!(balancer("{type: BackendUtilization}"), without_hash("least_request"));
    for (settings, expected) in [
        ("type: SourceIP", json!([{ "connection_properties": { "source_ip": true } }])),
        ("type: Header, header: {name: a}", json!([{ "header": { "header_name": "a" } }])),
        (
            "type: Headers, headers: [{name: a}, {name: b}]",
            json!([{ "header": { "header_name": "a" } }, { "header": { "header_name": "b" } }]),
        ),
        ("type: Cookie, cookie: {name: c, ttl: 60s}", json!([{ "cookie": { "name": "c", "ttl": "60s" } }])),
        ("type: QueryParams, queryParams: [{name: q}]", json!([{ "query_parameter": { "name": "q" } }])),
    ] {
        let settings = format!("{{type: ConsistentHash, consistentHash: {{{settings}}}}}");
        assert_eq!(balancer(&settings), ("maglev".to_owned(), Some(expected)), "{settings}");
    }
}

#[test]
fn a_pools_picker_chooses_whatever_a_policy_says() {
    let spec = format!("rules: [{{backendRefs: [{}]}}]", to_pool("a"));
    let policy = backend_policy("p", &format!("{TO_GATEWAY}, loadBalancer: {{type: RoundRobin}}"));
    let plan = plan(&[GATEWAYS, &pool("a"), &route(&spec), &policy].concat()).unwrap();
    let name = &cluster(&plan)["load_balancing_policy"]["policies"][0]["typed_extension_config"]["name"];
    assert_eq!(*name, "envoy.load_balancing_policies.override_host");
    let [Remark { field, on_a_cluster, .. }] = plan.remarks.as_slice() else { panic!("{:?}", plan.remarks) };
    assert_eq!(field, "spec.rules[0].backendRefs");
    assert!(on_a_cluster.contains("picker of InferencePool default/a"), "{on_a_cluster}");
}

#[test]
fn the_nearest_policy_counts_as_a_whole() {
    let on =
        |target: &str, name: &str, settings: &str| backend_policy(name, &format!("{target}, {settings}"));
    let request = |seconds: u32| format!("timeout: {{http: {{requestTimeout: {seconds}s}}}}");
    let all = [
        on(TO_GATEWAY, "gateway", &format!("{}, retry: {{}}", request(1))),
        on(TO_LISTENER, "listener", &request(2)),
        on(TO_ROUTE, "route", &request(3)),
        on(TO_RULE, "rule", &request(4)),
    ];
    for n_policies in 1..=4 {
        let route = action(&with(&all[..n_policies]));
        assert_eq!(route["timeout"], format!("{n_policies}s"));
        assert_eq!(route.get("retry_policy").is_some(), n_policies == 1, "the Gateway's is replaced");
    }
    let merged =
        [all[0].clone(), on(TO_ROUTE, "route", &format!("{}, mergeType: StrategicMerge", request(3)))];
    let route = action(&with(&merged));
    assert_eq!(route["timeout"], "3s");
    assert!(route.get("retry_policy").is_some(), "the Gateway's is kept");
    let own = RULES.replace("name: n,", "name: n, timeouts: {request: 9s}, retry: {attempts: 7},");
    let plan = plan(&[GATEWAYS, &self::route(&own), &all[3]].concat()).unwrap();
    let action = action(&plan);
    assert_eq!((&action["timeout"], &action["retry_policy"]["num_retries"]), (&json!("9s"), &json!(7)));
}

#[test]
fn with_retries_the_time_for_a_backend_is_that_of_a_try() {
    let rule = |more: &str| {
        let timeouts = format!("name: n, timeouts: {{request: 9s, backendRequest: 2s}}, {more}");
        action(&plan(&[GATEWAYS, &route(&RULES.replace("name: n,", &timeouts))].concat()).unwrap())
    };
    let tried = rule("retry: {attempts: 3},");
    assert_eq!((&tried["timeout"], &tried["retry_policy"]["per_try_timeout"]), (&json!("9s"), &json!("2s")));
    assert_eq!(rule("")["timeout"], "2s");
}

#[test]
fn the_oldest_of_two_policies_wins() {
    let aged = |name: &str, year: u32, seconds: u32| {
        policy(
            "BackendTrafficPolicy",
            (name, &format!(", creationTimestamp: '{year}-01-01T00:00:00Z'")),
            &format!("{TO_GATEWAY}, timeout: {{http: {{requestTimeout: {seconds}s}}}}"),
        )
    };
    let plan = with(&[aged("a", 2026, 1), aged("b", 2025, 2)]);
    assert_eq!(action(&plan)["timeout"], "2s");
    assert_eq!(plan.remarks[0].key.name, "a");
    assert!(plan.remarks[0].on_a_cluster.contains("default/b"), "{:?}", plan.remarks);
    assert_eq!(action(&with(&[aged("a", 2025, 1), aged("b", 2026, 2)]))["timeout"], "1s");
}

#[test]
fn selectors_target_by_label() {
    let gateways = GATEWAYS.replace("metadata: { name: g }", "metadata: { name: g, labels: { tier: a } }");
    let timeout = |selector: &str| {
        let spec = format!("targetSelectors: [{selector}], timeout: {{http: {{requestTimeout: 1s}}}}");
        let plan = plan(&[gateways.as_str(), &route(RULES), &backend_policy("p", &spec)].concat()).unwrap();
        assert_eq!(plan.remarks.is_empty(), action(&plan).get("timeout").is_some(), "{:?}", plan.remarks);
        action(&plan).get("timeout").is_some()
    };
    assert!(timeout("{kind: Gateway, matchLabels: {tier: a}}"));
    assert!(timeout("{kind: HTTPRoute}"));
    assert!(timeout("{kind: Gateway, matchExpressions: [{key: tier, operator: In, values: [a, b]}]}"));
    assert!(!timeout("{kind: Gateway, matchLabels: {tier: b}}"));
    assert!(!timeout("{kind: Gateway, matchExpressions: [{key: tier, operator: DoesNotExist}]}"));
    assert!(!timeout("{kind: GRPCRoute}"));
}

/// Objects of another namespace are targets if the policy means that namespace, and a ReferenceGrant there allows it.
#[test]
fn selectors_reach_other_namespaces_with_a_grant() {
    let policy = |namespaces: &str| {
        let spec = format!(
            "targetSelectors: [{{kind: Gateway, namespaces: {namespaces}}}], timeout: {{http: {{requestTimeout: 1s}}}}"
        );
        policy("BackendTrafficPolicy", ("p", ", namespace: policies"), &spec)
    };
    let grant = |kind: &str| {
        format!(
            "---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {{name: policies}}
spec:
  from: [{{group: gateway.envoyproxy.io, kind: {kind}, namespace: policies}}]
  to: [{{group: gateway.networking.k8s.io, kind: Gateway}}]
"
        )
    };
    let applies = |namespaces: &str, grant: &str| {
        let objects = [GATEWAYS, &route(RULES), &policy(namespaces), grant].concat();
        action(&plan(&objects).unwrap()).get("timeout").is_some()
    };
    let granted = grant("BackendTrafficPolicy");
    assert!(applies("{from: All}", &granted));
    let labels = "{from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: default}}}";
    assert!(applies(labels, &granted));
    let expression = "{from: Selector, selector: {matchExpressions: [{key: a, operator: DoesNotExist}]}}";
    assert!(applies(expression, &granted));
    assert!(!applies("{from: Selector, selector: {matchLabels: {a: b}}}", &granted));
    assert!(!applies("{from: Selector}", &granted) && !applies("{from: Same}", &granted));
    assert!(!applies("{from: All}", "") && !applies("{from: All}", &grant("ClientTrafficPolicy")));
}

#[test]
fn a_policy_for_clients_bounds_what_is_held_and_how_long() {
    let on_gateway = policy(
        "ClientTrafficPolicy",
        ("c", ""),
        &format!(
            "{TO_GATEWAY}, connection: {{bufferLimit: 50Mi}}, timeout: {{http: {{requestReceivedTimeout: 1s, \
             requestHeadersReceivedTimeout: 2s, idleTimeout: 3s, streamIdleTimeout: 4s}}}}"
        ),
    );
    let limit = |plan: &Plan| {
        let rendered = Rendered::new(plan, &bindings(plan)).unwrap().static_equivalent;
        rendered["static_resources"]["listeners"][0].get("per_connection_buffer_limit_bytes").cloned()
    };
    let plan = with(std::slice::from_ref(&on_gateway));
    assert_eq!(limit(&plan), Some(json!(50 << 20)));
    let found = manager(&plan, 0);
    assert_eq!(
        (&found["request_timeout"], &found["request_headers_timeout"], &found["stream_idle_timeout"]),
        (&json!("1s"), &json!("2s"), &json!("4s"))
    );
    assert_eq!(found["common_http_protocol_options"]["idle_timeout"], "3s");
    let on_listener =
        policy("ClientTrafficPolicy", ("d", ""), &format!("{TO_LISTENER}, connection: {{bufferLimit: 1Mi}}"));
    let nearest = with(&[on_gateway.clone(), on_listener]);
    assert_eq!(limit(&nearest), Some(json!(1 << 20)));
    assert!(manager(&nearest, 0).get("request_timeout").is_none(), "it is replaced as a whole");

    let control = with(&[]);
    assert!(limit(&control).is_none() && manager(&control, 0).get("stream_idle_timeout").is_none());
    let elsewhere = with(&[on_gateway.replace("name: g}", "name: other}")]);
    assert!(limit(&elsewhere).is_none());
    assert_eq!(elsewhere.remarks[0].field, "spec.targetRefs[0].name");
    let on_route = with(&[on_gateway.replace("kind: Gateway, name: g", "kind: HTTPRoute, name: r")]);
    assert_eq!(on_route.remarks[0].field, "spec.targetRefs[0].kind");
}

#[test]
fn listeners_with_clusters_of_their_own_are_told_apart() {
    let two = GATEWAYS.replace(
        "{ name: http, protocol: HTTP, port: 80 }",
        "{ name: http, protocol: HTTP, port: 80 }, { name: more, protocol: HTTP, port: 81 }",
    );
    let remarks = |settings: &str| {
        let policy = backend_policy("p", &format!("{TO_LISTENER}, {settings}"));
        plan(&[two.as_str(), &route(RULES), &policy].concat()).unwrap().remarks.len()
    };
    assert_eq!(remarks("circuitBreaker: {maxConnections: 1}"), 1);
    assert_eq!(remarks("timeout: {http: {requestTimeout: 1s}}"), 0, "a route's setting differs by listener");
}
