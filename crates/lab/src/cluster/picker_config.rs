//! Upstream's configuration of pickers, as the files have it: in a ConfigMap or the arguments of a picker's own
//! Deployment, or as a document of its own.

use inference_api::kinds::Object;
use inference_api::object::{self, ObjectKey};
use inference_api::picker_config::{self, PickerConfig};
use inference_api::pool::InferencePool;
use inference_api::remark::Remark;
use inference_api::workload::{KeyValues, Service, Workload};
use serde_json::Value;

use crate::cluster::mounts;
use crate::cluster::reading::Reading;
use crate::cluster::refusal::Refusal;

/// Effect of the parts that the lab's picker does not have.
const LEFT_OUT: &str = "the picker's own program follows them";

/// A configuration, and the field that holds it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FoundConfig {
    pub(super) text: String,
    pub(super) content: PickerConfig,
    kind: String,
    key: ObjectKey,
    field: String,
}

/// The picker's own Deployment, and the Service that the pool names.
#[derive(Clone, Copy)]
pub(super) struct OwnPicker<'a> {
    pub(super) service: &'a Service,
    pub(super) workload: &'a Workload,
    /// The workload as it is in the file.
    pub(super) document: &'a Value,
}

/// Everything among the files that can configure a picker.
pub(super) struct PickerConfigs<'a> {
    services: Vec<&'a Service>,
    /// Workloads, each with its document as it is in the file.
    workloads: Vec<(&'a Workload, &'a Value)>,
    maps: Vec<&'a KeyValues>,
    document: Option<(&'a ObjectKey, &'a Value)>,
}

impl FoundConfig {
    fn parse(text: String, (kind, key, field): (&str, ObjectKey, String)) -> Result<Self, Refusal> {
        let content = PickerConfig::parse(&text).map_err(|error| {
            let what = if field.is_empty() { error.to_string() } else { format!("{field}: {error}") };
            Refusal { kind: kind.to_owned(), key: key.clone(), what }
        })?;
        Ok(Self { text, content, kind: kind.to_owned(), key, field })
    }

    /// True if the picker is to prefer pods that hold a prefix.
    pub(super) fn prefers_prefixes(&self) -> bool {
        self.content.weights.is_some_and(|weights| weights.prefix > 0.0)
    }

    /// The parts without effect here.
    pub(super) fn remarks(&self) -> impl Iterator<Item = Remark> {
        let path = |field: &String| match self.field.as_str() {
            "" => field.clone(),
            own => format!("{own}.{field}"),
        };
        let fields = self.content.left_out.iter();
        fields.map(move |field| Remark::new(self.kind.as_str(), self.key.clone(), path(field), LEFT_OUT))
    }

    /// The object that holds it.
    pub(super) fn holder(&self) -> (&str, &ObjectKey) {
        (&self.kind, &self.key)
    }
}

impl<'a> PickerConfigs<'a> {
    pub(super) fn new(reading: &'a Reading) -> Self {
        let mut configs = Self {
            services: Vec::new(),
            workloads: Vec::new(),
            maps: Vec::new(),
            document: reading.picker_config(),
        };
        for (object, raw) in reading.originals() {
            match object {
                Object::Service(service) => configs.services.push(service),
                Object::Workload(workload) => configs.workloads.push((workload, raw)),
                Object::ConfigMap(map) => configs.maps.push(map),
                _ => {}
            }
        }
        configs
    }

    /// The configuration of the pool's picker: what its own Deployment names, or else the document.
    ///
    /// # Errors
    /// If it is not valid.
    pub(super) fn of(&self, pool: &InferencePool) -> Result<Option<FoundConfig>, Refusal> {
        let own =
            self.own_picker(pool).map(|own| self.of_workload(own.workload, own.document)).transpose()?;
        match (own.flatten(), self.document) {
            (Some(own), _) => Ok(Some(own)),
            (None, Some((key, value))) => {
                let place = (picker_config::KIND, key.clone(), String::new());
                FoundConfig::parse(value.to_string(), place).map(Some)
            }
            (None, None) => Ok(None),
        }
    }

    /// The pods behind the Service that the pool names as its picker.
    pub(super) fn own_picker(&self, pool: &InferencePool) -> Option<OwnPicker<'a>> {
        let namespace = &pool.meta.namespace;
        let service = self.services.iter().find(|service| {
            service.meta.namespace == *namespace
                && pool.picker.as_ref().is_some_and(|picker| picker.name == service.meta.name)
        })?;
        let is_behind = |(workload, _): &&(&Workload, &Value)| {
            workload.meta.namespace == *namespace
                && object::selects(&service.spec.selector, &workload.template.meta.labels)
        };
        let (workload, document) = self.workloads.iter().find(is_behind).copied()?;
        Some(OwnPicker { service, workload, document })
    }

    /// The ConfigMaps of a namespace.
    pub(super) fn maps_of(&self, namespace: &str) -> Vec<&'a KeyValues> {
        self.maps.iter().filter(|map| map.meta.namespace == namespace).copied().collect()
    }

    fn of_workload(&self, workload: &Workload, raw: &Value) -> Result<Option<FoundConfig>, Refusal> {
        for container in &workload.template.spec.containers {
            let words: Vec<&str> =
                container.command.iter().chain(&container.args).map(String::as_str).collect();
            if let Some(text) = flag(&words, "configtext") {
                let field = format!("spec.template.spec.containers[{}].args", container.name);
                let place = (workload.kind.as_str(), workload.meta.key(), field);
                return FoundConfig::parse(text.to_owned(), place).map(Some);
            }
            let Some(path) = flag(&words, "configfile") else { continue };
            let Some((map, name)) = self.mounted((workload, raw), &container.name, path) else { continue };
            let Some(text) = map.values.get(&name) else { continue };
            let place = ("ConfigMap", map.meta.key(), format!("data[{name}]"));
            return FoundConfig::parse(text.clone(), place).map(Some);
        }
        Ok(None)
    }

    fn mounted(
        &self,
        (workload, raw): (&Workload, &Value),
        container: &str,
        path: &str,
    ) -> Option<(&'a KeyValues, String)> {
        let pod = mounts::pod_spec(raw)?;
        let container = mounts::container(pod, container)?;
        mounts::config_map((pod, container), path, &self.maps_of(&workload.meta.namespace))
    }
}

