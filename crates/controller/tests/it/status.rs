//! The status of pools and models.

use controller::facts::Facts;
use controller::status;
use expect_test::expect;
use inference_api::condition::accepted;
use inference_api::kinds::Object;
use inference_api::object::ObjectKey;
use serde_json::{Value, json};

use crate::fixtures::{alpha_pool, facts, object, pool, v1_pool};

const NOW: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-02T00:00:00Z";

/// Facts with Gateways `ours` and `theirs`, of Envoy Gateway's class and of another one, and these objects.
fn routed(objects: &[Value]) -> Facts {
    let mut facts = facts();
    let class = |name: &str, controller: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": { "name": name },
            "spec": { "controllerName": controller },
        })
    };
    let gateway = |name: &str| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "gatewayClassName": name, "listeners": [] },
        })
    };
    let fixed = [
        class("ours", "gateway.envoyproxy.io/gatewayclass-controller"),
        class("theirs", "example.com/controller"),
        gateway("ours"),
        gateway("theirs"),
    ];
    for object in fixed.iter().chain(objects) {
        facts.add(object.clone()).unwrap();
    }
    facts
}

fn route(namespace: &str, gateways: &[&str], group: &str) -> Value {
    let parents: Vec<Value> =
        gateways.iter().map(|name| json!({ "name": name, "namespace": "default" })).collect();
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": "route", "namespace": namespace },
        "spec": {
            "parentRefs": parents,
            "rules": [{ "backendRefs": [
                { "group": group, "kind": "InferencePool", "name": "qwen", "namespace": "default" },
            ] }],
        },
    })
}

fn v1_route() -> Value {
    route("default", &["ours", "theirs", "absent"], "inference.networking.k8s.io")
}

fn n_parents(facts: &Facts) -> usize {
    let status = status::changed_pool(&pool(v1_pool()), facts, &Value::Null, NOW);
    status.map_or(0, |status| status["parents"].as_array().unwrap().len())
}

