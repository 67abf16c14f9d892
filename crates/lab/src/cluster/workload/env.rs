//! The variables of a container, and `$(NAME)` in its command line, as Kubernetes expands them.

use std::collections::BTreeMap;

use inference_api::kinds::Object;
use inference_api::object::ObjectKey;
use inference_api::workload::{Container, EnvFrom, EnvSource, EnvVar, KeyRef, KeyValues};

/// ConfigMaps and Secrets by name.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Sources<'a> {
    config_maps: BTreeMap<ObjectKey, &'a KeyValues>,
    secrets: BTreeMap<ObjectKey, &'a KeyValues>,
}

/// Variables of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cluster) struct Env {
    values: BTreeMap<String, String>,
    /// Fields of the container whose values only a cluster knows.
    pub(in crate::cluster) unknown: Vec<String>,
}

// === impl Sources ===

impl<'a> Sources<'a> {
    pub(in crate::cluster) fn new(objects: impl IntoIterator<Item = &'a Object>) -> Self {
        let mut sources = Self::default();
        for object in objects {
            match object {
                Object::ConfigMap(values) => sources.config_maps.insert(values.meta.key(), values),
                Object::Secret(values) => sources.secrets.insert(values.meta.key(), values),
                _ => None,
            };
        }
        sources
    }

    fn value(&self, source: &EnvSource, namespace: &str) -> Option<String> {
        let EnvSource { config_map_key_ref, secret_key_ref, field_ref } = source;
        let of = |found: &BTreeMap<ObjectKey, &KeyValues>, KeyRef { name, key }: &KeyRef| {
            found.get(&ObjectKey::new(namespace, name))?.values.get(key).cloned()
        };
        match (config_map_key_ref, secret_key_ref, field_ref) {
            (Some(key), _, _) => of(&self.config_maps, key),
            (_, Some(key), _) => of(&self.secrets, key),
            (_, _, Some(field)) if field.field_path == "metadata.namespace" => Some(namespace.to_owned()),
            (_, _, Some(_) | None) => None,
        }
    }

    fn all(&self, source: &EnvFrom, namespace: &str) -> Option<&KeyValues> {
        let EnvFrom { prefix: _, config_map_ref, secret_ref } = source;
        match (config_map_ref, secret_ref) {
            (Some(name), _) => self.config_maps.get(&ObjectKey::new(namespace, &name.name)),
            (_, Some(name)) => self.secrets.get(&ObjectKey::new(namespace, &name.name)),
            (None, None) => None,
        }
        .copied()
    }
}

// === impl Env ===

impl Env {
    pub(in crate::cluster) fn new(container: &Container, namespace: &str, sources: &Sources<'_>) -> Self {
        let mut env = Self::default();
        for (idx, source) in container.env_from.iter().enumerate() {
            match sources.all(source, namespace) {
                Some(KeyValues { meta: _, values }) => env.values.extend(
                    values.iter().map(|(key, value)| (format!("{}{key}", source.prefix), value.clone())),
                ),
                None => env.unknown.push(format!("envFrom[{idx}]")),
            }
        }
        for EnvVar { name, value, value_from } in &container.env {
            let value = match value_from {
                None => Some(env.expand(value)),
                Some(source) => sources.value(source, namespace),
            };
            match value {
                Some(value) => drop(env.values.insert(name.clone(), value)),
                None => env.unknown.push(format!("env[{name}]")),
            }
        }
        env
    }

    pub(in crate::cluster) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// All variables whose values are known.
    pub(in crate::cluster) fn all(&self) -> Vec<(String, String)> {
        self.values.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The variables that vLLM itself reads.
    pub(in crate::cluster) fn of_vllm(&self) -> Vec<(String, String)> {
        let own = self.values.iter().filter(|(name, _)| name.starts_with("VLLM_"));
        own.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Replaces `$(NAME)` with the variable, and `$$` with `$`. An unknown name stays as it is.
    pub(in crate::cluster) fn expand(&self, text: &str) -> String {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            expanded.push_str(before);
            let reference = after.strip_prefix('(').and_then(|after| after.split_once(')'));
            rest = match reference {
                _ if after.starts_with('$') => {
                    expanded.push('$');
                    &after[1..]
                }
                Some((name, after)) => {
                    match self.get(name) {
                        Some(value) => expanded.push_str(value),
                        None => expanded.push_str(&format!("$({name})")),
                    }
                    after
                }
                None => {
                    expanded.push('$');
                    after
                }
            };
        }
        expanded + rest
    }
}

#[cfg(test)]
mod tests {
    use inference_api::kinds::Object;
    use inference_api::manifest;

    use super::{Env, Sources};

    const OBJECTS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: { name: engine }
data: { MODEL: m, port: '8000' }
---
apiVersion: v1
kind: Secret
metadata: { name: token }
stringData: { token: t }
---
apiVersion: v1
kind: Pod
metadata: { name: pod }
spec:
  containers:
  - name: a
    env:
    - { name: A, value: a }
    - { name: B, value: $(A)-$(LATER)-$$(A) }
    - { name: LATER, value: l }
    - { name: PORT, valueFrom: { configMapKeyRef: { name: engine, key: port } } }
    - { name: TOKEN, valueFrom: { secretKeyRef: { name: token, key: token } } }
    - { name: NAMESPACE, valueFrom: { fieldRef: { fieldPath: metadata.namespace } } }
    - { name: IP, valueFrom: { fieldRef: { fieldPath: status.podIP } } }
    - { name: NONE, valueFrom: { configMapKeyRef: { name: none, key: port } } }
    envFrom: [ { prefix: C_, configMapRef: { name: engine } }, { secretRef: { name: none } } ]
";

    fn env() -> Env {
        let objects = manifest::parse(OBJECTS, "objects.yaml").unwrap();
        let Some(Object::Workload(pod)) = objects.last() else { panic!("a pod") };
        Env::new(&pod.template.spec.containers[0], "default", &Sources::new(&objects))
    }

    #[test]
    fn variables_come_from_values_and_objects() {
        let env = env();
        for (name, value) in [("PORT", "8000"), ("TOKEN", "t"), ("NAMESPACE", "default"), ("C_MODEL", "m")] {
            assert_eq!(env.get(name), Some(value), "{name}");
        }
        assert_eq!(env.get("B"), Some("a-$(LATER)-$(A)"), "only earlier variables count");
        assert_eq!(env.unknown, ["envFrom[1]", "env[IP]", "env[NONE]"]);
    }

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let env = env();
        for (text, expanded) in [
            ("--model=$(C_MODEL)", "--model=m"),
            ("$(A)$(A)", "aa"),
            ("$(IP)", "$(IP)"),
            ("$$(A)", "$(A)"),
            ("$A ${A} $", "$A ${A} $"),
            ("$(A", "$(A"),
        ] {
            assert_eq!(env.expand(text), expanded, "{text}");
        }
    }
}
