//! Managed pickers: who needs one, what is around it, and what goes when nobody does.

use controller::world::World;
use controller::{pickers, sweep};
use expect_test::expect_file;
use inference_api::object::ObjectKey;
use inference_api::pool::InferencePool;
use serde_json::{Value, json};

use crate::fixtures::{alpha_pool, pool, v1_pool, world};

fn named(name: &str, namespace: &str) -> InferencePool {
    let mut value = alpha_pool();
    value["metadata"]["name"] = name.into();
    value["metadata"]["namespace"] = namespace.into();
    value["metadata"]["uid"] = name.into();
    pool(value)
}

/// Everything that is made around the pickers of these pools.
fn all(pools: &[InferencePool], world: &World) -> Vec<Value> {
    let managed = pickers::managed(pools, world);
    managed.iter().flat_map(|(picker, pools)| pickers::around(picker, pools)).collect()
}

#[test]
fn pools_that_name_the_same_service_share_a_picker() {
    let pools = [named("a", "default"), named("b", "default"), named("c", "other"), pool(v1_pool())];
    let names: Vec<(String, usize)> = pickers::managed(&pools, &world())
        .iter()
        .map(|(picker, pools)| (picker.to_string(), pools.len()))
        .collect();
    let expected = [
        ("envoy-gateway-system/epp-default-ext-proc".to_owned(), 2),
        ("envoy-gateway-system/epp-other-ext-proc".to_owned(), 1),
    ];
    assert_eq!(names, expected);
    // Control: a Service that the pools name replaces the managed picker.
    let served = World { services: [ObjectKey::new("default", "ext-proc")].into(), ..world() };
    assert_eq!(pickers::managed(&pools, &served).len(), 1);
}

#[test]
fn a_picker_may_read_the_namespace_of_its_pools_only() {
    let objects = all(&[named("a", "default"), named("b", "default")], &world());
    let text = serde_json::to_string_pretty(&objects).unwrap() + "\n";
    expect_file!["golden/managed-picker.json"].assert_eq(&text);
}

/// The names of both pools' pickers are the same text.
#[test]
fn namespaces_that_share_a_picker_each_give_it_rights() {
    let (mut one, mut other) = (named("a", "x"), named("b", "x-y"));
    one.picker.name = "y-z".to_owned();
    other.picker.name = "z".to_owned();
    let objects = all(&[one, other], &world());
    let namespaces: Vec<&str> = objects
        .iter()
        .filter(|object| object["kind"] == "Role")
        .filter_map(|object| object["metadata"]["namespace"].as_str())
        .collect();
    assert_eq!(namespaces, ["x", "x-y"]);
    assert_eq!(objects.len(), 6, "one ServiceAccount and one Service");
}

#[test]
fn what_no_pool_asks_for_is_found() {
    let both = all(&[named("a", "default"), named("c", "other")], &world());
    let one = all(&[named("a", "default")], &world());
    let names = |wanted: &[Value]| -> Vec<String> {
        let unwanted = sweep::unwanted(&both, wanted);
        unwanted.iter().map(|object| format!("{}/{}", object["kind"], object["metadata"]["name"])).collect()
    };
    assert_eq!(names(&both), Vec::<String>::new());
    assert_eq!(names(&one).len(), 4);
    assert!(names(&one).iter().all(|name| name.contains("epp-other-ext-proc")), "{:?}", names(&one));
    assert_eq!(names(&[]).len(), 8);
}

/// A version of the API is only another form of the object.
#[test]
fn strangers_and_other_versions_are_not_swept() {
    let made = |api_version: &str, labels: Value| json!({ "apiVersion": api_version, "kind": "X", "metadata": { "name": "x", "namespace": "n", "labels": labels } });
    let ours = json!({ sweep::MANAGED_BY: sweep::MANAGER });
    let found = [made("g/v1", ours.clone()), made("g/v1", json!({})), made("g/v1", Value::Null)];
    assert_eq!(sweep::unwanted(&found, &[]), [&found[0]]);
    assert!(sweep::unwanted(&found, &[made("g/v2", ours.clone())]).is_empty());
    assert_eq!(sweep::unwanted(&found, &[made("h/v1", ours)]).len(), 1);
}