#[test]
fn a_v1_pool_has_an_entry_per_gateway_that_leads_to_it() {
    let status = status::changed_pool(&pool(v1_pool()), &routed(&[v1_route()]), &Value::Null, NOW).unwrap();
    expect![[r#"
        {
          "parents": [
            {
              "parentRef": {
                "group": "gateway.networking.k8s.io",
                "kind": "Gateway",
                "namespace": "default",
                "name": "ours"
              },
              "controllerName": "gateway.envoyproxy.io/gatewayclass-controller",
              "conditions": [
                {
                  "type": "Accepted",
                  "status": "True",
                  "reason": "Accepted",
                  "message": "the Gateway routes to the pool",
                  "lastTransitionTime": "2026-01-01T00:00:00Z",
                  "observedGeneration": 3
                },
                {
                  "type": "ResolvedRefs",
                  "status": "False",
                  "reason": "InvalidExtensionRef",
                  "message": "there is no Service default/ext-proc",
                  "lastTransitionTime": "2026-01-01T00:00:00Z",
                  "observedGeneration": 3
                }
              ]
            }
          ]
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&status).unwrap());
}

#[test]
fn a_v1alpha2_pool_has_its_own_field_and_a_managed_picker() {
    let route = route("default", &["ours"], "inference.networking.x-k8s.io");
    // The API's default, until a controller comes.
    let waiting = json!({ "parent": [{ "parentRef": { "kind": "Status", "name": "default" } }] });
    let status = status::changed_pool(&pool(alpha_pool()), &routed(&[route]), &waiting, NOW).unwrap();
    let parents = status["parent"].as_array().unwrap();
    assert_eq!(parents.len(), 1);
    assert_eq!(parents[0]["parentRef"]["name"], "ours");
    assert_eq!(parents[0].get("controllerName"), None);
    let resolved = &parents[0]["conditions"][1];
    assert_eq!(
        (resolved["type"].as_str(), resolved["status"].as_str()),
        (Some("ResolvedRefs"), Some("True"))
    );
}

#[test]
fn a_pool_without_a_picker_is_not_accepted() {
    let mut bare = v1_pool();
    bare["spec"].as_object_mut().unwrap().remove("endpointPickerRef");
    let conditions = |value: Value| {
        let status = status::changed_pool(&pool(value), &routed(&[v1_route()]), &Value::Null, NOW).unwrap();
        let conditions = status["parents"][0]["conditions"].clone();
        [0, 1].map(|idx| (conditions[idx]["status"].clone(), conditions[idx]["reason"].clone()))
    };
    let [accepted, resolved] = conditions(bare);
    assert_eq!(accepted, (json!("False"), json!("EndpointPickerRefMissing")));
    assert_eq!(resolved, (json!("True"), json!("ResolvedRefs")));
    // Control: with a reference it is accepted, also if there is no such Service.
    let [accepted, resolved] = conditions(v1_pool());
    assert_eq!(accepted, (json!("True"), json!("Accepted")));
    assert_eq!(resolved, (json!("False"), json!("InvalidExtensionRef")));
}

#[test]
fn a_pool_has_an_entry_for_each_gateway_and_loses_each_with_its_route() {
    let mut second_gateway = routed(&[]).gateways[0].clone();
    second_gateway.meta.name = "second".to_owned();
    let with_routes = |routes: &[Value]| {
        let mut facts = routed(routes);
        facts.gateways.push(second_gateway.clone());
        facts
    };
    let mut other = route("default", &["second"], "inference.networking.k8s.io");
    other["metadata"]["name"] = "other".into();
    let names = |status: &Value| -> Vec<String> {
        let parents = status["parents"].as_array().unwrap().iter();
        parents.map(|parent| parent["parentRef"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let pool = pool(v1_pool());
    let both =
        status::changed_pool(&pool, &with_routes(&[v1_route(), other.clone()]), &Value::Null, NOW).unwrap();
    assert_eq!(names(&both), ["ours", "second"]);
    let one = status::changed_pool(&pool, &with_routes(&[other]), &both, LATER).unwrap();
    assert_eq!(names(&one), ["second"]);
    assert_eq!(one["parents"][0]["conditions"][0]["lastTransitionTime"], NOW);
    let none = status::changed_pool(&pool, &with_routes(&[]), &one, LATER).unwrap();
    assert_eq!(names(&none), Vec::<String>::new());
    // Control: a pool to which nothing ever led gets no status.
    assert_eq!(status::changed_pool(&pool, &with_routes(&[]), &Value::Null, NOW), None);
}

#[test]
fn only_a_route_to_this_pool_counts() {
    assert_eq!(n_parents(&routed(&[v1_route()])), 1);
    assert_eq!(n_parents(&routed(&[])), 0);
    let other_group = route("default", &["ours"], "inference.networking.x-k8s.io");
    assert_eq!(n_parents(&routed(&[other_group])), 0);
    let mut other_pool = v1_route();
    other_pool["spec"]["rules"][0]["backendRefs"][0]["name"] = "other".into();
    assert_eq!(n_parents(&routed(&[other_pool])), 0);
    // Two rules, two routes: still one Gateway.
    let mut second = v1_route();
    second["metadata"]["name"] = "second".into();
    assert_eq!(n_parents(&routed(&[v1_route(), second])), 1);
}

#[test]
fn a_route_of_another_namespace_needs_a_grant() {
    let route = route("other", &["ours"], "inference.networking.k8s.io");
    let grant = |namespace: &str, from: &str, to: Value| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1beta1",
            "kind": "ReferenceGrant",
            "metadata": { "name": "grant", "namespace": namespace },
            "spec": {
                "from": [{ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": from }],
                "to": [to],
            },
        })
    };
    let to =
        |group: &str, name: Option<&str>| json!({ "group": group, "kind": "InferencePool", "name": name });
    let v1 = "inference.networking.k8s.io";
    let n = |grant: Value| n_parents(&routed(&[route.clone(), grant]));
    assert_eq!(n_parents(&routed(std::slice::from_ref(&route))), 0);
    assert_eq!(n(grant("default", "other", to(v1, None))), 1);
    assert_eq!(n(grant("default", "other", to(v1, Some("qwen")))), 1);
    // Controls: each of its fields counts.
    assert_eq!(n(grant("default", "other", to(v1, Some("another")))), 0);
    assert_eq!(n(grant("default", "other", to("inference.networking.x-k8s.io", None))), 0);
    assert_eq!(n(grant("default", "third", to(v1, None))), 0);
    assert_eq!(n(grant("other", "other", to(v1, None))), 0);
    assert_eq!(n(grant("default", "other", json!({ "group": "", "kind": "Service" }))), 0);
}

#[test]
fn a_status_is_written_only_when_it_changes() {
    let pool = pool(v1_pool());
    let facts = routed(&[v1_route()]);
    let first = status::changed_pool(&pool, &facts, &Value::Null, NOW).unwrap();
    assert_eq!(status::changed_pool(&pool, &facts, &first, LATER), None);
    // The picker appears: its condition gets a new time, the other one keeps its own.
    let found = Facts { services: [ObjectKey::new("default", "ext-proc")].into(), ..facts };
    let second = status::changed_pool(&pool, &found, &first, LATER).unwrap();
    let time = |idx: usize| second["parents"][0]["conditions"][idx]["lastTransitionTime"].clone();
    assert_eq!((time(0), time(1)), (json!(NOW), json!(LATER)));
    assert_eq!(second["parents"][0]["conditions"][1]["status"], "True");
    // The route goes, and the entry with it.
    assert_eq!(status::changed_pool(&pool, &routed(&[]), &second, LATER), Some(json!({ "parents": [] })));
}

#[test]
fn entries_of_other_controllers_stay() {
    let foreign = json!({
        "parentRef": { "kind": "Gateway", "namespace": "default", "name": "theirs" },
        "controllerName": "example.com/controller",
        "conditions": [],
    });
    let current = json!({ "parents": [foreign.clone()] });
    let status = status::changed_pool(&pool(v1_pool()), &routed(&[v1_route()]), &current, NOW).unwrap();
    assert_eq!(status["parents"][0], foreign);
    assert_eq!(status["parents"].as_array().unwrap().len(), 2);
    assert_eq!(status::changed_pool(&pool(v1_pool()), &routed(&[]), &current, NOW), None);
}

#[test]
fn a_model_says_who_has_its_name() {
    let Object::InferenceModel(model) = object(json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
        "kind": "InferenceModel",
        "metadata": { "name": "m", "namespace": "default", "generation": 2 },
        "spec": { "modelName": "m", "poolRef": { "name": "qwen" } },
    })) else {
        panic!("no model")
    };
    let winner = ObjectKey::new("default", "older");
    let first =
        status::changed_model(&model, &accepted::name_in_use("m", &winner), &Value::Null, NOW).unwrap();
    expect![[r#"
        {
          "conditions": [
            {
              "type": "Accepted",
              "status": "False",
              "reason": "ModelNameInUse",
              "message": "modelName m belongs to InferenceModel default/older, which is older",
              "lastTransitionTime": "2026-01-01T00:00:00Z",
              "observedGeneration": 2
            }
          ]
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&first).unwrap());
    let again = status::changed_model(&model, &accepted::name_in_use("m", &winner), &first, LATER);
    assert_eq!(again, None);
    let served = status::changed_model(&model, &accepted::yes(), &first, LATER).unwrap();
    assert_eq!(served["conditions"][0]["lastTransitionTime"], LATER);
}
