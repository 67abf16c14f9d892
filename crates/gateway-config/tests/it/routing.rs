//! Kinds of routes: what each becomes in Envoy's configuration, and what would be different without it.

use gateway_config::attachment::{Responses, Share};
use gateway_config::plan::{Plan, RouteAction};
use gateway_config::render::{Bindings, Rendered};
use serde_json::{Value, json};

use crate::fixtures::{bindings, plan};

pub(crate) const GATEWAYS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: eg }
spec: { controllerName: gateway.envoyproxy.io/gatewayclass-controller }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: g }
spec: { gatewayClassName: eg, listeners: [ { name: http, protocol: HTTP, port: 80 } ] }
---
apiVersion: v1
kind: Service
metadata: { name: s }
spec: { selector: { app: s }, ports: [ { port: 8000 } ] }
";

pub(crate) fn pool(name: &str) -> String {
    format!(
        "---\napiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: {name}}}\nspec: {{selector: \
         {{matchLabels: {{app: {name}}}}}, targetPorts: [{{number: 8000}}], endpointPickerRef: {{name: {name}-epp}}}}\n"
    )
}

pub(crate) fn route(spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec: {{parentRefs: [{{name: \
         g}}], {spec}}}\n"
    )
}

pub(crate) fn to_pool(name: &str) -> String {
    format!("{{group: inference.networking.k8s.io, kind: InferencePool, name: {name}}}")
}

/// The objects of most tests: pools `a` and `b`, a Service, and a route.
pub(crate) fn planned(spec: &str) -> Plan {
    plan(&[GATEWAYS, &pool("a"), &pool("b"), &route(spec)].concat()).unwrap()
}

pub(crate) fn manager(plan: &Plan, listener_idx: usize) -> Value {
    let rendered = Rendered::new(plan, &bindings(plan)).unwrap().static_equivalent;
    let listener = &rendered["static_resources"]["listeners"][listener_idx];
    listener["default_filter_chain"]["filters"][0]["typed_config"].clone()
}

/// Envoy's routes of the first host.
pub(crate) fn routes(plan: &Plan) -> Vec<Value> {
    manager(plan, 0)["route_config"]["virtual_hosts"][0]["routes"].as_array().unwrap().clone()
}

fn first_route(rule: &str) -> Value {
    let backend = "backendRefs: [{name: s, port: 8000}]";
    routes(&planned(&format!("rules: [{{{backend}, {rule}}}]"))).remove(0)
}

#[test]
fn several_backends_share_by_weight_and_each_pool_has_its_own_picker() {
    let both = format!(
        "{}, {}",
        to_pool("a").replace('}', ", weight: 90}"),
        to_pool("b").replace('}', ", weight: 10}")
    );
    let plan = planned(&format!("rules: [{{backendRefs: [{both}, {{name: s, port: 8000, weight: 0}}]}}]"));
    let route = routes(&plan).remove(0);
    let clusters = route["route"]["weighted_clusters"]["clusters"].as_array().unwrap();
    let found: Vec<_> =
        clusters.iter().map(|cluster| (cluster["name"].as_str().unwrap(), &cluster["weight"])).collect();
    let name = |idx: u32| format!("httproute/default/r/rule/0/backend/{idx}");
    assert_eq!(
        found,
        [(name(0).as_str(), &json!(90)), (name(1).as_str(), &json!(10))],
        "weight 0 gets nothing"
    );
    for (cluster, pool) in clusters.iter().zip(["a", "b"]) {
        let enabled: Vec<&String> = cluster["typed_per_filter_config"].as_object().unwrap().keys().collect();
        assert_eq!(enabled, [&format!("envoy.filters.http.ext_proc/endpointpicker/{pool}_default_ext_proc")]);
    }
    assert!(route.get("typed_per_filter_config").is_none());
    let single = routes(&planned(&format!("rules: [{{backendRefs: [{}]}}]", to_pool("a")))).remove(0);
    assert_eq!(single["route"]["cluster"], "httproute/default/r/rule/0");
}

