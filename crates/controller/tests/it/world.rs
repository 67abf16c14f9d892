//! Objects of an API server become a world.

use controller::sweep;
use inference_api::object::ObjectKey;
use serde_json::{Value, json};

use crate::fixtures::world;

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
    let mut world = world();
    let external = json!({ "type": "ExternalName", "externalName": "example.com" });
    world.add(service("theirs", json!({}), external)).unwrap();
    world.add(service("ours", json!({ sweep::MANAGED_BY: sweep::MANAGER }), json!({}))).unwrap();
    assert_eq!(world.services, [ObjectKey::new("default", "theirs")].into());
}

#[test]
fn an_object_that_breaks_a_rule_is_an_error_and_others_are_passed_over() {
    let mut world = world();
    let before = world.clone();
    world.add(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" } })).unwrap();
    let bad = json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
        "kind": "InferenceModel",
        "metadata": { "name": "m", "namespace": "default" },
        "spec": { "modelName": "", "poolRef": { "name": "qwen" } },
    });
    let error = world.add(bad).unwrap_err().to_string();
    assert!(error.contains("InferenceModel default/m") && error.contains("modelName"), "{error}");
    assert_eq!(world, before);
}
