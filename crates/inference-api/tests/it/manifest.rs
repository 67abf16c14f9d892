//! Each test parses one text; errors are compared as a whole, because users read them.

use std::time::Duration;

use expect_test::{Expect, expect};
use inference_api::gateway::parse_duration;
use inference_api::keys;
use inference_api::kinds::Object;
use inference_api::manifest::parse;
use inference_api::model_rewrite::renames;
use inference_api::object::ObjectKey;
use inference_api::pool::{BodyMode, Criticality, FailureMode, InferencePool, PoolVersion, RoutingStrategy};
use inference_api::traffic::parse_bytes;

const POOL: &str = "
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata:
  annotations:
    inference.networking.x-k8s.io/routing-strategy: \"PREFIX_CACHE\"
  name: vllm-qwen-pool
spec:
  targetPortNumber: 8000
  selector:
    app: qwen
  extensionRef:
    name: inference-gateway-ext-proc
";

const POOL_V1: &str = "
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: { name: pool, namespace: ai }
spec:
  targetPorts: [ { number: 8000 }, { number: 8001 } ]
  selector: { matchLabels: { app: qwen } }
  endpointPickerRef: { name: picker, port: { number: 9100 }, failureMode: FailOpen }
";

const MODEL: &str = "
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: { name: inferencemodel-qwen }
spec:
  modelName: /model/qwen
  criticality: Critical
  poolRef: { group: inference.networking.x-k8s.io, kind: InferencePool, name: vllm-qwen-pool }
  targetModels: [ { name: /model/qwen, weight: 100 } ]
";

fn pool(yaml: &str) -> InferencePool {
    match parse(yaml, "pool.yaml").unwrap().remove(0) {
        Object::InferencePool(pool) => pool,
        other => panic!("a pool, not {other:?}"),
    }
}

fn check_error(yaml: &str, expected: Expect) {
    expected.assert_eq(&parse(yaml, "some.yaml").unwrap_err().to_string());
}

#[test]
fn both_versions_of_a_pool_have_one_form() {
    let old = pool(POOL);
    assert_eq!((old.version, old.target_ports.as_slice()), (PoolVersion::V1Alpha2, [8000].as_slice()));
    assert_eq!((old.picker.as_ref().unwrap().port, old.failure_mode()), (9002, FailureMode::FailClose));
    assert_eq!(old.key().to_string(), "default/vllm-qwen-pool");
    let new = pool(POOL_V1);
    assert_eq!((new.version, new.target_ports.as_slice()), (PoolVersion::V1, [8000, 8001].as_slice()));
    assert_eq!((new.picker.as_ref().unwrap().port, new.failure_mode()), (9100, FailureMode::FailOpen));
    assert_eq!(old.selector, new.selector);
}

#[test]
fn the_annotation_chooses_the_strategy() {
    assert_eq!(pool(POOL).routing_strategy(), Ok(RoutingStrategy::PrefixCache));
    assert_eq!(pool(POOL_V1).routing_strategy(), Ok(RoutingStrategy::Default));
    assert_eq!(
        pool(&POOL.replace("PREFIX_CACHE", "DEFAULT")).routing_strategy(),
        Ok(RoutingStrategy::Default)
    );
    assert_eq!(
        pool(&POOL.replace("PREFIX_CACHE", "prefix")).routing_strategy(),
        Err("prefix".to_owned()),
        "an unknown value is told, not guessed"
    );
}

#[test]
fn the_annotation_says_how_somebody_elses_picker_takes_bodies() {
    let mode = |value: &str| {
        let annotation = format!("namespace: ai, annotations: {{ \"{}\": {value} }}", keys::PICKER_BODY_MODE);
        pool(&POOL_V1.replacen("namespace: ai", &annotation, 1)).picker_body_mode()
    };
    assert_eq!(pool(POOL_V1).picker_body_mode(), Ok(None));
    for known in [BodyMode::Streamed, BodyMode::FullDuplexStreamed] {
        assert_eq!(mode(known.as_str()), Ok(Some(known)));
    }
    assert_eq!(mode("buffered"), Err("buffered".to_owned()));
}