#[test]
fn each_pool_of_several_backends_reports_the_bodies_of_a_share() {
    let backends = format!("{}, {{name: s, port: 8000}}, {}", to_pool("a"), to_pool("b"));
    let plan = planned(&format!("rules: [{{backendRefs: [{backends}]}}]"));
    let found = |responses| {
        let bindings = Bindings { responses, ..bindings(&plan) };
        let rendered = Rendered::new(&plan, &bindings).unwrap().static_equivalent;
        let listener = &rendered["static_resources"]["listeners"][0]["default_filter_chain"];
        let config = &listener["filters"][0]["typed_config"]["route_config"];
        let routes = config["virtual_hosts"][0]["routes"].as_array().unwrap().iter().map(|route| {
            let clusters = route["route"]["weighted_clusters"]["clusters"].as_array().unwrap();
            let observed = clusters.iter().map(|cluster| {
                let mut filters = cluster["typed_per_filter_config"].as_object().into_iter().flatten();
                filters.any(|(name, _)| name.ends_with("/observer"))
            });
            (route["match"]["runtime_fraction"]["default_value"]["numerator"].clone(), observed.collect())
        });
        routes.collect::<Vec<(Value, Vec<bool>)>>()
    };
    let (none, pools) = (vec![false; 3], vec![true, false, true]);
    assert_eq!(
        found(Responses::Observed(Share::TWENTIETH)),
        [(json!(50_000), pools.clone()), (Value::Null, none.clone())]
    );
    // Control: if all requests are alike, there is one route.
    assert_eq!(found(Responses::Observed(Share::ALL)), [(Value::Null, pools)]);
    for responses in [Responses::Observed(Share::NONE), Responses::Through] {
        assert_eq!(found(responses), [(Value::Null, none.clone())]);
    }
}

#[test]
fn a_share_without_a_backend_gets_500() {
    let missing = "{name: none, port: 8000}";
    let plan = planned(&format!("rules: [{{backendRefs: [{missing}]}}]"));
    assert_eq!(routes(&plan)[0]["direct_response"]["status"], 500);
    assert_eq!(plan.remarks[0].field, "spec.rules[0].backendRefs[0].name");
    let plan = planned(&format!("rules: [{{backendRefs: [{missing}, {{name: s, port: 8000}}]}}]"));
    let route = routes(&plan).remove(0);
    assert_eq!(route["route"]["weighted_clusters"]["clusters"][0]["name"], "invalid-backend-cluster");
    assert_eq!(route["route"]["cluster_not_found_response_code"], "INTERNAL_SERVER_ERROR");
    assert_eq!(manager(&plan, 0)["route_config"]["validate_clusters"], false);
    for nothing in ["rules: [{backendRefs: [{name: s, port: 8000, weight: 0}]}]", "rules: [{}]"] {
        assert_eq!(routes(&planned(nothing))[0]["direct_response"]["status"], 500, "{nothing}");
    }
    let good = planned("rules: [{backendRefs: [{name: s, port: 8000}]}]");
    assert!(good.remarks.is_empty() && manager(&good, 0)["route_config"].get("validate_clusters").is_none());
}

#[test]
fn matches_are_headers_queries_and_methods() {
    let matches = "matches: [{path: {type: Exact, value: /v1}, method: POST, headers: [{name: X-A, value: b}, {name: c, type: \
                   RegularExpression, value: d.*}], queryParams: [{name: q, value: '1'}]}]";
    assert_eq!(
        first_route(matches)["match"],
        json!({
            "path": "/v1",
            "headers": [
                { "name": "X-A", "string_match": { "exact": "b" } },
                { "name": "c", "string_match": { "safe_regex": { "regex": "d.*" } } },
                { "name": ":method", "string_match": { "exact": "POST" } },
            ],
            "query_parameters": [ { "name": "q", "string_match": { "exact": "1" } } ],
        })
    );
    assert_eq!(first_route("matches: []")["match"], json!({ "prefix": "/" }));
}

#[test]
fn the_narrower_match_comes_first() {
    let backend = "backendRefs: [{name: s, port: 8000}]";
    let matches = [
        "{}",
        "{queryParams: [{name: a, value: b}]}",
        "{headers: [{name: a, value: b}]}",
        "{headers: [{name: a, value: b}, {name: c, value: d}]}",
        "{method: GET}",
        "{path: {value: /v1}}",
        "{path: {type: Exact, value: /}}",
    ];
    let rules: Vec<String> =
        matches.iter().map(|found| format!("{{{backend}, matches: [{found}]}}")).collect();
    let routes = routes(&planned(&format!("rules: [{}]", rules.join(", "))));
    let order: Vec<String> =
        routes.iter().map(|route| route["name"].as_str().unwrap()[25..26].to_owned()).collect();
    assert_eq!(order, ["6", "5", "4", "3", "2", "1", "0"]);
}

