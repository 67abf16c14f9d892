//! Objects of an API server become facts.

use controller::sweep;
use inference_api::object::ObjectKey;
use serde_json::{Value, json};

use crate::fixtures::facts;

fn service(name: &str, labels: Value, spec: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "default", "labels": labels },
        "spec": spec,
    })
}

/// A Service without a selector exists as well, and one that the controller has made is nobody else's.
#[test]
fn services_of_others_are_known_whatever_they_are() {
    let mut facts = facts();
    let external = json!({ "type": "ExternalName", "externalName": "example.com" });
    facts.add(service("theirs", json!({}), external)).unwrap();
    facts.add(service("ours", json!({ sweep::MANAGED_BY: sweep::MANAGER }), json!({}))).unwrap();
    assert_eq!(facts.services, [ObjectKey::new("default", "theirs")].into());
}

#[test]
fn an_object_that_breaks_a_rule_is_an_error_and_others_are_passed_over() {
    let mut facts = facts();
    let before = facts.clone();
    facts.add(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" } })).unwrap();
    let bad = json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
        "kind": "InferenceModel",
        "metadata": { "name": "m", "namespace": "default" },
        "spec": { "modelName": "", "poolRef": { "name": "qwen" } },
    });
    let error = facts.add(bad).unwrap_err().to_string();
    assert!(error.contains("InferenceModel default/m") && error.contains("modelName"), "{error}");
    assert_eq!(facts, before);
}