/// The controls are a name that stays, and pools of another name or namespace.
#[test]
fn a_pool_renames_models_if_an_object_of_its_own_does() {
    let group = "inference.networking.x-k8s.io/v1alpha2";
    let object = |kind: &str, spec: &str| {
        let text = format!(
            "apiVersion: {group}\nkind: {kind}\nmetadata: {{ name: o }}\nspec: {{ poolRef: {{ name: p }}, {spec} }}\n"
        );
        parse(&text, "some.yaml").unwrap().remove(0)
    };
    let model = |target: &str| {
        let spec = format!("modelName: m, targetModels: [ {{ name: {target} }} ]");
        let Object::InferenceModel(model) = object("InferenceModel", &spec) else { panic!("a model") };
        model
    };
    let rewrite = |target: &str| {
        let matches = "matches: [ { model: { value: m } } ]";
        let spec = format!("rules: [ {{ {matches}, targets: [ {{ modelRewrite: {target} }} ] }} ]");
        let Object::InferenceModelRewrite(rewrite) = object("InferenceModelRewrite", &spec) else {
            panic!("a rewrite")
        };
        rewrite
    };
    for (namespace, name, target, expected) in [
        ("default", "p", "m-v2", true),
        ("default", "p", "m", false),
        ("default", "q", "m-v2", false),
        ("other", "p", "m-v2", false),
    ] {
        let pool = ObjectKey::new(namespace, name);
        assert_eq!(renames(&pool, [&model(target)], []), expected, "a model: {pool} {target}");
        assert_eq!(renames(&pool, [], [&rewrite(target)]), expected, "a rewrite: {pool} {target}");
    }
}

#[test]
fn a_model_names_its_pool_and_targets() {
    let Object::InferenceModel(model) = parse(MODEL, "model.yaml").unwrap().remove(0) else {
        panic!("a model");
    };
    assert_eq!(model.model_name, "/model/qwen");
    assert_eq!(model.pool, ObjectKey::new("default", "vllm-qwen-pool"));
    assert_eq!(model.criticality, Criticality::Critical);
    assert_eq!(model.target_models[0].weight, Some(100));
}

#[test]
fn several_documents_keep_their_order_and_empty_ones_are_skipped() {
    let objects = parse(&format!("---\n{POOL}\n---\n---\n{MODEL}"), "both.yaml").unwrap();
    let kinds: Vec<&str> = objects.iter().map(Object::kind).collect();
    assert_eq!(kinds, ["InferencePool", "InferenceModel"]);
}

#[test]
fn errors_name_file_document_object_and_field() {
    check_error(
        &POOL.replace("  selector:", "  selektor: { app: qwen }\n  selector:"),
        expect![
            "some.yaml, document 1, InferencePool default/vllm-qwen-pool: spec.selektor: field is not supported: `selektor`, expected one of `selector`, `targetPortNumber`, `extensionRef`"
        ],
    );
    check_error(
        &POOL.replace("8000", "eight"),
        expect![[
            r#"some.yaml, document 1, InferencePool default/vllm-qwen-pool: spec.targetPortNumber: invalid type: string "eight", expected u16"#
        ]],
    );
    check_error(
        &format!("{POOL}---\napiVersion: v1\nkind: Event\nmetadata: {{ name: x }}\n"),
        expect!["some.yaml, document 2: kind Event of v1 is not supported"],
    );
    check_error("a: 1", expect!["some.yaml, document 1: no apiVersion or no kind: not a Kubernetes object"]);
    check_error(
        &MODEL.replace("weight: 100 } ]", "weight: 100 }, { name: b } ]"),
        expect![
            "some.yaml, document 1, InferenceModel default/inferencemodel-qwen: spec.targetModels: set a weight on all of them or on none"
        ],
    );
    check_error(
        &POOL.replace("app: qwen", "{}"),
        expect![
            "some.yaml, document 1, InferencePool default/vllm-qwen-pool: spec.selector: an empty selector selects no pod"
        ],
    );
}

/// YAML forbids the tabs.
#[test]
fn json_is_read_too() {
    let json = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}"#.replace(": ", ":\t");
    assert_eq!(parse(&format!("\t{json}"), "a.json").unwrap()[0].kind(), "Namespace");
    assert!(parse(&format!("\t{json}}}"), "a.json").is_err());
}

