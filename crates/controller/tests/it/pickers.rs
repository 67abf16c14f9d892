//! Managed pickers: who needs one, what is around it, and what goes when nobody does.

use controller::facts::{Fact, Facts};
use controller::{pickers, sweep};
use expect_test::expect_file;
use inference_api::kinds::Object;
use inference_api::object::ObjectKey;
use inference_api::pool::InferencePool;
use serde_json::{Value, json};

use crate::fixtures::{alpha_pool, facts, pool, v1_pool};

fn named(name: &str, namespace: &str) -> InferencePool {
    let mut value = alpha_pool();
    value["metadata"]["name"] = name.into();
    value["metadata"]["namespace"] = namespace.into();
    value["metadata"]["uid"] = name.into();
    pool(value)
}

fn with(pools: impl IntoIterator<Item = InferencePool>) -> Facts {
    let mut facts = facts();
    pools.into_iter().for_each(|pool| facts.insert(Fact::Object(Box::new(Object::InferencePool(pool)))));
    facts
}

/// Everything that is made around the pickers of these pools.
fn all(pools: impl IntoIterator<Item = InferencePool>) -> Vec<Value> {
    let facts = with(pools);
    let managed = pickers::managed(&facts);
    managed.iter().flat_map(|(picker, pools)| pickers::around(picker, pools)).collect()
}

#[test]
fn pools_that_name_the_same_service_share_a_picker() {
    let facts = with([named("a", "default"), named("b", "default"), named("c", "other"), pool(v1_pool())]);
    let names: Vec<(String, usize)> =
        pickers::managed(&facts).iter().map(|(picker, pools)| (picker.to_string(), pools.len())).collect();
    let expected = [
        ("envoy-gateway-system/epp-default-ext-proc".to_owned(), 2),
        ("envoy-gateway-system/epp-other-ext-proc".to_owned(), 1),
    ];
    assert_eq!(names, expected);
    // Control: a Service that the pools name replaces the managed picker.
    let served = Facts { services: [ObjectKey::new("default", "ext-proc")].into(), ..facts };
    assert_eq!(pickers::managed(&served).len(), 1);
}

#[test]
fn a_picker_may_read_the_namespace_of_its_pools_only() {
    let objects = all([named("a", "default"), named("b", "default")]);
    let text = serde_json::to_string_pretty(&objects).unwrap() + "\n";
    expect_file!["golden/managed-picker.json"].assert_eq(&text);
}

/// Namespace and Service join to the same text for both. One picker would read the other's namespace.
#[test]
fn pickers_of_two_namespaces_never_have_one_name() {
    let (mut one, mut other) = (named("a", "x"), named("b", "x-y"));
    one.picker.as_mut().unwrap().name = "y-z".to_owned();
    other.picker.as_mut().unwrap().name = "z".to_owned();
    let names = |pools: Vec<InferencePool>| -> Vec<(String, String)> {
        let facts = with(pools);
        let managed = pickers::managed(&facts);
        managed.iter().map(|(picker, pools)| (picker.name.clone(), pools[0].meta.name.clone())).collect()
    };
    let both = names(vec![one.clone(), other.clone()]);
    assert_eq!(both[0], ("epp-x-y-z".to_owned(), "a".to_owned()));
    assert!(both[1].0.starts_with("epp-x-y-z-") && both[1].1 == "b", "{both:?}");
    assert_eq!(names(vec![other.clone(), one]), both);
    // Control: alone it has the plain name.
    assert_eq!(names(vec![other]), [("epp-x-y-z".to_owned(), "b".to_owned())]);
}

#[test]
fn what_no_pool_asks_for_is_found() {
    let both = all([named("a", "default"), named("c", "other")]);
    let one = all([named("a", "default")]);
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
