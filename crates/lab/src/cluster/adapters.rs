//! LoRA adapters that upstream's sidecar loads into vLLM, as a ConfigMap lists them.

use inference_api::workload::KeyValues;
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::mounts;

/// Variable of the sidecar with the path of its list.
const LIST: &str = "DYNAMIC_LORA_ROLLOUT_CONFIG";

#[derive(Deserialize)]
struct File {
    #[serde(rename = "vLLMLoRAConfig")]
    config: Config,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    ensure_exist: Models,
}

#[derive(Default, Deserialize)]
struct Models {
    #[serde(default)]
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    source: String,
}

/// The adapters that a sidecar of the pods loads, as vLLM's `--lora-modules` takes them. `maps` are the ConfigMaps of the
/// pods' namespace. A list that cannot be read is empty.
pub(super) fn of_sidecar(document: &Value, maps: &[&KeyValues]) -> Vec<String> {
    let Some(pod) = mounts::pod_spec(document) else { return Vec::new() };
    let lists = ["initContainers", "containers"].into_iter().filter_map(|list| pod.get(list)?.as_array());
    let read = |container: &Value| {
        let mut variables = container.get("env")?.as_array()?.iter();
        let variable =
            variables.find(|variable| variable.get("name").and_then(Value::as_str) == Some(LIST))?;
        let path = variable.get("value")?.as_str()?;
        let (map, key) = mounts::config_map((pod, container), path, maps)?;
        let file: File = serde_saphyr::from_str(map.values.get(&key)?).ok()?;
        Some(file.config.ensure_exist.models)
    };
    let module = |Model { id, source }: Model| {
        let path = if source.is_empty() { id.clone() } else { source };
        format!("{id}={path}")
    };
    lists.flatten().filter_map(read).flatten().map(module).collect()
}
