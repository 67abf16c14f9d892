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

/// A file of a ConfigMap, as a container sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountedFile {
    /// Path of the mount: a directory, or the file itself.
    pub(super) root: String,
    pub(super) path: String,
    /// Name of the ConfigMap.
    pub(super) map: String,
    pub(super) text: String,
}

/// All files of ConfigMaps that a container of the document's pods sees. `maps` are those of the pods' namespace.
pub(super) fn files((document, container): (&Value, &str), maps: &[&KeyValues]) -> Vec<MountedFile> {
    let found = pod_spec(document).and_then(|pod| Some((pod, self::container(pod, container)?)));
    let Some((pod, container)) = found else { return Vec::new() };
    let mut files = Vec::new();
    for mount in container.get("volumeMounts").and_then(Value::as_array).into_iter().flatten() {
        let Some(root) = text(mount, "mountPath") else { continue };
        let root = root.trim_end_matches('/').to_owned();
        let Some((source, map)) = text(mount, "name").and_then(|volume| source(pod, &volume, maps)) else {
            continue;
        };
        let items = source.get("items").and_then(Value::as_array);
        let names: Vec<String> = match (text(mount, "subPath"), items) {
            (Some(file), _) => vec![file],
            (None, Some(items)) => items.iter().filter_map(|item| text(item, "path")).collect(),
            (None, None) => map.values.keys().cloned().collect(),
        };
        let is_file = mount.get("subPath").is_some();
        for name in names {
            let Some(found) = map.values.get(&key(source, &name)) else { continue };
            let path = if is_file { root.clone() } else { format!("{root}/{name}") };
            let (map, text) = (map.meta.name.clone(), found.clone());
            files.push(MountedFile { root: root.clone(), path, map, text });
        }
    }
    files
}

/// The container of this name in the pods' spec.
pub(super) fn container<'v>(pod: &'v Value, name: &str) -> Option<&'v Value> {
    let mut containers = pod.get("containers")?.as_array()?.iter();
    containers.find(|found| text(found, "name").as_deref() == Some(name))
}

/// The ConfigMap that a container of the pods sees at `path`, and the key that it sees there. `maps` are those of the
/// pods' namespace.
pub(super) fn config_map<'a>(
    (pod, container): (&Value, &Value),
    path: &str,
    maps: &[&'a KeyValues],
) -> Option<(&'a KeyValues, String)> {
    let mounts = container.get("volumeMounts")?.as_array()?;
    mounts.iter().find_map(|mount| {
        let mount_path = text(mount, "mountPath")?;
        let below = path.strip_prefix(mount_path.trim_end_matches('/'))?;
        let file = match text(mount, "subPath") {
            Some(file) if below.is_empty() => file,
            Some(_) => return None,
            None => below.strip_prefix('/')?.to_owned(),
        };
        let (source, map) = source(pod, &text(mount, "name")?, maps)?;
        Some((map, key(source, &file)))
    })
}

/// The ConfigMap of a volume, and the part of the volume that names it.
fn source<'v, 'a>(
    pod: &'v Value,
    volume: &str,
    maps: &[&'a KeyValues],
) -> Option<(&'v Value, &'a KeyValues)> {
    let mut volumes = pod.get("volumes")?.as_array()?.iter();
    let source = volumes.find(|found| text(found, "name").as_deref() == Some(volume))?.get("configMap")?;
    let name = text(source, "name")?;
    Some((source, *maps.iter().find(|map| map.meta.name == name)?))
}

/// The key whose text a volume shows in this file.
fn key(source: &Value, file: &str) -> String {
    let mut items = source.get("items").and_then(Value::as_array).into_iter().flatten();
    let item = items.find(|item| text(item, "path").as_deref() == Some(file));
    item.and_then(|item| text(item, "key")).unwrap_or_else(|| file.to_owned())
}

fn text(value: &Value, field: &str) -> Option<String> {
    value.get(field).and_then(Value::as_str).map(str::to_owned)
}