/// The value of a flag, of whichever style: `--config-file F`, `-configFile=F`. `name` is in small letters, without
/// dashes.
fn flag<'w>(words: &[&'w str], name: &str) -> Option<&'w str> {
    let is_flag = |flag: &str| flag.trim_start_matches('-').replace('-', "").eq_ignore_ascii_case(name);
    words.iter().enumerate().find_map(|(idx, word)| {
        let flag = word.starts_with('-').then_some(*word)?;
        match flag.split_once('=') {
            Some((flag, value)) => is_flag(flag).then_some(value),
            None if is_flag(flag) => words.get(idx + 1).copied(),
            None => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::flag;
    use crate::cluster::Strictness;
    use crate::cluster::desired::Desired;
    use crate::cluster::manifests::Manifests;
    use crate::cluster::picker_choice::PickerChoice;

    const CONFIG: &str = r#"{"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "plugins": [{"type": "prefix-cache-scorer"}, {"type": "new-scorer"}], "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "prefix-cache-scorer", "weight": 3}]}]}"#;

    fn objects(args: &str) -> String {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: g}}
spec: {{gatewayClassName: eg, listeners: [{{name: http, protocol: HTTP, port: 80}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r}}
spec: {{parentRefs: [{{name: g}}], rules: [{{backendRefs: [{{group: inference.networking.k8s.io, kind: InferencePool, name: p}}]}}]}}
---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: p}}
spec: {{selector: {{matchLabels: {{app: a}}}}, targetPorts: [{{number: 8000}}], endpointPickerRef: {{name: p-epp, port: {{number: 9002}}}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: p-epp}}
spec: {{selector: {{app: p-epp}}, ports: [{{port: 9002}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: p-epp}}
spec:
  selector: {{matchLabels: {{app: p-epp}}}}
  template:
    metadata: {{labels: {{app: p-epp}}}}
    spec:
      containers: [{{name: epp, image: epp, args: {args}, volumeMounts: [{{name: plugins, mountPath: /config}}]}}]
      volumes: [{{name: plugins, configMap: {{name: plugins}}}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: plugins}}
data: {{default-plugins.yaml: '{CONFIG}'}}
"
        )
    }

    fn desired(text: String) -> Result<Desired, String> {
        let mut manifests = Manifests::default();
        manifests.files.insert("all.yaml".to_owned(), text);
        Desired::new(&manifests, Strictness::Lenient, &PickerChoice::Ours)
            .map_err(|error| format!("{error:#}"))
    }

    /// True if the picker got the configuration and the pool the strategy.
    fn is_configured(text: String) -> bool {
        let desired = desired(text).unwrap();
        let picker = &desired.pickers[0];
        let has_strategy =
            picker.pool_file.contains(r#""inference.networking.x-k8s.io/routing-strategy": "PREFIX_CACHE""#);
        let is_listed = desired.notes.iter().any(|note| note.contains("plugins[1] (new-scorer)"));
        assert!(
            picker.config.is_some() == has_strategy && is_listed == has_strategy,
            "{:?} {:?}",
            picker.config,
            desired.notes
        );
        has_strategy
    }

    #[test]
    fn the_pickers_own_deployment_names_its_configuration() {
        for args in [
            "[--config-file, /config/default-plugins.yaml]",
            "[--config-file=/config/default-plugins.yaml]",
            "[-configFile, /config/default-plugins.yaml]",
        ] {
            assert!(is_configured(objects(args)), "{args}");
        }
        for args in
            ["[]", "[--config-file, /other/default-plugins.yaml]", "[--config-file, /config/other.yaml]"]
        {
            assert!(!is_configured(objects(args)), "{args}");
        }
        let text = format!("[--config-text, '{CONFIG}']");
        assert!(is_configured(objects(&text)));
    }

    #[test]
    fn a_document_configures_pickers_without_their_own() {
        assert!(is_configured(format!("{}---\n{CONFIG}\n", objects("[]"))));
    }

    #[test]
    fn a_configuration_that_is_not_valid_is_refused() {
        let broken = objects("[--config-file, /config/default-plugins.yaml]")
            .replace(r#""kind": "EndpointPickerConfig""#, r#""kind": "Other""#);
        let error = desired(broken).unwrap_err();
        assert!(
            error.starts_with(
                "all.yaml, document 6, ConfigMap default/plugins: data[default-plugins.yaml]: kind"
            ),
            "{error}"
        );
    }

    #[test]
    fn flags_are_found_in_every_style() {
        for words in [&["--config-file", "f"][..], &["-configFile=f"], &["-v", "4", "--configFile", "f"]] {
            assert_eq!(flag(words, "configfile"), Some("f"), "{words:?}");
        }
        assert_eq!(flag(&["config-file", "f"], "configfile"), None);
    }
}
