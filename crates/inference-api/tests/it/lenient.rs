//! Objects as people and API servers have them. The strict reader must refuse what only the lenient one takes.

use inference_api::field::FieldError;
use inference_api::keys;
use inference_api::kinds::{Object, ReadError};
use inference_api::lenient::{Lenient, read};
use inference_api::manifest::parse;
use inference_api::object::ObjectKey;
use inference_api::pool::{AppProtocol, Criticality, FailureMode, InferencePool, PickerRef, PoolVersion};
use serde_json::{Value, json};

/// Metadata with everything that a server and its clients write.
fn metadata(name: &str) -> Value {
    json!({
        "name": name, "namespace": "ai", "uid": "5d0f", "resourceVersion": "718", "generation": 3,
        "creationTimestamp": "2026-01-02T03:04:05Z", "deletionTimestamp": null, "selfLink": "/apis/x",
        "labels": null, "annotations": { "a": "b" }, "finalizers": ["example.com/x"],
        "ownerReferences": [ { "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": "1" } ],
        "managedFields": [ { "manager": "kubectl", "fieldsV1": { "f:spec": {} } } ],
    })
}

fn pool_v1() -> Value {
    json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": metadata("pool"),
        "spec": {
            "selector": { "matchLabels": { "app": "qwen" }, "matchExpressions": null },
            "targetPorts": [ { "number": 8000, "name": "http" }, { "number": 8001 } ],
            "appProtocol": "http",
            "endpointPickerRef": {
                "group": "", "kind": "Service", "name": "picker", "port": { "number": 9100 }, "failureMode": null,
            },
        },
        "status": { "parents": [ { "parentRef": { "name": "gateway" }, "conditions": [] } ] },
    })
}

fn pool_v1alpha2() -> Value {
    json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool", "metadata": metadata("pool"),
        "spec": {
            "selector": { "app": "qwen" }, "targetPortNumber": 8000,
            "extensionRef": { "name": "picker", "portNumber": null, "failureMode": "FailOpen", "timeout": "1s" },
        },
        "status": null,
    })
}

fn model() -> Value {
    json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModel", "metadata": metadata("model"),
        "spec": {
            "modelName": "/model/qwen", "criticality": null, "poolRef": { "name": "pool", "namespace": "ai" },
            "targetModels": [ { "name": "a", "weight": null, "headers": { "a": "b" } } ],
        },
    })
}

fn picker(pool: &InferencePool) -> &PickerRef {
    pool.picker.as_ref().unwrap()
}

fn pool_of(value: Value) -> InferencePool {
    match read(value).unwrap().object {
        Object::InferencePool(pool) => pool,
        other => panic!("a pool, not {other:?}"),
    }
}

/// Paths of the fields that are left out.
fn unknown(value: Value) -> Vec<String> {
    read(value).unwrap().unknown.into_iter().map(|field| field.path).collect()
}

/// Sets the field at `pointer`, or removes it if `value` is null.
fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(map), Value::Null) => drop(map.shift_remove(field)),
        (parent, value) => parent[field] = value,
    }
    object
}

fn check_error(object: Value, field: &str, what: &str) {
    let (kind, name) = (object["kind"].clone(), object["metadata"]["name"].clone());
    let Err(ReadError::Object(error)) = read(object) else {
        panic!("{field} is refused");
    };
    assert_eq!(error.error, FieldError { field: field.to_owned(), what: what.to_owned() });
    assert_eq!((Value::from(error.kind), error.key.namespace.as_str()), (kind, "ai"));
    assert_eq!(Value::from(error.key.name), name);
}

#[test]
fn both_versions_of_a_pool_are_read_with_all_that_a_server_adds() {
    let new = pool_of(pool_v1());
    assert_eq!((new.version, new.target_ports.as_slice()), (PoolVersion::V1, [8000, 8001].as_slice()));
    assert_eq!((picker(&new).port, new.failure_mode()), (9100, FailureMode::FailClose));
    assert_eq!(new.key(), ObjectKey::new("ai", "pool"));
    assert_eq!(new.meta.creation_timestamp.as_deref(), Some("2026-01-02T03:04:05Z"));
    let old = pool_of(pool_v1alpha2());
    assert_eq!((old.version, old.target_ports.as_slice()), (PoolVersion::V1Alpha2, [8000].as_slice()));
    assert_eq!((picker(&old).port, old.failure_mode()), (9002, FailureMode::FailOpen));
}

