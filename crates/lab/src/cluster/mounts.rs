//! Files of ConfigMaps that containers see.

use inference_api::workload::KeyValues;
use serde_json::Value;

/// The spec of a workload's pods in its document.
pub(super) fn pod_spec(document: &Value) -> Option<&Value> {
    document
        .pointer("/spec/template/spec")
        .or_else(|| document.pointer("/spec/leaderWorkerTemplate/workerTemplate/spec"))
        .or_else(|| document.get("spec"))
}

/// The ConfigMap that a container of the pods sees at `path`, and the key that it sees there. `maps` are those of the
/// pods' namespace.
pub(super) fn config_map<'a>(
    (pod, container): (&Value, &Value),
    path: &str,
    maps: &[&'a KeyValues],
) -> Option<(&'a KeyValues, String)> {
    let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
    let volumes = pod.get("volumes")?.as_array()?;
    let mounts = container.get("volumeMounts")?.as_array()?;
    mounts.iter().find_map(|mount| {
        let mount_path = text(mount, "mountPath")?;
        let below = path.strip_prefix(mount_path.trim_end_matches('/'))?;
        let file = match text(mount, "subPath") {
            Some(file) if below.is_empty() => file,
            Some(_) => return None,
            None => below.strip_prefix('/')?.to_owned(),
        };
        let volume = text(mount, "name")?;
        let volume = volumes.iter().find(|candidate| text(candidate, "name").as_ref() == Some(&volume))?;
        let source = volume.get("configMap")?;
        let name = text(source, "name")?;
        let map = maps.iter().find(|map| map.meta.name == name)?;
        let mut items = source.get("items").and_then(Value::as_array).into_iter().flatten();
        let item = items.find(|item| text(item, "path").as_ref() == Some(&file));
        let key = item.and_then(|item| text(item, "key")).unwrap_or(file);
        Some((*map, key))
    })
}