#[test]
fn filters_change_headers() {
    let modifier = "{set: [{name: a, value: 50%}], add: [{name: b, value: c}], remove: [d]}";
    let filters = format!(
        "filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {modifier}}}, {{type: ResponseHeaderModifier, \
         responseHeaderModifier: {modifier}}}]"
    );
    let route = first_route(&filters);
    for side in ["request", "response"] {
        assert_eq!(
            route[format!("{side}_headers_to_add")],
            json!([
                { "header": { "key": "a", "value": "50%%" }, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" },
                { "header": { "key": "b", "value": "c" }, "append_action": "APPEND_IF_EXISTS_OR_ADD" },
            ])
        );
        assert_eq!(route[format!("{side}_headers_to_remove")], json!(["d"]));
    }
}

#[test]
fn filters_rewrite_redirect_and_mirror() {
    let rewrite = |path: &str, matched: &str| {
        let filters = format!("filters: [{{type: URLRewrite, urlRewrite: {{hostname: h, path: {path}}}}}]");
        first_route(&format!("{filters}, matches: [{{path: {{value: {matched}}}}}]"))["route"].clone()
    };
    let prefix = |to: &str| format!("{{type: ReplacePrefixMatch, replacePrefixMatch: {to}}}");
    assert_eq!(rewrite(&prefix("/b/"), "/a")["prefix_rewrite"], "/b");
    assert_eq!(rewrite(&prefix("/b"), "/")["prefix_rewrite"], "/b/", "the prefix is one slash");
    assert_eq!(rewrite(&prefix("/"), "/a.b")["regex_rewrite"]["pattern"]["regex"], "^/a\\.b/*");
    let full = rewrite("{type: ReplaceFullPath, replaceFullPath: /c}", "/a");
    assert_eq!(
        (&full["regex_rewrite"]["substitution"], &full["host_rewrite_literal"]),
        (&json!("/c"), &json!("h"))
    );

    let redirect = "filters: [{type: RequestRedirect, requestRedirect: {scheme: https, port: 8443, statusCode: 301, path: {type: \
                    ReplaceFullPath, replaceFullPath: /c}}}]";
    let expected = json!({
        "path_redirect": "/c", "scheme_redirect": "https", "port_redirect": 8443, "response_code": "MOVED_PERMANENTLY",
    });
    assert_eq!(first_route(redirect)["redirect"], expected);

    let mirror =
        "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: s, port: 8000}, percent: 10}}]";
    let mirrored = &first_route(mirror)["route"]["request_mirror_policies"][0];
    assert_eq!(mirrored["cluster"], "httproute/default/r/rule/0-mirror-0");
    assert_eq!(mirrored["runtime_fraction"]["default_value"]["numerator"], 100_000);
}

#[test]
fn a_filter_that_is_not_translated_is_refused() {
    let filters = "rules: [{backendRefs: [{name: s, port: 8000}], filters: [{type: ExtensionRef}]}]";
    let error = plan(&[GATEWAYS, &route(filters)].concat()).unwrap_err().to_string();
    assert!(error.starts_with("HTTPRoute default/r: spec.rules[0].filters[0].type: ExtensionRef"), "{error}");
}

#[test]
fn a_backends_own_filters_change_its_share() {
    let filtered =
        |name: &str, filters: &str| to_pool(name).replace('}', &format!(", filters: [{filters}]}}"));
    let request =
        "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}], remove: [c]}}";
    let response = "{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: d, value: e}]}}";
    let host = "{type: URLRewrite, urlRewrite: {hostname: h}}";
    let all = [request, response, host].join(", ");
    let both = format!("rules: [{{backendRefs: [{}, {}]}}]", filtered("a", &all), to_pool("b"));
    let route = routes(&planned(&both)).remove(0);
    let clusters = &route["route"]["weighted_clusters"]["clusters"];
    assert_eq!(clusters[0]["request_headers_to_add"][0]["header"], json!({ "key": "a", "value": "b" }));
    assert_eq!(clusters[0]["request_headers_to_remove"], json!(["c"]));
    assert_eq!(clusters[0]["response_headers_to_add"][0]["header"]["key"], "d");
    assert_eq!(clusters[0]["host_rewrite_literal"], "h");
    for field in ["request_headers_to_add", "response_headers_to_add", "host_rewrite_literal"] {
        assert!(
            clusters[1].get(field).is_none() && route.get(field).is_none(),
            "{field}: the others' share is as it was"
        );
    }
    let alone =
        routes(&planned(&format!("rules: [{{backendRefs: [{}]}}]", filtered("a", request)))).remove(0);
    let cluster = &alone["route"]["weighted_clusters"]["clusters"][0];
    assert_eq!(cluster["request_headers_to_add"][0]["header"]["key"], "a");
    assert!(
        cluster["typed_per_filter_config"]
            .get("envoy.filters.http.ext_proc/endpointpicker/a_default_ext_proc")
            .is_some()
    );
    let mirror = filtered("a", "{type: RequestMirror, requestMirror: {backendRef: {name: s, port: 8000}}}");
    let error = plan(
        &[GATEWAYS, &pool("a"), &self::route(&format!("rules: [{{backendRefs: [{mirror}]}}]"))].concat(),
    );
    let error = error.unwrap_err().to_string();
    assert!(
        error.starts_with(
            "HTTPRoute default/r: spec.rules[0].backendRefs[0].filters[0].type: RequestMirror of one backend"
        ),
        "{error}"
    );
}

#[test]
fn timeouts_and_retries_are_the_rules() {
    let rule = "name: n, timeouts: {request: 10s}, retry: {codes: [503], attempts: 4, backoff: 100ms}";
    let action = &first_route(rule)["route"];
    assert_eq!((&action["timeout"], &action["retry_policy"]["num_retries"]), (&json!("10s"), &json!(4)));
    assert_eq!(action["retry_policy"]["retriable_status_codes"], json!([503]));
    assert_eq!(action["retry_policy"]["retry_back_off"]["base_interval"], "0.100s");
    assert!(first_route("name: n")["route"].get("retry_policy").is_none());
}

#[test]
fn a_listener_serves_the_hosts_that_it_shares_with_a_route() {
    let listeners = "listeners: [ { name: http, protocol: HTTP, port: 80 } ]";
    let two = "listeners: [ { name: x, protocol: HTTP, port: 80, hostname: '*.x.com' }, { name: y, protocol: HTTP, port: 80, \
               hostname: y.com } ]";
    let gateways = GATEWAYS.replace(listeners, two);
    let hosts = |names: &str| {
        let route =
            route(&format!("hostnames: {names}, rules: [{{backendRefs: [{{name: s, port: 8000}}]}}]"));
        let plan = plan(&[gateways.as_str(), &route].concat()).unwrap();
        assert_eq!(plan.listeners.len(), 1, "a port is one listener of Envoy");
        let hosts: Vec<String> = plan.listeners[0].routes.iter().map(|route| route.host.clone()).collect();
        (hosts, plan.remarks.len())
    };
    assert_eq!(hosts("[]"), (vec!["*.x.com".to_owned(), "y.com".to_owned()], 0));
    assert_eq!(
        hosts("[a.x.com, z.com, '*.com']"),
        (vec!["a.x.com".to_owned(), "*.x.com".to_owned(), "y.com".to_owned()], 0)
    );
    assert_eq!(hosts("[z.com]"), (vec![], 1));
}

#[test]
fn a_listener_chooses_the_namespaces_of_its_routes() {
    let other = route("rules: [{backendRefs: [{name: s, port: 8000}]}]")
        .replace("{name: r}", "{name: r, namespace: other}")
        .replace("{name: g}", "{name: g, namespace: default}");
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: other}\nspec: {ports: [{port: 8000}]}\n";
    let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {team: a}}\n";
    let n_routes = |allowed: &str| {
        let listener = format!("port: 80, allowedRoutes: {allowed}");
        let plan =
            plan(&[&GATEWAYS.replace("port: 80 ", &listener), &other, service, namespace].concat()).unwrap();
        plan.listeners[0].routes.len()
    };
    for (allowed, expected) in [
        ("{ namespaces: { from: All } }", 1),
        ("{ namespaces: { from: Same } }", 0),
        ("{}", 0),
        ("{ namespaces: { from: None } }", 0),
        ("{ namespaces: { from: Selector, selector: { matchLabels: { team: a } } } }", 1),
        ("{ namespaces: { from: Selector, selector: { matchLabels: { team: b } } } }", 0),
        (
            "{ namespaces: { from: Selector, selector: { matchExpressions: [{ key: team, operator: Exists }] } } }",
            1,
        ),
        (
            "{ namespaces: { from: Selector, selector: { matchExpressions: [{ key: team, operator: NotIn, values: [a] }] } } }",
            0,
        ),
        ("{ namespaces: { from: Selector } }", 0),
        ("{ namespaces: { from: All }, kinds: [ { kind: GRPCRoute } ] }", 0),
    ] {
        assert_eq!(n_routes(allowed), expected, "{allowed}");
    }
}

