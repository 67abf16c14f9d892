//! Pods of small manifests: which run, by which command, and what is noted.

use super::Desired;
use crate::cluster::Strictness;
use crate::cluster::manifests::Manifests;
use crate::cluster::picker_choice::PickerChoice;

/// A Gateway, a route and a v1 pool of the pods with the label `app: a`, each in JSON.
const POOL: [&str; 3] = [
    r#"{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "g"},
            "spec": {"gatewayClassName": "eg", "listeners": [{"name": "http", "protocol": "HTTP", "port": 80}]}}"#,
    r#"{"apiVersion": "gateway.networking.k8s.io/v1beta1", "kind": "HTTPRoute", "metadata": {"name": "r"},
            "spec": {"parentRefs": [{"name": "g"}], "rules": [{"backendRefs": [
                {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": "p"}]}]}}"#,
    r#"{"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "p"},
            "spec": {"selector": {"matchLabels": {"app": "a"}}, "targetPorts": [{"number": 8000}],
                "endpointPickerRef": {"name": "epp", "port": {"number": 9002}}}}"#,
];
const VLLM: &str =
    "{name: vllm, image: vllm/vllm-openai, args: [--model, m], ports: [{containerPort: 8000}]}";

fn manifests(text: String) -> Manifests {
    let mut manifests = Manifests::default();
    manifests.files.insert("all.yaml".to_owned(), text);
    manifests
}

fn deployment(name: &str, label: &str, containers: &str) -> String {
    format!(
        "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: 2\n  selector: {{matchLabels: \
             {{app: {label}}}}}\n  template: {{metadata: {{labels: {{app: {label}}}}}, spec: {{containers: [{containers}]}}}}\n"
    )
}

fn desired(text: String) -> Desired {
    Desired::new(&manifests(text), Strictness::Lenient, &PickerChoice::Ours).unwrap()
}

/// Names and commands of the pods of the pool and `more`, and the notes.
fn pods(more: &str) -> (Vec<(String, String)>, String) {
    let desired = desired(POOL.join("\n---\n") + more);
    let pods = desired.deployments.iter().map(|pods| (pods.key.name.clone(), pods.command.args.join(" ")));
    (pods.collect(), desired.notes.join("\n"))
}

#[test]
fn the_container_that_serves_the_pools_port_runs() {
    let sidecar = "{name: metrics, image: x, ports: [{containerPort: 9090}]}";
    let (found, notes) = pods(&deployment("a", "a", &format!("{sidecar}, {VLLM}")));
    assert_eq!(found, [("a".to_owned(), "serve --model m".to_owned())]);
    assert!(notes.contains("(containers[metrics])"), "{notes}");
}

#[test]
fn adapters_of_a_sidecar_are_loaded() {
    let map = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: adapters}\ndata:\n  configmap.yaml: |\n    vLLMLoRAConfig: \
                   {ensureExist: {models: [{base-model: m, id: one, source: org/one}, {id: two}]}}\n";
    let lora = VLLM.replace("m]", "m, --enable-lora]");
    let sidecar = "], initContainers: [{name: syncer, image: x, env: [{name: DYNAMIC_LORA_ROLLOUT_CONFIG, value: \
                       /config/configmap.yaml}], volumeMounts: [{name: v, mountPath: /config}]}], volumes: [{name: v, configMap: \
                       {name: adapters}}]}}\n";
    let with = |container: &str| deployment("a", "a", container).replace("]}}\n", sidecar);
    let loaded = "serve --model m --enable-lora --lora-modules one=org/one two=two";
    assert_eq!(pods(&[map, &with(&lora)].concat()).0[0].1, loaded);
    for controls in [[map, &with(VLLM)], ["", &with(&lora)]] {
        assert!(!pods(&controls.concat()).0[0].1.contains("--lora-modules"), "{controls:?}");
    }
    let own = lora.replace("--enable-lora", "--enable-lora, --lora-modules, o=p");
    assert!(pods(&[map, &with(&own)].concat()).0[0].1.ends_with("--lora-modules o=p"));
}

#[test]
fn a_program_that_is_not_known_is_stood_in_for_only_if_a_route_leads_to_it() {
    let echo = "{name: echo, image: echo, ports: [{containerPort: 8000}]}";
    let (found, notes) = pods(&deployment("a", "a", echo));
    assert_eq!(found, [("a".to_owned(), "serve echo --any-model=true".to_owned())]);
    assert!(notes.contains("it runs `echo`"), "{notes}");
    let (found, notes) = pods(&deployment("a", "other", echo));
    assert_eq!(found, []);
    assert!(notes.contains("Deployment default/a; on a cluster it runs, and no route"), "{notes}");
}

#[test]
fn the_pools_own_picker_is_left_out() {
    let service = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: epp}\nspec: {selector: {app: epp}, ports: [{port: 9002}]}\n";
    let picker = deployment("my-epp", "epp", "{name: epp, image: epp, args: [--pool-name, p]}");
    let (found, notes) = pods(&[service, &picker, &deployment("a", "a", VLLM)].concat());
    assert_eq!(found.len(), 1);
    assert!(
        notes.contains("Deployment default/my-epp; on a cluster it picks for InferencePool default/p"),
        "{notes}"
    );
    let (found, notes) = pods(&[picker.as_str(), &deployment("a", "a", VLLM)].concat());
    assert!(found.len() == 1 && !notes.contains("it picks for"), "the control: nothing names it: {notes}");
}

/// The control is an object whose pods no pool selects.
#[test]
fn templates_of_unknown_kinds_are_pods_if_a_pool_selects_them() {
    let role = |name: &str, app: &str| {
        let container = format!("{{name: vllm, image: vllm, args: [--model, {name}]}}");
        format!(
            "{{name: {name}, replicas: 2, template: {{metadata: {{labels: {{app: {app}}}}}, spec: {{containers: [{container}]}}}}}}"
        )
    };
    let object = |app: &str| {
        let roles = [role("prefill", "a"), role("decode", app)].join(", ");
        format!(
            "---\napiVersion: example.com/v1\nkind: RoleSet\nmetadata: {{name: r}}\nspec: {{roles: [{roles}]}}\n"
        )
    };
    let pool = POOL.join("\n---\n") + "\n";
    let keys = |desired: &Desired| -> Vec<(String, u32)> {
        desired.deployments.iter().map(|pods| (pods.key.name.clone(), pods.replicas)).collect()
    };
    let both = desired(pool.clone() + &object("a"));
    assert_eq!(keys(&both), [("r-prefill".to_owned(), 2), ("r-decode".to_owned(), 2)]);
    assert!(both.notes.join("\n").contains("RoleSet default/r-prefill (spec)"), "{:?}", both.notes);
    let one = desired(pool + &object("other"));
    assert_eq!(keys(&one), [("r-prefill".to_owned(), 2)]);
    assert!(one.notes.join("\n").contains("RoleSet default/r-decode"), "{:?}", one.notes);
}

#[test]
fn each_target_port_of_a_pool_has_pods_of_its_own() {
    let ports = r#""targetPorts": [{"number": 8000}, {"number": 8002}]"#;
    let pool = POOL.join("\n---\n").replace(r#""targetPorts": [{"number": 8000}]"#, ports);
    let two = "{name: a, image: x, ports: [{containerPort: 8000}]}, {name: b, image: x, ports: [{containerPort: 8002}]}";
    for containers in [two, VLLM] {
        let desired = desired(pool.clone() + &deployment("a", "a", containers));
        let found: Vec<_> =
            desired.deployments.iter().map(|pods| (pods.key.name.as_str(), pods.command.port)).collect();
        assert_eq!(found, [("a", 8000), ("a-8002", 8002)], "{containers}");
    }
}

#[test]
fn the_only_engine_answers_for_the_proxy_in_front_of_it() {
    let engine = "{name: vllm, image: vllm, args: [--model, m, --port, '9']}";
    let proxy = "{name: proxy, image: x, args: [--port=8000, --vllm-port=9], ports: [{containerPort: 8000}]}";
    let sidecar = format!("{engine}], initContainers: [{proxy}");
    for containers in [format!("{proxy}, {engine}"), sidecar] {
        let desired = desired(POOL.join("\n---\n") + &deployment("a", "a", &containers));
        let [pods] = desired.deployments.as_slice() else { panic!("{:?}", desired.deployments) };
        assert_eq!(
            (pods.command.port, pods.command.args.join(" ")),
            (8000, "serve --model m --port 9".to_owned())
        );
        assert!(desired.notes.join("\n").contains("ontainers[proxy]"), "{:?}", desired.notes);
    }
    // Control: the engine's own container declares another port than it serves on.
    let wrong = engine.replace("]}", "], ports: [{containerPort: 8000}]}");
    let wrong = POOL.join("\n---\n") + &deployment("a", "a", &wrong);
    assert!(Desired::new(&manifests(wrong), Strictness::Lenient, &PickerChoice::Ours).is_err());
    // Control: of two engines neither is taken to answer for the proxy.
    let two =
        format!("{proxy}, {engine}, {}", engine.replace("'9'", "'10'").replace("name: vllm", "name: b"));
    let pods = &desired(POOL.join("\n---\n") + &deployment("a", "a", &two)).deployments[0];
    assert_eq!(pods.command.args.join(" "), "serve proxy --any-model=true");
}

#[test]
fn an_engine_on_another_port_is_refused() {
    let wrong = deployment("a", "a", "{name: vllm, image: vllm, args: [--model, m, --port, '9']}");
    let error =
        Desired::new(&manifests(POOL.join("\n---\n") + &wrong), Strictness::Lenient, &PickerChoice::Ours)
            .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("all.yaml, document 3, InferencePool default/p: its target port is 8000")
    );
}

#[test]
fn the_picker_reads_the_metrics_that_the_pods_show() {
    let annotation = "inference.networking.x-k8s.io/model-server-runtime";
    let annotated = format!(r#""metadata": {{"name": "p", "annotations": {{"{annotation}": "sglang"}}}}"#);
    let plain = POOL.join("\n---\n");
    let pool = plain.replace(r#""metadata": {"name": "p"}"#, &annotated);
    let sglang = "{name: a, command: [python3, -m, sglang.launch_server, --model-path, m, --port, '8000', --enable-metrics]}";
    let simulator = "{name: a, image: ghcr.io/llm-d/llm-d-inference-sim, args: [--model, m]}";
    for (container, is_told) in [(sglang, true), (simulator, false), (VLLM, true)] {
        let desired = desired(pool.clone() + &deployment("a", "a", container));
        assert_eq!(desired.pickers[0].pool_file.contains(annotation), is_told, "{container}");
    }
    let unread = "the picker reads vLLM's metrics";
    let notes = |pool: &str| desired(pool.to_owned() + &deployment("a", "a", sglang)).notes.join("\n");
    assert!(notes(&plain).contains(unread) && !notes(&pool).contains(unread), "{}", notes(&plain));
    let hidden = "SGLang has no metrics without --enable-metrics";
    assert!(!notes(&pool).contains(hidden));
    let without = deployment("a", "a", &sglang.replace(", --enable-metrics", ""));
    assert!(desired(pool + &without).notes.join("\n").contains(hidden));
}

/// Envoy would never find its picker healthy.
#[test]
fn a_pool_without_a_route_has_no_picker() {
    let other = POOL[2].replace(r#""name": "p""#, r#""name": "q""#).replace(r#""epp""#, r#""q-epp""#);
    let desired = desired([POOL.join("\n---\n"), other].join("\n---\n"));
    let pickers: Vec<&str> = desired.pickers.iter().map(|picker| picker.name.as_str()).collect();
    assert_eq!(pickers, ["epp-default-epp"]);
    assert!(desired.notes.join("\n").contains("InferencePool default/q; on a cluster its picker waits"));
}

/// The picker's own reader refuses what it does not know.
#[test]
fn lists_and_what_a_server_writes_change_nothing() {
    let documents = POOL.join("\n---\n") + &deployment("a", "a", VLLM);
    let mut items: Vec<serde_json::Value> =
        inference_api::manifest::documents(&documents, "x").unwrap().into_iter().collect();
    let plain = desired(documents);
    for item in &mut items {
        item["status"] = serde_json::json!({ "conditions": [] });
        item["metadata"]["managedFields"] = serde_json::json!([{ "manager": "kubectl" }]);
        item["metadata"]["creationTimestamp"] = serde_json::Value::Null;
    }
    items[2]["spec"]["somethingNew"] = serde_json::json!("x");
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items, "metadata": {} });
    let listed = desired(list.to_string());
    assert_eq!((&listed.plan, &listed.deployments), (&plain.plan, &plain.deployments));
    let pool_file = &listed.pickers[0].pool_file;
    inference_api::manifest::parse(pool_file, "pools.yaml").unwrap();
    assert!(listed.notes.join("\n").contains("InferencePool default/p (somethingNew)"), "{:?}", listed.notes);
}