#[test]
fn quantities_are_those_of_kubernetes() {
    for (text, bytes) in [("32768", 32_768), ("50Mi", 50 << 20), ("1k", 1000), ("1Gi", 1 << 30)] {
        assert_eq!(parse_bytes(text), Ok(bytes));
    }
    for bad in ["", "Mi", "1.5Gi", "8Gi", "-1", "1m", "1 Mi"] {
        assert!(parse_bytes(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn yaml_that_is_none_is_an_error_and_not_a_panic() {
    let message = parse("a: [1, 2", "broken.yaml").unwrap_err().to_string();
    assert!(message.starts_with("broken.yaml: not valid YAML"), "{message}");
}

#[test]
fn durations_are_those_of_the_gateway_api() {
    assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
    assert_eq!(parse_duration("1m30s250ms"), Ok(Duration::from_millis(90_250)));
    for bad in ["", "1", "h", "1d", "-1s", "123456s", "1.5h"] {
        assert!(parse_duration(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn objectives_and_rewrites_are_read_in_both_groups() {
    for group in ["inference.networking.x-k8s.io", "llm-d.ai"] {
        let object = |kind: &str, spec: &str| {
            let head = format!("apiVersion: {group}/v1alpha2\nkind: {kind}\nmetadata: {{ name: o }}\n");
            format!("{head}spec: {{ poolRef: {{ name: p }}, {spec} }}\n")
        };
        let objects = object("InferenceObjective", "priority: -2")
            + "---\n"
            + &object("InferenceModelRewrite", "rules: [ { targets: [ { modelRewrite: m, weight: 2 } ] } ]");
        match parse(&objects, "some.yaml").unwrap().as_slice() {
            [Object::InferenceObjective(objective), Object::InferenceModelRewrite(rewrite)] => {
                let pool = ObjectKey::new("default", "p");
                assert_eq!((objective.priority, &objective.pool, &rewrite.pool), (-2, &pool, &pool));
                assert_eq!((rewrite.rules[0].models.len(), &*rewrite.rules[0].targets[0].name), (0, "m"));
            }
            other => panic!("{other:?}"),
        }
    }
    let rewrite = |rule: &str| {
        format!(
            "apiVersion: llm-d.ai/v1alpha2\nkind: InferenceModelRewrite\nmetadata: {{ name: w }}\nspec: {{ poolRef: {{ name: p \
             }}, rules: [ {{ {rule} }} ] }}\n"
        )
    };
    check_error(
        &rewrite("targets: [ { modelRewrite: '' } ]"),
        expect![
            "some.yaml, document 1, InferenceModelRewrite default/w: spec.rules[0].targets[0].modelRewrite: an empty name is not the name of a model"
        ],
    );
    check_error(
        &rewrite("targets: [ { modelRewrite: m, weight: 0 } ]"),
        expect![
            "some.yaml, document 1, InferenceModelRewrite default/w: spec.rules[0].targets: weight 0 is not in 1..=1000000"
        ],
    );
    check_error(
        &rewrite("targets: [ { modelRewrite: m, weight: 1 }, { modelRewrite: n } ]"),
        expect![
            "some.yaml, document 1, InferenceModelRewrite default/w: spec.rules[0].targets: set a weight on all of them or on none"
        ],
    );
    check_error(
        &rewrite("matches: [ { model: { value: '' } } ]"),
        expect![
            "some.yaml, document 1, InferenceModelRewrite default/w: spec.rules[0].matches[0].model.value: an empty name is not the name of a model"
        ],
    );
    check_error(
        &rewrite("matches: [ { model: { type: Prefix, value: m } } ]"),
        expect![
            "some.yaml, document 1, InferenceModelRewrite default/w: spec.rules[0].matches[0].model.type: unknown variant `Prefix`, expected `Exact`"
        ],
    );
    check_error(
        "apiVersion: llm-d.ai/v1alpha2\nkind: InferenceObjective\nmetadata: { name: o }\nspec: { poolRef: { kind: Service, name: p } }\n",
        expect![
            "some.yaml, document 1, InferenceObjective default/o: spec.poolRef.kind: Service is not InferencePool"
        ],
    );
}