#[test]
fn a_null_is_a_field_that_is_not_set() {
    let Object::InferenceModel(model) = read(model()).unwrap().object else {
        panic!("a model");
    };
    assert_eq!((model.criticality, model.target_models[0].weight), (Criticality::Standard, None));
    check_error(
        with(pool_v1(), "/spec/selector/matchLabels", Value::Null),
        "spec.selector",
        "missing field `matchLabels`",
    );
    let mut nothing = pool_v1();
    nothing["spec"]["targetPorts"] = Value::Null;
    check_error(nothing, "spec", "missing field `targetPorts`");
}

#[test]
fn a_null_among_labels_is_a_value_and_refused() {
    let mut null_label = pool_v1alpha2();
    null_label["spec"]["selector"]["role"] = Value::Null;
    check_error(null_label, "spec.selector.role", "invalid type: null, expected a string");
}

#[test]
fn fields_without_effect_are_named_outermost_first_and_metadata_is_not() {
    assert_eq!(unknown(pool_v1()), ["spec.targetPorts[0].name"]);
    assert_eq!(unknown(pool_v1alpha2()), ["spec.extensionRef.timeout"]);
    assert_eq!(unknown(model()), ["spec.poolRef.namespace", "spec.targetModels[0].headers"]);
}

#[test]
fn what_asks_for_nothing_is_not_named() {
    let mut pool = pool_v1alpha2();
    let named = json!({ "a": 1 });
    for (field, value) in [("none", Value::Null), ("map", json!({})), ("list", json!([])), ("named", named)] {
        pool["spec"][field] = value;
    }
    assert_eq!(unknown(pool), ["spec.extensionRef.timeout", "spec.named"]);
}

/// `kubectl create --dry-run` and `kubectl get` write these into every template.
#[test]
fn the_metadata_of_a_template_asks_for_nothing() {
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata("pods"), "status": { "replicas": 1 },
        "spec": {
            "selector": { "matchLabels": { "app": "a" } }, "strategy": {}, "revisionHistoryLimit": 10,
            "template": {
                "metadata": { "creationTimestamp": null, "labels": { "app": "a" }, "name": "a", "uid": "1" },
                "spec": { "containers": [ { "name": "engine", "resources": {}, "stdin": true } ] },
            },
        },
    });
    assert_eq!(unknown(deployment), ["spec.revisionHistoryLimit", "spec.template.spec.containers[0].stdin"]);
}

#[test]
fn every_kind_of_workload_is_replicas_of_a_template() {
    let pods = json!({ "containers": [ { "name": "engine" } ] });
    let template = json!({ "metadata": { "labels": { "app": "a" } }, "spec": pods });
    let replicated =
        json!({ "replicas": 2, "selector": { "matchLabels": { "app": "a" } }, "template": template });
    let groups = json!({ "replicas": 3, "leaderWorkerTemplate": { "size": 2, "workerTemplate": template } });
    for (api_version, kind, spec, replicas) in [
        ("apps/v1", "Deployment", &replicated, 2),
        ("apps/v1", "StatefulSet", &replicated, 2),
        ("apps/v1", "ReplicaSet", &replicated, 2),
        ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", &groups, 3),
        ("v1", "Pod", &pods, 1),
    ] {
        let mut value =
            json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata("pods"), "spec": spec });
        value["metadata"]["labels"] = json!({ "app": "a" });
        let Object::Workload(workload) = read(value).unwrap().object else { panic!("{kind}") };
        assert_eq!((workload.kind.as_str(), workload.replicas), (kind, replicas));
        assert_eq!(workload.template.meta.labels["app"], "a", "{kind}");
    }
}

#[test]
fn versions_of_the_gateway_api_have_one_form() {
    for version in ["v1", "v1beta1", "v1alpha2"] {
        let gateway = json!({
            "apiVersion": format!("{}/{version}", keys::GATEWAY_GROUP), "kind": "Gateway", "metadata": metadata("g"),
            "spec": { "gatewayClassName": "c", "listeners": [] },
        });
        assert_eq!(read(gateway).unwrap().object.kind(), "Gateway");
    }
    let future = json!({ "apiVersion": format!("{}/v9", keys::GATEWAY_GROUP), "kind": "Gateway" });
    assert!(matches!(read(future), Err(ReadError::Kind { .. })));
}

