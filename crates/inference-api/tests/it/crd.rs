//! The files in `manifests/crds` are what the generator prints, and their schemas agree with the readers.

use std::collections::BTreeSet;
use std::path::PathBuf;

use inference_api::crd::{Crd, all};
use inference_api::manifest::parse;
use serde_json::{Value, json};

/// Writes the files instead of comparing them: `REGENERATE_CRDS=1 cargo test -p inference-api`.
const REGENERATE: Option<&str> = option_env!("REGENERATE_CRDS");

const BUNDLE_VERSION: &str = "inference.networking.k8s.io/bundle-version";

const HEADER: &str = "# Generated from crates/inference-api: REGENERATE_CRDS=1 cargo test -p inference-api\n";

fn path(crd: &Crd) -> PathBuf {
    let (plural, group) = crd.name().split_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    PathBuf::from(format!("{}/../../manifests/crds/{group}_{plural}.yaml", env!("CARGO_MANIFEST_DIR")))
}

fn is_printed_from(yaml: &str, manifest: &Value) -> bool {
    yaml == format!("{HEADER}{}", serde_saphyr::to_string(manifest).unwrap())
}

/// A valid object of each definition that has every field.
fn full(crd: &Crd) -> Value {
    let spec = match crd.name().as_str() {
        "inferencepools.inference.networking.x-k8s.io" => json!({
            "selector": { "app": "qwen" },
            "targetPortNumber": 8000,
            "extensionRef": { "group": "", "kind": "Service", "name": "picker", "portNumber": 9002, "failureMode": "FailOpen" },
        }),
        "inferencepools.inference.networking.k8s.io" => json!({
            "selector": { "matchLabels": { "app": "qwen" } },
            "targetPorts": [ { "number": 8000 }, { "number": 8001 } ],
            "appProtocol": "kubernetes.io/h2c",
            "endpointPickerRef": {
                "group": "", "kind": "Service", "name": "picker", "port": { "number": 9002 }, "failureMode": "FailOpen",
            },
        }),
        "inferencemodels.inference.networking.x-k8s.io" => json!({
            "modelName": "/model/qwen",
            "criticality": "Critical",
            "targetModels": [ { "name": "/model/qwen", "weight": 100 } ],
            "poolRef": { "group": "inference.networking.x-k8s.io", "kind": "InferencePool", "name": "pool" },
        }),
        "inferenceobjectives.inference.networking.x-k8s.io" => json!({
            "priority": -1,
            "poolRef": { "group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "pool" },
        }),
        "inferencemodelrewrites.inference.networking.x-k8s.io" => json!({
            "poolRef": { "group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "pool" },
            "rules": [{
                "matches": [ { "model": { "type": "Exact", "value": "alias" } } ],
                "targets": [ { "modelRewrite": "target", "weight": 100 } ],
            }],
        }),
        other => panic!("no object of {other}"),
    };
    let manifest = crd.manifest();
    let group = manifest["spec"]["group"].as_str().unwrap();
    let version = manifest["spec"]["versions"][0]["name"].as_str().unwrap();
    let kind = &manifest["spec"]["names"]["kind"];
    json!({ "apiVersion": format!("{group}/{version}"), "kind": kind, "metadata": { "name": "x" }, "spec": spec })
}

fn crd(name: &str) -> Crd {
    all().into_iter().find(|crd| crd.name().starts_with(name)).unwrap()
}

fn reader_takes(object: &Value) -> bool {
    parse(&object.to_string(), "object.json").is_ok()
}

fn schema_takes(schema: &Value, object: &Value) -> bool {
    jsonschema::draft4::new(schema).unwrap().is_valid(object)
}

/// A copy of `object` with another value at the pointer.
fn with(object: &Value, pointer: &str, value: Value) -> Value {
    let mut object = object.clone();
    *object.pointer_mut(pointer).unwrap() = value;
    object
}

/// Pointers of every struct below `schema`'s object with the names of its fields.
fn structs(schema: &Value, pointer: &str, found: &mut Vec<(String, BTreeSet<String>)>) {
    if let Some(items) = schema.get("items") {
        structs(items, &format!("{pointer}/0"), found);
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    found.push((pointer.to_owned(), properties.keys().cloned().collect()));
    for (name, property) in properties {
        structs(property, &format!("{pointer}/{name}"), found);
    }
}

/// Names that the strict reader offers in place of an unknown field at `pointer`.
fn fields_of_reader(object: &Value, pointer: &str) -> BTreeSet<String> {
    let mut object = object.clone();
    object.pointer_mut(pointer).unwrap()["?"] = Value::Bool(true);
    let message = parse(&object.to_string(), "object.json").unwrap_err().to_string();
    let offered = message.split_once(", expected ").unwrap().1;
    offered.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Objects at a limit of the API, and the same just beyond it.
fn limits() -> Vec<(Crd, &'static str, Value, Value)> {
    let targets = |n: usize| vec![json!({ "name": "a", "weight": 1 }); n];
    let ports = |n: u16| (0..n).map(|idx| json!({ "number": 8000 + idx })).collect::<Vec<_>>();
    let model = || crd("inferencemodels");
    let (v1alpha2, v1) =
        (|| crd("inferencepools.inference.networking.x"), || crd("inferencepools.inference.networking.k"));
    let (target, port) = ("/spec/targetModels", "/spec/targetPorts");
    let (objective, rewrite) = (|| crd("inferenceobjectives"), || crd("inferencemodelrewrites"));
    let rewritten = |n: usize| vec![json!({ "modelRewrite": "a", "weight": 1 }); n];
    vec![
        (model(), "/spec/modelName", json!("é".repeat(256)), json!("é".repeat(257))),
        (model(), "/spec/modelName", json!("m"), json!("")),
        (model(), target, json!(targets(10)), json!(targets(11))),
        (model(), "/spec/targetModels/0/weight", json!(1), json!(0)),
        (model(), "/spec/targetModels/0/weight", json!(1_000_000), json!(1_000_001)),
        (model(), "/spec/criticality", json!("Sheddable"), json!("Default")),
        (v1alpha2(), "/spec/targetPortNumber", json!(1), json!(0)),
        (v1alpha2(), "/spec/targetPortNumber", json!(65_535), json!(65_536)),
        (v1alpha2(), "/spec/extensionRef/portNumber", json!(1), json!(0)),
        (v1alpha2(), "/spec/extensionRef/failureMode", json!("FailClose"), json!("failClose")),
        (v1alpha2(), "/spec/extensionRef/name", json!("p"), json!("")),
        (v1alpha2(), "/spec/selector", json!({ "app": "" }), json!({})),
        (v1(), port, json!(ports(8)), json!(ports(9))),
        (v1(), port, json!(ports(1)), json!([])),
        (v1(), "/spec/targetPorts/0/number", json!(65_535), json!(65_536)),
        (v1(), "/spec/endpointPickerRef/port/number", json!(1), json!(0)),
        (v1(), "/spec/appProtocol", json!("http"), json!("https")),
        (v1(), "/spec/selector/matchLabels", json!({ "a": "b" }), json!({})),
        (objective(), "/spec/priority", json!(i32::MIN), json!(i64::from(i32::MIN) - 1)),
        (rewrite(), "/spec/rules/0/targets", json!(rewritten(10)), json!(rewritten(11))),
        (rewrite(), "/spec/rules/0/targets/0/weight", json!(1_000_000), json!(1_000_001)),
        (rewrite(), "/spec/rules/0/targets/0/modelRewrite", json!("m"), json!("")),
        (rewrite(), "/spec/rules/0/matches/0/model/value", json!("m"), json!("")),
        (rewrite(), "/spec/rules/0/matches/0/model/type", json!("Exact"), json!("Prefix")),
    ]
}

/// Limits on which the schema that `change` makes and the reader disagree.
fn disagreements(change: impl Fn(Value) -> Value) -> Vec<&'static str> {
    let mut found = Vec::new();
    for (crd, pointer, at, beyond) in limits() {
        let (object, schema) = (full(&crd), change(crd.schema()));
        for object in [with(&object, pointer, at), with(&object, pointer, beyond)] {
            if schema_takes(&schema, &object) != reader_takes(&object) {
                found.push(pointer);
            }
        }
    }
    found
}

#[test]
fn the_files_are_what_the_generator_prints() {
    for crd in all() {
        let path = path(&crd);
        if REGENERATE.is_some() {
            let yaml = serde_saphyr::to_string(&crd.manifest()).unwrap();
            std::fs::write(&path, format!("{HEADER}{yaml}")).unwrap();
        }
        let yaml = std::fs::read_to_string(&path).unwrap();
        let name = crd.name();
        assert!(is_printed_from(&yaml, &crd.manifest()), "{name} differs: REGENERATE_CRDS=1 cargo test");
        let read_back: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(read_back, crd.manifest(), "{name} survives YAML");
    }
}

/// Upstream's conformance suite asks for the annotation, and takes no two releases.
#[test]
fn a_definition_of_upstreams_release_names_it() {
    let bundle = |crd: &Crd| crd.manifest()["metadata"]["annotations"].get(BUNDLE_VERSION).cloned();
    let named: Vec<String> = all().iter().filter(|crd| bundle(crd).is_some()).map(Crd::name).collect();
    assert_eq!(named, ["inferencepools.inference.networking.k8s.io"]);
    assert_eq!(bundle(&crd("inferencepools.inference.networking.k")), Some(json!("v1.6.0")));
}

#[test]
fn a_changed_limit_is_a_changed_file() {
    let crd = crd("inferencemodels");
    let mut manifest = crd.manifest();
    let max_items =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/targetModels/maxItems";
    *manifest.pointer_mut(max_items).unwrap() = json!(11);
    let yaml = std::fs::read_to_string(path(&crd)).unwrap();
    assert!(!is_printed_from(&yaml, &manifest));
}

#[test]
fn a_schema_has_the_fields_that_the_reader_has() {
    for crd in all() {
        let object = full(&crd);
        assert!(reader_takes(&object), "{object}");
        let (schema, mut found) = (crd.schema(), Vec::new());
        structs(&schema["properties"]["spec"], "/spec", &mut found);
        assert!(found.len() > 1, "{}", crd.name());
        for (pointer, fields) in found {
            assert_eq!(fields_of_reader(&object, &pointer), fields, "{} {pointer}", crd.name());
        }
    }
}

#[test]
fn a_schema_requires_what_the_reader_requires() {
    for crd in all() {
        let (object, schema, mut found) = (full(&crd), crd.schema(), Vec::new());
        structs(&schema["properties"]["spec"], "/spec", &mut found);
        for (pointer, field) in
            found.iter().flat_map(|(at, fields)| fields.iter().map(move |field| (at, field)))
        {
            let mut without = object.clone();
            without.pointer_mut(pointer).unwrap().as_object_mut().unwrap().shift_remove(field);
            assert_eq!(schema_takes(&schema, &without), reader_takes(&without), "{pointer}/{field}");
        }
    }
}

#[test]
fn a_schema_and_the_reader_have_the_same_limits() {
    assert_eq!(disagreements(|schema| schema), Vec::<&str>::new());
    for (crd, pointer, at, beyond) in limits() {
        let object = full(&crd);
        assert!(reader_takes(&with(&object, pointer, at)), "{pointer}");
        assert!(!reader_takes(&with(&object, pointer, beyond)), "{pointer}");
    }
}

#[test]
fn a_schema_with_another_limit_disagrees_with_the_reader() {
    let raised = |keyword: &'static str, from: Value, to: Value| {
        disagreements(move |schema| {
            let text = schema.to_string();
            let change = |value: &Value| format!("\"{keyword}\":{value}");
            serde_json::from_str(&text.replace(&change(&from), &change(&to))).unwrap()
        })
    };
    assert_eq!(raised("maxItems", json!(10), json!(11)), ["/spec/targetModels", "/spec/rules/0/targets"]);
    let weights = ["/spec/targetModels/0/weight", "/spec/rules/0/targets/0/weight"];
    assert_eq!(raised("maximum", json!(1_000_000), json!(2_000_000)), weights);
    assert_eq!(raised("maxLength", json!(256), json!(300)), ["/spec/modelName"]);
    assert_eq!(raised("maxItems", json!(8), json!(9)), ["/spec/targetPorts"]);
}

#[test]
fn rules_on_two_values_are_cel() {
    let rules = |crd: &Crd, pointer: &str| {
        let schema = crd.schema();
        let field = schema.pointer(pointer).unwrap();
        field["x-kubernetes-validations"][0]["rule"].as_str().unwrap().to_owned()
    };
    let (model, pool) = (crd("inferencemodels"), crd("inferencepools.inference.networking.k"));
    assert_eq!(rules(&model, "/properties/spec/properties/modelName"), "self == oldSelf");
    let weights = rules(&model, "/properties/spec/properties/targetModels");
    assert!(weights.contains("has(model.weight)"), "{weights}");
    let unique = rules(&pool, "/properties/spec/properties/targetPorts");
    assert!(unique.contains("exists_one"), "{unique}");
}
