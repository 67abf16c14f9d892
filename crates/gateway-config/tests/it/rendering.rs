//! The configuration that Envoy gets.

use std::time::Duration;

use expect_test::{expect, expect_file};
use gateway_config::attachment::{Maker, Responses, Share};
use gateway_config::error::MissingBinding;
use gateway_config::render::{Bindings, PickerTls, Rendered};
use inference_api::pool::BodyMode;
use serde_json::{Value, json};

use crate::fixtures::{bindings, edited, plan, tutorial};

fn render(yaml: &str) -> Rendered {
    let plan = plan(yaml).unwrap();
    Rendered::new(&plan, &bindings(&plan)).unwrap()
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

/// The `idx`-th listener's connection manager.
fn manager(rendered: &Rendered, idx: usize) -> &Value {
    &rendered.static_equivalent["static_resources"]["listeners"][idx]["default_filter_chain"]["filters"][0]["typed_config"]
}

fn routes(rendered: &Rendered, listener_idx: usize) -> &Vec<Value> {
    manager(rendered, listener_idx)["route_config"]["virtual_hosts"][0]["routes"].as_array().unwrap()
}

#[test]
fn tutorial_static_equivalent() {
    expect_file!["golden/tutorial-static.json"].assert_eq(&pretty(&render(&tutorial()).static_equivalent));
}

#[test]
fn tutorial_files() {
    let rendered = render(&tutorial());
    expect_file!["golden/tutorial-bootstrap.json"].assert_eq(&pretty(&rendered.bootstrap));
    let mut text = String::new();
    for file in &rendered.files {
        let resources = file.content["resources"].as_array().unwrap();
        text += &format!("{}: {} resources, version in {}\n", file.name, resources.len(), file.version_stat);
        assert_eq!(file.content["version_info"], file.version);
    }
    expect![[r#"
        eds-httproute_default_qwen-backend_rule_0.json: 1 resources, version in cluster.httproute/default/qwen-backend/rule/0.version_text
        eds-httproute_default_qwen-backend-no-inference_rule_0.json: 1 resources, version in cluster.httproute/default/qwen-backend-no-inference/rule/0.version_text
        cds.json: 3 resources, version in cluster_manager.cds.version_text
        lds.json: 2 resources, version in listener_manager.lds.version_text
    "#]]
    .assert_eq(&text);
    expect_file!["golden/tutorial-eds.json"].assert_eq(&pretty(&rendered.files[0].content));
}

/// The watched files have the same content as the static file that is validated in their place.
#[test]
fn files_and_static_equivalent_agree() {
    let rendered = render(&tutorial());
    let resources = |name: &str| -> Vec<Value> {
        let file = rendered.files.iter().find(|file| file.name == name).unwrap();
        file.content["resources"].as_array().unwrap().clone()
    };
    let without = |value: &Value, keys: &[&str]| {
        let mut value = value.clone();
        for key in keys {
            value.as_object_mut().unwrap().shift_remove(*key);
        }
        value
    };
    let fixed = &rendered.static_equivalent["static_resources"];
    for (idx, listener) in resources("lds.json").iter().enumerate() {
        assert_eq!(without(listener, &["@type"]), fixed["listeners"][idx]);
    }
    let discovery = ["@type", "type", "eds_cluster_config", "load_assignment"];
    for (idx, cluster) in resources("cds.json").iter().enumerate() {
        assert_eq!(without(cluster, &discovery), without(&fixed["clusters"][idx], &discovery));
    }
    let assignment = resources("eds-httproute_default_qwen-backend_rule_0.json");
    assert_eq!(without(&assignment[0], &["@type"]), fixed["clusters"][0]["load_assignment"]);
}

#[test]
fn a_version_changes_with_its_resources_only() {
    let plan = plan(&tutorial()).unwrap();
    let mut bindings = bindings(&plan);
    let before = Rendered::new(&plan, &bindings).unwrap();
    bindings.endpoints.get_mut("httproute/default/qwen-backend/rule/0").unwrap().pop();
    let after = Rendered::new(&plan, &bindings).unwrap();
    let changed: Vec<&str> = before
        .files
        .iter()
        .zip(&after.files)
        .filter(|(before, after)| before.version != after.version)
        .map(|(_, after)| after.name.as_str())
        .collect();
    assert_eq!(changed, ["eds-httproute_default_qwen-backend_rule_0.json"]);
}

#[test]
fn without_a_policy_no_timeout_is_set() {
    let policy = "requestTimeout: 1h";
    let rendered = render(&edited(policy, "{}"));
    for listener_idx in 0..2 {
        let route = &routes(&rendered, listener_idx)[0]["route"];
        assert!(route.get("timeout").is_none() && route.get("idle_timeout").is_none());
    }
    let rendered = render(&tutorial());
    let route = &routes(&rendered, 0)[0]["route"];
    assert_eq!((route["timeout"].as_str(), route["idle_timeout"].as_str()), (Some("3600s"), Some("3600s")));
}

#[test]
fn the_nearest_timeout_wins() {
    let timeout = |yaml: &str, listener_idx: usize| {
        plan(yaml).unwrap().listeners[listener_idx].routes[0].traffic.timeout.http.request_timeout
    };
    let rule = "      matches:\n        - path:";
    let by_rule = edited(rule, &format!("      timeouts:\n        request: 250ms\n{rule}"));
    assert_eq!(timeout(&by_rule, 1), Some(Duration::from_millis(250)));
    assert_eq!(timeout(&by_rule, 0), Some(Duration::from_secs(3600)));
    let rendered = render(&by_rule);
    let route = &routes(&rendered, 1)[0]["route"];
    assert_eq!((route["timeout"].as_str(), route["idle_timeout"].as_str()), (Some("0.250s"), Some("3600s")));

    let policy = |target: &str, timeout: &str| {
        format!(
            "---\napiVersion: gateway.envoyproxy.io/v1alpha1\nkind: BackendTrafficPolicy\n\
             metadata: {{name: nearer-{timeout}}}\nspec:\n  timeout: {{http: {{requestTimeout: {timeout}}}}}\n  \
             targetRefs: [{{group: gateway.networking.k8s.io, {target}}}]\n"
        )
    };
    let on_listener =
        tutorial() + &policy("kind: Gateway, name: qwen-inference-gateway, sectionName: http", "2s");
    assert_eq!(timeout(&on_listener, 0), Some(Duration::from_secs(2)));
    assert_eq!(timeout(&on_listener, 1), Some(Duration::from_secs(3600)));
    let on_route = on_listener + &policy("kind: HTTPRoute, name: qwen-backend-no-inference", "3s");
    assert_eq!(timeout(&on_route, 0), Some(Duration::from_secs(3)));
    let on_rule = |name: &str| {
        edited(rule, &format!("      name: {name}\n{rule}"))
            + &policy("kind: HTTPRoute, name: qwen-backend", "4s")
            + &policy("kind: HTTPRoute, name: qwen-backend, sectionName: chat", "5s")
    };
    assert_eq!(timeout(&on_rule("chat"), 1), Some(Duration::from_secs(5)));
    // Control: a rule of another name keeps the route's policy.
    assert_eq!(timeout(&on_rule("other"), 1), Some(Duration::from_secs(4)));
}

#[test]
fn a_pool_that_fails_open_is_buffered() {
    let open = "    name: inference-gateway-ext-proc\n    failureMode: FailOpen";
    let rendered = render(&edited("    name: inference-gateway-ext-proc", open));
    let listeners = &rendered.static_equivalent["static_resources"]["listeners"];
    assert_eq!(listeners[1]["per_connection_buffer_limit_bytes"], 50 << 20);
    assert!(listeners[0].get("per_connection_buffer_limit_bytes").is_none());
    let filter = &manager(&rendered, 1)["http_filters"][0]["typed_config"];
    expect![[r#"
        {
          "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
          "grpc_service": {
            "envoy_grpc": {
              "cluster_name": "envoy.clusters.endpointpicker_vllm-qwen-pool_default_ext_proc"
            },
            "initial_metadata": [
              {
                "key": "x-warmpath-inference-pool",
                "value": "default/vllm-qwen-pool"
              }
            ],
            "retry_policy": {
              "retry_on": "connect-failure,refused-stream",
              "num_retries": 2,
              "retry_back_off": {
                "base_interval": "0.020s",
                "max_interval": "0.050s"
              },
              "retry_host_predicate": [
                {
                  "name": "envoy.retry_host_predicates.previous_hosts",
                  "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                  }
                }
              ],
              "host_selection_retry_max_attempts": 5
            }
          },
          "failure_mode_allow": true,
          "message_timeout": "2s",
          "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SEND",
            "response_body_mode": "STREAMED"
          },
          "metadata_options": {
            "forwarding_namespaces": {
              "untyped": [
                "envoy.lb",
                "envoy.lb.subset_hint"
              ]
            },
            "receiving_namespaces": {
              "untyped": [
                "envoy.lb"
              ]
            }
          }
        }
    "#]]
    .assert_eq(&pretty(filter));
}

/// The tutorial's configuration if the operator wants responses past the picker, with this text in its objects.
fn observed(yaml: &str) -> Rendered {
    let plan = plan(yaml).unwrap();
    let responses = Responses::Observed(Share::TWENTIETH);
    Rendered::new(&plan, &Bindings { responses, ..bindings(&plan) }).unwrap()
}

fn filters(rendered: &Rendered) -> Vec<&str> {
    let filters = manager(rendered, 1)["http_filters"].as_array().unwrap();
    filters.iter().map(|filter| filter["name"].as_str().unwrap()).collect()
}

#[test]
fn an_observed_response_goes_past_the_picker() {
    let rendered = observed(&tutorial());
    expect_file!["golden/observed-listener.json"].assert_eq(&pretty(manager(&rendered, 1)));
    // Only a listener with a pool has the filters.
    assert_eq!(manager(&rendered, 0), manager(&render(&tutorial()), 0));
    // The route of the share has both filters, and the other one the picker's.
    for (route, n_filters) in routes(&rendered, 1).iter().zip([2, 1]) {
        let names = route["typed_per_filter_config"].as_object().unwrap();
        assert!(filters(&rendered).iter().take(n_filters).eq(names.keys()), "{names:?}");
    }
    let logs = |rendered: &Rendered| manager(rendered, 1)["access_log"].as_array().unwrap().len();
    assert_eq!(logs(&rendered), 2);
    // Control: otherwise the response's body goes through the picker.
    let through = render(&tutorial());
    let modes = &manager(&through, 1)["http_filters"][0]["typed_config"]["processing_mode"];
    assert_eq!(modes["response_body_mode"], "FULL_DUPLEX_STREAMED");
    assert_eq!(filters(&through).len() + 1, filters(&rendered).len());
    assert_eq!(logs(&through), 1, "that of the gateway");
}

#[test]
fn clients_are_told_of_a_pick_only_if_the_operator_allows_it() {
    let plan = plan(&tutorial()).unwrap();
    for (explains, is_told) in [(true, true), (false, false)] {
        let responses = Responses::Observed(Share::TWENTIETH);
        let bindings = Bindings { responses, explains, ..bindings(&plan) };
        let rendered = Rendered::new(&plan, &bindings).unwrap();
        let added = &manager(&rendered, 1)["route_config"]["response_headers_to_add"];
        assert_eq!(added.is_array(), is_told, "{added}");
    }
}

#[test]
fn an_observed_pool_that_fails_open_is_buffered() {
    let open = "    name: inference-gateway-ext-proc\n    failureMode: FailOpen";
    let rendered = observed(&edited("    name: inference-gateway-ext-proc", open));
    let filters = &manager(&rendered, 1)["http_filters"];
    expect![[r#"
        {
          "request_header_mode": "SEND",
          "request_body_mode": "BUFFERED",
          "response_header_mode": "SKIP",
          "response_body_mode": "NONE"
        }
    "#]]
    .assert_eq(&pretty(&filters[0]["typed_config"]["processing_mode"]));
    assert_eq!(filters[1]["typed_config"]["failure_mode_allow"], true);
}

/// The fraction of each route, null if it takes all requests, and whether the observer sees them.
fn observed_routes(responses: &str) -> Vec<(Value, bool)> {
    let plan = plan(&tutorial()).unwrap();
    let bindings = Bindings { responses: responses.parse().unwrap(), ..bindings(&plan) };
    let rendered = Rendered::new(&plan, &bindings).unwrap();
    let routes = routes(&rendered, 1).iter().map(|route| {
        let mut names = route["typed_per_filter_config"].as_object().unwrap().keys();
        let fraction = &route["match"]["runtime_fraction"]["default_value"];
        (fraction["numerator"].clone(), names.any(|name| name.ends_with("/observer")))
    });
    routes.collect()
}

#[test]
fn bodies_are_reported_for_a_share_of_the_requests() {
    let others = (Value::Null, false);
    for (responses, per_million) in [("observed", 50_000), ("observed=0.25", 250_000), ("observed=1e-6", 1)] {
        assert_eq!(observed_routes(responses), [(json!(per_million), true), others.clone()], "{responses}");
    }
    // Control: if all requests are alike, there is one route.
    assert_eq!(observed_routes("observed=0"), [others]);
    assert_eq!(observed_routes("observed=1"), [(Value::Null, true)]);
}

#[test]
fn ways_of_responses_are_read_as_they_are_written() {
    for (text, written) in [
        ("through", "through"),
        ("observed", "observed=0.05"),
        ("observed=0", "observed=0"),
        ("observed=1", "observed=1"),
    ] {
        let responses: Responses = text.parse().unwrap();
        assert_eq!(responses.to_string(), written);
        assert_eq!(written.parse(), Ok(responses));
    }
    for text in
        ["", "Observed", "observed=", "observed=1.01", "observed=-0.1", "observed=NaN", "through=1", "past"]
    {
        let error = text.parse::<Responses>().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{text:?} is not a way of responses")), "{error}");
    }
}

/// The picker restores the client's name in responses, so they must go through it.
#[test]
fn the_responses_of_a_pool_that_renames_models_go_through_the_picker() {
    let model = |target: &str| {
        let model = "kind: InferenceModel\napiVersion: inference.networking.x-k8s.io/v1alpha2\n";
        let spec =
            format!("spec: {{modelName: m, poolRef: {{name: vllm-qwen-pool}}, targetModels: [{target}]}}");
        format!("{}---\n{model}metadata: {{name: other}}\n{spec}\n", tutorial())
    };
    let renamed = model("{name: m-v2, weight: 1}");
    assert_eq!(filters(&observed(&renamed)), filters(&render(&renamed)));
    // Control: a model that keeps its name changes nothing.
    assert_eq!(filters(&observed(&model("{name: m, weight: 1}"))), filters(&observed(&tutorial())));
    let rewrite = |rule: &str| {
        let spec = format!("spec: {{poolRef: {{name: vllm-qwen-pool}}, rules: [{rule}]}}");
        let rewrite = "kind: InferenceModelRewrite\napiVersion: llm-d.ai/v1alpha2\nmetadata: {name: w}\n";
        format!("{}---\n{rewrite}{spec}\n", tutorial())
    };
    for rule in
        ["{targets: [{modelRewrite: m}]}", "{matches: [{model: {value: n}}], targets: [{modelRewrite: m}]}"]
    {
        let renamed = rewrite(rule);
        assert_eq!(filters(&observed(&renamed)), filters(&render(&renamed)), "{rule}");
    }
    // Control: a rule that keeps the name changes nothing.
    let kept = rewrite("{matches: [{model: {value: m}}], targets: [{modelRewrite: m}]}");
    assert_eq!(filters(&observed(&kept)), filters(&observed(&tutorial())));
}

#[test]
fn paths_are_ordered_by_precedence() {
    let matches = "      matches:\n        - path:\n            type: PathPrefix\n            value: /\n";
    let several = "      matches:\n        - path: {type: PathPrefix, value: /v1/}\n        - path: {value: /v1/chat}\n        \
                   - path: {type: RegularExpression, value: /v1/.*}\n        - path: {type: Exact, value: /health}\n        - {}\n";
    let rendered = render(&edited(matches, several));
    let seen: Vec<String> = routes(&rendered, 1)
        .iter()
        .map(|route| format!("{} {}", route["name"].as_str().unwrap(), route["match"]))
        .collect();
    expect![[r#"
        httproute/default/qwen-backend/rule/0/match/3/* {"path":"/health"}
        httproute/default/qwen-backend/rule/0/match/2/* {"safe_regex":{"regex":"/v1/.*"}}
        httproute/default/qwen-backend/rule/0/match/1/* {"path_separated_prefix":"/v1/chat"}
        httproute/default/qwen-backend/rule/0/match/0/* {"path_separated_prefix":"/v1"}
        httproute/default/qwen-backend/rule/0/match/4/* {"prefix":"/"}"#]]
    .assert_eq(&seen.join("\n"));
}

#[test]
fn hosts_are_virtual_hosts_and_a_route_without_section_is_on_every_listener() {
    let yaml = edited("      sectionName: llm-gw\n", "").replacen(
        "  rules:\n",
        "  hostnames: [llm.example.com]\n  rules:\n",
        1,
    );
    let rendered = render(&yaml);
    let names = |listener_idx: usize| -> Vec<String> {
        let hosts =
            manager(&rendered, listener_idx)["route_config"]["virtual_hosts"].as_array().unwrap().clone();
        hosts.iter().map(|host| format!("{} {}", host["name"].as_str().unwrap(), host["domains"])).collect()
    };
    assert_eq!(
        names(0),
        [
            r#"default/qwen-inference-gateway/http/llm_example_com ["llm.example.com"]"#,
            r#"default/qwen-inference-gateway/http/* ["*"]"#
        ]
    );
    assert_eq!(names(1), [r#"default/qwen-inference-gateway/llm-gw/llm_example_com ["llm.example.com"]"#]);
}

#[test]
fn the_picker_is_believed_by_name_and_authority() {
    let plan = plan(&tutorial()).unwrap();
    let cluster = |bindings: &Bindings| {
        let rendered = Rendered::new(&plan, bindings).unwrap();
        let clusters = rendered.static_equivalent["static_resources"]["clusters"].as_array().unwrap().clone();
        let is_picker = |cluster: &&Value| cluster["name"].as_str().unwrap().contains("endpointpicker");
        clusters.iter().find(is_picker).unwrap().clone()
    };
    let socket = |bindings: &Bindings| cluster(bindings).get("transport_socket").cloned();
    let mut bindings = bindings(&plan);
    assert_eq!(socket(&bindings), None);
    assert_eq!(cluster(&bindings)["health_checks"].as_array().unwrap().len(), 1);
    for picker in bindings.pickers.values_mut() {
        picker.tls = Some(PickerTls::Authority {
            server_name: "epp.svc".to_owned(),
            trusted_ca: "/run/tls/ca.crt".into(),
        });
    }
    let tls = socket(&bindings).unwrap()["typed_config"].clone();
    assert_eq!(tls["sni"], "epp.svc");
    let validation = &tls["common_tls_context"]["validation_context"];
    assert_eq!(validation["trusted_ca"]["filename"], "/run/tls/ca.crt");
    assert_eq!(validation["match_typed_subject_alt_names"][0]["matcher"]["exact"], "epp.svc");
    for picker in bindings.pickers.values_mut() {
        (picker.tls, picker.maker) = (Some(PickerTls::Any), Maker::Other(BodyMode::default()));
    }
    let tls = socket(&bindings).unwrap()["typed_config"]["common_tls_context"].clone();
    assert_eq!(tls, json!({ "alpn_protocols": ["h2"] }), "somebody else's picker has any certificate");
    assert_eq!(cluster(&bindings)["health_checks"], json!([]));
}

#[test]
fn clients_may_not_ask_about_pods_unless_the_operator_allows_it() {
    let plan = plan(&tutorial()).unwrap();
    let removed = |explains: bool, listener_idx: usize| {
        let bindings = Bindings { explains, ..bindings(&plan) };
        let rendered = Rendered::new(&plan, &bindings).unwrap();
        let extensions = manager(&rendered, listener_idx)["early_header_mutation_extensions"].clone();
        extensions.get(0).map(|extension| extension["typed_config"]["mutations"].clone())
    };
    let (destination, question) =
        (json!({"remove": "x-gateway-destination-endpoint"}), json!({"remove": "x-warmpath-explain"}));
    assert_eq!(removed(true, 1), Some(json!([destination])));
    assert_eq!(removed(false, 1), Some(json!([destination, question])));
    assert_eq!(removed(false, 0), None, "a listener without a pool has no picker to ask");
}

#[test]
fn a_missing_binding_is_an_error() {
    let plan = plan(&tutorial()).unwrap();
    let mut no_picker = bindings(&plan);
    no_picker.pickers.clear();
    assert!(matches!(Rendered::new(&plan, &no_picker), Err(MissingBinding::Picker(_))));
    let mut no_port = bindings(&plan);
    no_port.listener_ports.clear();
    assert!(matches!(Rendered::new(&plan, &no_port), Err(MissingBinding::Listener(_))));
}