#[test]
fn a_v1_pool_says_its_protocol_and_may_name_no_picker() {
    let full = pool_of(with(pool_v1(), "/spec/appProtocol", json!("kubernetes.io/h2c")));
    assert_eq!((full.app_protocol, full.picker.is_some()), (AppProtocol::H2c, true));
    let mut value = pool_v1();
    let spec = value["spec"].as_object_mut().unwrap();
    spec.remove("appProtocol");
    spec.remove("endpointPickerRef");
    let bare = pool_of(value);
    assert_eq!((bare.app_protocol, bare.picker.as_ref()), (AppProtocol::Http, None));
    assert_eq!(bare.failure_mode(), FailureMode::FailClose);
    // Control: an older pool must name one.
    let mut old = pool_v1alpha2();
    old["spec"].as_object_mut().unwrap().remove("extensionRef");
    assert!(read(old).is_err());
}

#[test]
fn the_strict_reader_refuses_what_only_the_lenient_one_takes() {
    for object in [pool_v1(), pool_v1alpha2(), model()] {
        assert!(parse(&object.to_string(), "object.json").is_err(), "{object}");
    }
}

#[test]
fn both_readers_end_in_the_same_objects() {
    let tutorial = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/doc");
    let mut n_objects = 0;
    for file in ["inference-gateway.yaml", "inference-pool.yaml"] {
        let yaml = std::fs::read_to_string(format!("{tutorial}/{file}")).unwrap();
        let values: Vec<Value> = serde_saphyr::from_multiple(&yaml).unwrap();
        for (strict, value) in parse(&yaml, file).unwrap().into_iter().zip(values) {
            assert_eq!(read(value), Ok(Lenient { object: strict, unknown: Vec::new() }));
            n_objects += 1;
        }
    }
    assert!(n_objects > 5, "{n_objects}");
}

#[test]
fn a_route_is_read_and_what_is_not_known_of_it_named() {
    let route = json!({
        "apiVersion": format!("{}/v1", keys::GATEWAY_GROUP), "kind": "HTTPRoute", "metadata": metadata("route"),
        "spec": {
            "parentRefs": [ { "name": "gateway" } ],
            "rules": [ {
                "matches": [ { "path": { "value": "/v1" }, "clientIp": "::1" } ],
                "sessionPersistence": { "type": "Cookie" },
            } ],
        },
        "status": { "parents": [ { "anything": null } ] },
    });
    assert_eq!(read(route.clone()).unwrap().object.key(), ObjectKey::new("ai", "route"));
    assert_eq!(unknown(route), ["spec.rules[0].matches[0].clientIp", "spec.rules[0].sessionPersistence"]);
}

#[test]
fn a_bad_object_is_an_error_with_its_field() {
    check_error(
        with(pool_v1(), "/spec/targetPorts", json!([{ "number": 70000 }])),
        "spec.targetPorts[0].number",
        "invalid value: integer `70000`, expected u16",
    );
    check_error(
        with(pool_v1(), "/spec/targetPorts", json!([])),
        "spec.targetPorts",
        "must list 1 to 8 ports",
    );
    check_error(
        with(pool_v1(), "/spec/targetPorts", json!([{ "number": 1 }, { "number": 2 }, { "number": 1 }])),
        "spec.targetPorts",
        "port 1 is listed twice",
    );
    check_error(
        with(pool_v1(), "/spec/appProtocol", json!("grpc")),
        "spec.appProtocol",
        "unknown variant `grpc`, expected `http` or `kubernetes.io/h2c`",
    );
    check_error(
        with(pool_v1(), "/spec/endpointPickerRef/kind", json!("Deployment")),
        "spec.endpointPickerRef.kind",
        "Deployment is not supported, a picker is a core Service",
    );
    check_error(
        with(model(), "/spec/criticality", json!("Urgent")),
        "spec.criticality",
        "unknown variant `Urgent`, expected one of `Critical`, `Standard`, `Sheddable`",
    );
    check_error(
        with(model(), "/spec/targetModels", json!([{ "name": "a", "weight": 1 }, { "name": "b" }])),
        "spec.targetModels",
        "set a weight on all of them or on none",
    );
    check_error(
        with(pool_v1alpha2(), "/spec", json!("x")),
        "spec",
        "invalid type: string \"x\", expected struct PoolSpecV1Alpha2",
    );
}

#[test]
fn what_is_no_object_of_a_known_kind_is_told_apart() {
    assert_eq!(read(json!([1])), Err(ReadError::NoKind));
    assert_eq!(read(Value::Null), Err(ReadError::NoKind));
    let role = json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role" });
    let (api_version, kind) = ("rbac.authorization.k8s.io/v1".to_owned(), "Role".to_owned());
    assert_eq!(read(role), Err(ReadError::Kind { api_version, kind }));
}
