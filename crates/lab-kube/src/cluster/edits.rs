//! The lab's edits of the user's objects, as pure functions: engines get its arguments and write their records to their
//! logs, and Envoy writes its access log soon.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use lab::cluster::Fresh;
use lab::cluster::manifests::Manifests;
use lab::engine::Engine;
use serde_json::{Map, Value, json};

use crate::api::{DEFAULT, ENVOY_GATEWAY};

/// Name of the proxies' settings.
const PROXY: &str = "warmpath-lab";
/// Annotation of the pods that a restart replaces.
const EPOCH: &str = "warmpath.dev/lab-epoch";
/// Annotation of a pool whose picker reads KV events, and its value.
const PREFIX_SOURCE: (&str, &str) = ("inference.networking.x-k8s.io/prefix-cache-mode", "precise");
/// Envoy flushes its logs after so many milliseconds; it would do that every 10 s.
const FLUSH: &str = "--file-flush-interval-msec 100";

/// Settings of the lab that objects get.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) fresh: Fresh,
    pub(super) engine: Engine,
    /// Number of restarts.
    pub(super) epoch: u64,
    pub(super) time_scale: f64,
    /// Replicas of every Deployment of engines; `None` for its own.
    pub(super) replicas: Option<u32>,
}

/// A kind, a namespace and a name, in this order.
type Identity = (String, String, String);

/// Returns the objects of manifests with the lab's settings. Engines that are not ours keep their pods as they are.
///
/// # Errors
/// When a file is not YAML.
pub(super) fn objects(manifests: &Manifests, settings: &Settings) -> Result<Vec<Value>> {
    let mut objects = plain(manifests)?;
    let pools: Vec<Value> = objects.iter().filter(|object| is_pool(object)).cloned().collect();
    for object in &mut objects {
        let own: Vec<&Value> = pools.iter().filter(|pool| selects(pool, object)).collect();
        if !own.is_empty() {
            if let Some(replicas) = settings.replicas {
                object["spec"]["replicas"] = json!(replicas);
            }
            match settings.engine {
                Engine::Mock => set_engines(object, settings, own.iter().any(|pool| is_precise(pool))),
                Engine::Vllm => {}
            }
        }
        if object["kind"] == "GatewayClass" {
            object["spec"]["parametersRef"] = json!({
                "group": "gateway.envoyproxy.io",
                "kind": "EnvoyProxy",
                "namespace": ENVOY_GATEWAY,
                "name": PROXY,
            });
        }
    }
    objects.insert(0, proxy());
    Ok(objects)
}

/// Returns the objects of manifests as they are.
///
/// # Errors
/// When a file is not YAML.
pub(super) fn plain(manifests: &Manifests) -> Result<Vec<Value>> {
    let mut objects: Vec<Value> = Vec::new();
    for (name, text) in &manifests.files {
        let read: Vec<Value> = serde_saphyr::from_multiple(text).with_context(|| format!("read {name}"))?;
        objects.extend(read.into_iter().filter(Value::is_object));
    }
    Ok(objects)
}

/// Returns the objects of `before` that `after` lacks.
pub(super) fn removed(before: &[Value], after: &[Value]) -> Vec<Value> {
    let kept: Vec<Identity> = after.iter().map(identity).collect();
    before.iter().filter(|object| !kept.contains(&identity(object))).cloned().collect()
}

/// Returns the Deployments of `after` whose pods differ from those of `before`, or that are new.
pub(super) fn replaced<'a>(before: &[Value], after: &'a [Value]) -> Vec<&'a Value> {
    let templates: BTreeMap<Identity, &Value> =
        before.iter().map(|object| (identity(object), &object["spec"]["template"])).collect();
    let is_other = |object: &&Value| {
        templates.get(&identity(object)).is_some_and(|template| **template != object["spec"]["template"])
    };
    after.iter().filter(|object| object["kind"] == "Deployment").filter(is_other).collect()
}

/// Returns the namespace and the name of an object.
pub(super) fn place(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
    (text("namespace").unwrap_or_else(|| DEFAULT.to_owned()), text("name").unwrap_or_default())
}

/// Returns the restart in which the pods of a Deployment are made, from their annotation.
pub(super) fn epoch(annotations: &BTreeMap<String, String>) -> Option<&str> {
    annotations.get(EPOCH).map(String::as_str)
}