#[test]
fn a_backend_of_another_namespace_needs_a_grant() {
    let pool = pool("far").replace("{name: far}", "{name: far, namespace: other}");
    let spec = format!("rules: [{{backendRefs: [{}]}}]", to_pool("far").replace('}', ", namespace: other}"));
    let grant = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: x, namespace: other}\n\
                 spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}], to: [{group: \
                 inference.networking.k8s.io, kind: InferencePool}]}\n";
    let action = |more: &str| {
        let plan = plan(&[GATEWAYS, &pool, &route(&spec), more].concat()).unwrap();
        plan.listeners[0].routes[0].action.clone()
    };
    assert!(matches!(action(grant), RouteAction::Forward(_)));
    assert_eq!(action(""), RouteAction::Fixed(500));
    assert_eq!(action(&grant.replace("kind: InferencePool", "kind: Service")), RouteAction::Fixed(500));
}

#[test]
fn a_route_by_the_bodys_model_is_chosen_after_the_body() {
    let rule = |model: &str, pool: &str| {
        let header = format!("{{name: X-Gateway-Model-Name, value: {model}}}");
        format!("{{matches: [{{headers: [{header}]}}], backendRefs: [{}]}}", to_pool(pool))
    };
    let plan = planned(&format!("rules: [{}, {}]", rule("m", "a"), rule("n", "b")));
    let manager = manager(&plan, 0);
    let filters = manager["http_filters"].as_array().unwrap();
    let names: Vec<&str> = filters.iter().map(|filter| filter["name"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["envoy.filters.http.json_to_metadata", "envoy.filters.http.lua"]);
    assert!(
        filters.iter().all(|filter| filter.get("disabled").is_none()),
        "the first route would choose them"
    );
    let picker = |pool: &str| format!("envoy.filters.http.ext_proc/endpointpicker/{pool}_default_ext_proc");
    let routes = routes(&plan);
    for (route, others) in routes.iter().zip([&["b"][..], &["a"], &["a", "b"]]) {
        let disabled: Vec<&String> = route["typed_per_filter_config"].as_object().unwrap().keys().collect();
        let expected: Vec<String> = others.iter().map(|other| picker(other)).collect();
        assert_eq!(disabled, expected.iter().collect::<Vec<_>>(), "{}", route["name"]);
    }
    assert_eq!(routes[2]["direct_response"]["status"], 404);
    let control = planned(&format!("rules: [{}]", rule("m", "a").replace("X-Gateway-Model-Name", "x-other")));
    assert_eq!(self::manager(&control, 0)["http_filters"][0]["disabled"], true);
}

/// Filters that the first route does not want are gone when the route is chosen again, so all are enabled there.
#[test]
fn a_route_by_the_bodys_model_reports_the_bodies_of_a_share() {
    let header = "{name: X-Gateway-Model-Name, value: m}";
    let plan = planned(&format!(
        "rules: [{{matches: [{{headers: [{header}]}}], backendRefs: [{}]}}, {{backendRefs: [{}]}}]",
        to_pool("a"),
        to_pool("b")
    ));
    let responses = Responses::Observed(Share::TWENTIETH);
    let rendered = Rendered::new(&plan, &Bindings { responses, ..bindings(&plan) }).unwrap();
    let listener = &rendered.static_equivalent["static_resources"]["listeners"][0]["default_filter_chain"];
    let manager = &listener["filters"][0]["typed_config"];
    let filters = manager["http_filters"].as_array().unwrap();
    assert!(filters.iter().all(|filter| filter.get("disabled").is_none()));
    let observer =
        |pool: &str| format!("envoy.filters.http.ext_proc/endpointpicker/{pool}_default_ext_proc/observer");
    let routes = manager["route_config"]["virtual_hosts"][0]["routes"].as_array().unwrap();
    let disabled = |route: &Value| {
        ["a", "b"].map(|pool| route["typed_per_filter_config"][observer(pool)]["disabled"] == true)
    };
    let found: Vec<_> = routes
        .iter()
        .map(|route| (disabled(route), route["match"]["runtime_fraction"].is_object()))
        .collect();
    // Each pool's share, and the others, who report nothing; last comes the route of what no other takes.
    let both = [true, true];
    assert_eq!(
        found,
        [([false, true], true), (both, false), ([true, false], true), (both, false), (both, false)]
    );
}

/// A weighted cluster cannot take back what its route disables.
#[test]
fn weighted_pools_beside_a_route_by_the_bodys_model_keep_their_pickers() {
    let by_model = format!(
        "{{matches: [{{headers: [{{name: X-Gateway-Model-Name, value: m}}]}}], backendRefs: [{}]}}",
        to_pool("a")
    );
    let plan =
        planned(&format!("rules: [{by_model}, {{backendRefs: [{}, {}]}}]", to_pool("a"), to_pool("b")));
    let routes = routes(&plan);
    let weighted = routes.iter().find(|route| route["route"]["weighted_clusters"].is_object()).unwrap();
    assert_eq!(weighted.get("typed_per_filter_config"), None);
    let clusters = weighted["route"]["weighted_clusters"]["clusters"].as_array().unwrap();
    for (cluster, other) in clusters.iter().zip(["b", "a"]) {
        let disabled = cluster["typed_per_filter_config"].as_object().unwrap().keys();
        let picker = format!("envoy.filters.http.ext_proc/endpointpicker/{other}_default_ext_proc");
        assert_eq!(disabled.collect::<Vec<_>>(), [&picker]);
    }
}

#[test]
fn an_ai_gateway_route_leads_to_pools_by_model() {
    let rule = |model: &str, backend: &str| {
        format!(
            "{{matches: [{{headers: [{{name: x-ai-eg-model, value: {model}}}]}}], backendRefs: [{backend}]}}"
        )
    };
    let rules = [rule("m", &to_pool("a")), rule("n", "{name: outside}")].join(", ");
    let ai_route = route(&format!("rules: [{rules}]")).replace(
        "gateway.networking.k8s.io/v1\nkind: HTTPRoute",
        "aigateway.envoyproxy.io/v1beta1\nkind: AIGatewayRoute",
    );
    let plan = plan(&[GATEWAYS, &pool("a"), &ai_route].concat()).unwrap();
    let found = routes(&plan);
    let header = json!([{ "name": "x-gateway-model-name", "string_match": { "exact": "m" } }]);
    assert_eq!(
        (&found[0]["match"]["headers"], &found[0]["route"]["cluster"]),
        (&header, &json!("httproute/default/r/rule/0"))
    );
    assert_eq!(manager(&plan, 0)["http_filters"][0]["name"], "envoy.filters.http.json_to_metadata");
    assert_eq!(found[1]["direct_response"]["status"], 500, "a backend outside of the cluster");
    let remark = &plan.remarks[0];
    assert_eq!(
        (remark.kind.as_str(), remark.field.as_str()),
        ("AIGatewayRoute", "spec.rules[1].backendRefs[0].kind")
    );
    assert!(remark.on_a_cluster.contains("these requests go to it"), "{}", remark.on_a_cluster);
    // Control: an HTTPRoute's header of this name is any header.
    let control = planned(&format!("rules: [{}]", rule("m", &to_pool("a"))));
    assert_eq!(routes(&control)[0]["match"]["headers"][0]["name"], "x-ai-eg-model");
    let both = self::plan(&[GATEWAYS, &pool("a"), &ai_route, &route("rules: [{}]")].concat()).unwrap_err();
    assert!(
        both.to_string().contains("two objects of this name"),
        "Envoy AI Gateway makes an HTTPRoute of it"
    );
}
