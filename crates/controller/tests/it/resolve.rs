//! The picker of each kind of pool.

use controller::facts::Facts;
use controller::names;
use controller::resolve::{self, PickerService};
use gateway_config::attachment::{Responses, Share};
use gateway_config::xds::Trust;
use inference_api::keys;
use inference_api::kinds::Object;
use inference_api::object::ObjectKey;
use inference_api::pool::BodyMode;
use serde_json::json;

use crate::fixtures::{alpha_pool, facts, object, pool, v1_pool};

fn with_service() -> Facts {
    Facts { services: [ObjectKey::new("default", "ext-proc")].into(), ..facts() }
}

fn managed() -> PickerService {
    PickerService::Managed(ObjectKey::new("envoy-gateway-system", "epp-default-ext-proc"))
}

#[test]
fn a_v1alpha2_pool_has_a_managed_picker_unless_its_service_exists() {
    let pool = pool(alpha_pool());
    let named = PickerService::Named(ObjectKey::new("default", "ext-proc"));
    assert_eq!(resolve::picker(&pool, &facts()), managed());
    assert_eq!(resolve::picker(&pool, &with_service()), named);
    // Control: a Service of another namespace is not the pool's.
    let elsewhere = Facts { services: [ObjectKey::new("other", "ext-proc")].into(), ..facts() };
    assert_eq!(resolve::picker(&pool, &elsewhere), managed());
}

#[test]
fn a_v1_pool_has_the_picker_that_it_names_unless_it_asks_for_a_managed_one() {
    let named = ObjectKey::new("default", "ext-proc");
    assert_eq!(resolve::picker(&pool(v1_pool()), &facts()), PickerService::Missing(named.clone()));
    assert_eq!(resolve::picker(&pool(v1_pool()), &with_service()), PickerService::Named(named.clone()));
    let mut asking = v1_pool();
    asking["metadata"]["annotations"] = json!({ keys::MANAGED_PICKER: "true" });
    assert_eq!(resolve::picker(&pool(asking.clone()), &with_service()), managed());
    asking["metadata"]["annotations"] = json!({ keys::MANAGED_PICKER: "false" });
    assert_eq!(resolve::picker(&pool(asking), &with_service()), PickerService::Named(named));
}

/// A managed picker serves on its own port, whatever the pool says of the Service that it names.
#[test]
fn responses_go_past_a_managed_picker_only() {
    let ours = resolve::pool(&pool(alpha_pool()), &facts()).unwrap();
    assert_eq!((ours.responses, ours.picker.port), (Responses::Observed(Share::TWENTIETH), 9002));
    let host = "epp-default-ext-proc.envoy-gateway-system.svc".to_owned();
    assert_eq!(ours.picker.address, format!("{host}.cluster.local."));
    assert_eq!(ours.picker.trust, Trust::Authority { host, certificates: "CA".to_owned() });
    let theirs = resolve::pool(&pool(v1_pool()), &with_service()).unwrap();
    assert_eq!((theirs.responses, theirs.picker.port), (Responses::Through, 9009));
    let address = "ext-proc.default.svc.cluster.local.";
    assert_eq!(
        (theirs.picker.address.as_str(), theirs.picker.trust),
        (address, Trust::Any(BodyMode::FullDuplexStreamed))
    );
    let pods = "qwen-pods.default.svc.cluster.local.";
    assert_eq!((theirs.pods.as_str(), theirs.ports), (pods, vec![8000, 8001]));
}

#[test]
fn an_annotation_says_how_somebody_elses_picker_takes_bodies() {
    let trust = |value: Option<&str>| {
        let mut object = v1_pool();
        if let Some(value) = value {
            object["metadata"]["annotations"] = json!({ keys::PICKER_BODY_MODE: value });
        }
        resolve::pool(&pool(object), &with_service()).unwrap().picker.trust
    };
    assert_eq!(trust(Some("streamed")), Trust::Any(BodyMode::Streamed));
    for usual in [None, Some("full-duplex-streamed"), Some("buffered")] {
        assert_eq!(trust(usual), Trust::Any(BodyMode::FullDuplexStreamed), "{usual:?}");
    }
}

#[test]
fn the_responses_of_a_pool_that_renames_models_go_through_its_picker() {
    let responses = |namespace: &str, target: &str| {
        let Object::InferenceModel(model) = object(json!({
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
            "kind": "InferenceModel",
            "metadata": { "name": "m", "namespace": namespace },
            "spec": { "modelName": "m", "poolRef": { "name": "qwen" }, "targetModels": [{ "name": target }] },
        })) else {
            panic!("no model")
        };
        resolve::pool(&pool(alpha_pool()), &Facts { models: vec![model], ..facts() }).unwrap().responses
    };
    assert_eq!(responses("default", "m-v2"), Responses::Through);
    assert_eq!(responses("default", "m"), Responses::Observed(Share::TWENTIETH));
    assert_eq!(responses("other", "m-v2"), Responses::Observed(Share::TWENTIETH));
}

#[test]
fn long_names_are_cut_and_stay_different() {
    let name = |end: &str| {
        let name = names::pods_service(&ObjectKey::new("default", format!("{}{end}", "x".repeat(60)))).name;
        assert!(name.len() <= 63, "{name}");
        name
    };
    assert_ne!(name("a"), name("b"));
    assert_eq!(names::pods_service(&ObjectKey::new("ns", "qwen")), ObjectKey::new("ns", "qwen-pods"));
}

/// Every name that a resolver is given is absolute, in the cluster's own domain. A host in a certificate has no domain.
#[test]
fn names_are_complete_in_the_domain_of_the_cluster() {
    let domain = |text: &str| names::domain(text).to_owned();
    let pod = "search default.svc.example.test svc.example.test example.test\nnameserver 10.96.0.10\n";
    assert_eq!(domain(pod), "example.test");
    assert_eq!(domain("search a.svc.b. svc.b. b.\noptions ndots:5\n"), "b");
    for outside in ["", "search office.test\n", "nameserver 10.96.0.10\n"] {
        assert_eq!(domain(outside), "cluster.local", "{outside:?}");
    }
    let service = ObjectKey::new("default", "qwen-pods");
    assert_eq!(names::address(&service, "example.test"), "qwen-pods.default.svc.example.test.");
    assert_eq!(names::host(&service), "qwen-pods.default.svc");
}