/// Returns the Deployments of engines: their pods are those of a pool.
pub(super) fn engines(objects: &[Value]) -> Vec<&Value> {
    let pools: Vec<&Value> = objects.iter().filter(|object| is_pool(object)).collect();
    objects.iter().filter(|object| pools.iter().any(|pool| selects(pool, object))).collect()
}

fn identity(object: &Value) -> Identity {
    let (namespace, name) = place(object);
    (object["kind"].as_str().unwrap_or_default().to_owned(), namespace, name)
}

fn proxy() -> Value {
    json!({
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyProxy",
        "metadata": { "name": PROXY, "namespace": ENVOY_GATEWAY },
        "spec": { "extraArgs": FLUSH.split(' ').collect::<Vec<_>>() },
    })
}

fn is_pool(object: &Value) -> bool {
    object["kind"] == "InferencePool"
}

fn is_precise(pool: &Value) -> bool {
    let (annotation, value) = PREFIX_SOURCE;
    pool["metadata"]["annotations"][annotation] == value
}

/// Returns the labels that a pool asks of its pods, of either version of the API.
pub(super) fn selector(pool: &Value) -> Option<&Map<String, Value>> {
    let selector = &pool["spec"]["selector"];
    selector["matchLabels"].as_object().or_else(|| selector.as_object())
}

fn selects(pool: &Value, object: &Value) -> bool {
    let labels = &object["spec"]["template"]["metadata"]["labels"];
    let is_near = object["kind"] == "Deployment" && place(pool).0 == place(object).0;
    is_near && selector(pool).is_some_and(|wanted| wanted.iter().all(|(name, value)| labels[name] == *value))
}

/// Gives a Deployment of engines the lab's settings. Its pods are replaced all at once, as nothing is to be learned from a
/// mixture of old and new ones.
fn set_engines(deployment: &mut Value, settings: &Settings, is_precise: bool) {
    let Settings { fresh, engine: _, epoch, time_scale, replicas: _ } = settings;
    let spec = &mut deployment["spec"];
    spec["strategy"] = json!({ "type": "Recreate" });
    spec["template"]["metadata"]["annotations"][EPOCH] = json!(epoch.to_string());
    let mut arguments: Vec<String> =
        ["--request-log", "/dev/stdout", "--enable-prompt-tokens-details"].map(str::to_owned).to_vec();
    arguments.extend(["--time-scale".to_owned(), time_scale.to_string()]);
    if is_precise {
        let events = json!({
            "enable_kv_cache_events": true,
            "publisher": "zmq",
            "endpoint": "tcp://*:5557",
            "replay_endpoint": "tcp://*:5558",
        });
        arguments.extend(["--kv-events-config".to_owned(), events.to_string()]);
        // A picker that reads KV events asks engines to render requests, which later versions do.
        arguments.extend(["--vllm-version", "0.33", "--enable-scale-out"].map(str::to_owned));
    }
    arguments.extend(fresh.engine_args.iter().cloned());
    for container in spec["template"]["spec"]["containers"].as_array_mut().into_iter().flatten() {
        append(container, &arguments);
    }
}

/// Appends arguments to a container's command: to its script if a shell runs one.
fn append(container: &mut Value, arguments: &[String]) {
    let script = ["args", "command"].into_iter().find(|field| {
        let last = container[*field].as_array().and_then(|words| words.last()).and_then(Value::as_str);
        last.is_some_and(|last| last.contains("vllm serve"))
    });
    if let Some(field) = script
        && let Some(last) = container[field].as_array_mut().and_then(|words| words.last_mut())
    {
        let text = last.as_str().unwrap_or_default().trim_end();
        *last = json!(format!("{text} {}", shell_words::join(arguments)));
        return;
    }
    let own = container["args"].as_array().cloned().unwrap_or_default();
    container["args"] = own.into_iter().chain(arguments.iter().map(|argument| json!(argument))).collect();
}

#[cfg(test)]
mod tests {
    use lab::cluster::Fresh;
    use lab::cluster::manifests::Manifests;
    use lab::engine::Engine;
    use serde_json::Value;

    use super::{Settings, append, engines, objects, plain, removed, replaced};

    fn settings(engine_args: &[&str], epoch: u64) -> Settings {
        let engine_args = engine_args.iter().map(|arg| (*arg).to_owned()).collect();
        let fresh = Fresh { engine_args, ..Fresh::default() };
        Settings { fresh, engine: Engine::Mock, epoch, time_scale: 10.0, replicas: Some(2) }
    }

    fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
        objects.iter().find(|object| object["kind"] == kind).unwrap()
    }

    fn script(objects: &[Value]) -> &str {
        of_kind(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]["command"][2]
            .as_str()
            .unwrap()
    }

    #[test]
    fn engines_get_arguments_at_the_end_of_their_script() {
        let edited =
            objects(&Manifests::tutorial(), &settings(&["--fault", "status:code=429,rate=0.3"], 3)).unwrap();
        let script = script(&edited);
        assert!(script.starts_with("vllm serve /models/Qwen2.5-7B-Instruct --port 8000"), "{script}");
        assert!(
            script.ends_with("--enable-prefix-caching --request-log /dev/stdout --enable-prompt-tokens-details --time-scale 10 --fault 'status:code=429,rate=0.3'"),
            "{script}"
        );
        assert_eq!(engines(&edited), [of_kind(&edited, "Deployment")]);
        let without_pool: Vec<Value> =
            edited.iter().filter(|object| object["kind"] != "InferencePool").cloned().collect();
        assert!(engines(&without_pool).is_empty());
        let spec = &of_kind(&edited, "Deployment")["spec"];
        assert_eq!((&spec["replicas"], &spec["strategy"]["type"]), (&2.into(), &"Recreate".into()));
        assert_eq!(of_kind(&edited, "GatewayClass")["spec"]["parametersRef"]["name"], "warmpath-lab");
        assert!(!script.contains("kv-events"), "the pool is not precise");
    }

    /// The control is the mock, whose command gets the lab's arguments.
    #[test]
    fn a_real_engine_keeps_its_image_its_command_and_its_gpus() {
        let plain = plain(&Manifests::tutorial()).unwrap();
        let settings = |engine| Settings { engine, ..settings(&[], 1) };
        let of_pods = |objects: &[Value]| of_kind(objects, "Deployment")["spec"]["template"].clone();
        let edited = objects(&Manifests::tutorial(), &settings(Engine::Vllm)).unwrap();
        assert_eq!(of_pods(&edited), of_pods(&plain));
        assert_eq!(of_kind(&edited, "Deployment")["spec"]["replicas"], 2);
        assert_eq!(engines(&edited), [of_kind(&edited, "Deployment")]);
        let edited = objects(&Manifests::tutorial(), &settings(Engine::Mock)).unwrap();
        assert_ne!(of_pods(&edited), of_pods(&plain));
    }

    #[test]
    fn a_precise_pool_gives_its_engines_events() {
        let mut manifests = Manifests::tutorial();
        let strategy = "routing-strategy: \"PREFIX_CACHE\"";
        let precise = format!("{strategy}\n    inference.networking.x-k8s.io/prefix-cache-mode: \"precise\"");
        manifests.replace(strategy, &precise).unwrap();
        let edited = objects(&manifests, &settings(&[], 0)).unwrap();
        assert!(script(&edited).contains(r#"--kv-events-config '{"enable_kv_cache_events":true"#));
    }

    /// The control: without its pool a Deployment is somebody else's, and stays.
    #[test]
    fn deployments_without_a_pool_stay_as_they_are() {
        let mut manifests = Manifests::tutorial();
        manifests
            .replace(
                "  selector:\n    app: qwen\n  extensionRef",
                "  selector:\n    app: other\n  extensionRef",
            )
            .unwrap();
        let edited = objects(&manifests, &settings(&[], 0)).unwrap();
        assert_eq!(of_kind(&edited, "Deployment"), of_kind(&plain(&manifests).unwrap(), "Deployment"));
    }

    #[test]
    fn only_what_changes_is_replaced_or_removed() {
        let before = objects(&Manifests::tutorial(), &settings(&[], 1)).unwrap();
        assert!(replaced(&before, &before).is_empty() && removed(&before, &before).is_empty());
        let after = objects(&Manifests::tutorial(), &settings(&[], 2)).unwrap();
        assert_eq!(replaced(&before, &after), [of_kind(&after, "Deployment")]);
        let rest: Vec<Value> =
            before.iter().filter(|object| object["kind"] != "InferencePool").cloned().collect();
        assert_eq!(removed(&before, &rest), [of_kind(&before, "InferencePool").clone()]);
        assert!(replaced(&[], &before).is_empty(), "what is new has no pods to replace");
    }

    #[test]
    fn a_command_without_a_shell_gets_arguments() {
        let mut container = serde_json::json!({ "command": ["vllm"], "args": ["serve", "m"] });
        append(&mut container, &["--a".to_owned()]);
        assert_eq!(container["args"], serde_json::json!(["serve", "m", "--a"]));
    }
}
