//! The documents of the manifests: what each one is, before it is known what the objects mean together.
//!
//! ```text
//! text ──documents──► List ──items──► value ──► object + fields without effect | a kind without a part here | refused
//! ```

use std::fmt;

use anyhow::{Result, bail};
use inference_api::fields::UnknownField;
use inference_api::kinds::{self, Object, ReadError};
use inference_api::lenient::{self, Lenient};
use inference_api::manifest;
use inference_api::object::{DEFAULT_NAMESPACE, ObjectKey};
use inference_api::picker_config;
use inference_api::remark::Remark;
use inference_api::workload::WorkloadKind;
use serde_json::Value;

use crate::cluster::manifests::Manifests;
use crate::cluster::templates::{self, Template};

/// Part of the path of the fields that decide which requests a rule takes.
const MATCHES: &str = ".matches[";

/// Effects of Envoy Gateway's kinds and fields that have no part here; an empty field stands for the kind.
const OF_ENVOY_GATEWAY: [(&str, &str, &str); 9] = [
    ("BackendTrafficPolicy", "spec.rateLimit", "Envoy answers 429 above the limit"),
    ("BackendTrafficPolicy", "spec.faultInjection", "Envoy delays requests, or answers them with errors"),
    ("BackendTrafficPolicy", "spec.healthCheck", "Envoy leaves out endpoints that fail the check"),
    ("BackendTrafficPolicy", "spec.responseOverride", "Envoy replaces some responses"),
    ("BackendTrafficPolicy", "spec.requestBuffer", "Envoy holds requests until they are whole"),
    ("SecurityPolicy", "", "Envoy refuses requests that it does not allow, and here they are answered"),
    ("EnvoyExtensionPolicy", "", "Envoy passes requests through other programs"),
    ("EnvoyPatchPolicy", "", "it edits Envoy's configuration"),
    ("AIServiceBackend", "", "Envoy AI Gateway sends requests to it"),
];

/// Effect of an object that a later one of its kind and name follows.
pub(super) const REPLACED: &str = "a later object of its name replaces it, as here";

/// All documents, in the order of the files.
#[derive(Clone, Debug, Default)]
pub(super) struct Reading {
    pub(super) documents: Vec<Document>,
}

/// One object of a file. The items of a list are objects of their own.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub(super) place: Place,
    /// The kind that it names; empty if it names none.
    pub(super) kind: String,
    pub(super) key: ObjectKey,
    pub(super) content: Content,
}

/// File and number of a document, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: String,
    pub(super) document: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    /// An object of a kind that the lab has a part for.
    Object {
        object: Box<Object>,
        /// The document without its unknown fields.
        value: Value,
        /// The document as it is in the file.
        original: Value,
        remarks: Vec<Remark>,
    },
    /// Upstream's configuration of a picker, which is no object of a cluster.
    PickerConfig(Value),
    /// A document that nothing here reads.
    NoPart(Remark),
    /// An object that would change what the lab claims if it were left out.
    Refused { field: String, what: String },
}

impl Reading {
    /// Reads the files.
    ///
    /// # Errors
    /// When a file is neither YAML nor JSON.
    pub(super) fn new(manifests: &Manifests) -> Result<Self> {
        let mut reading = Self::default();
        for (file, text) in &manifests.files {
            for (idx, value) in manifest::documents(text, file)?.into_iter().enumerate() {
                reading.add(value, &Place { file: file.clone(), document: idx + 1 });
            }
        }
        reading.replace_earlier();
        Ok(reading)
    }

    /// Leaves the last of several objects of one kind and name, as `kubectl apply` does.
    fn replace_earlier(&mut self) {
        for idx in 0..self.documents.len() {
            let (earlier, later) = self.documents.split_at_mut(idx + 1);
            let Some(Document { kind, key, content, .. }) = earlier.last_mut() else { continue };
            let is_replaced = matches!(content, Content::Object { .. })
                && later.iter().any(|later| later.kind == *kind && later.key == *key);
            if is_replaced {
                *content =
                    Content::NoPart(Remark::new(kind.as_str(), key.clone(), "metadata.name", REPLACED));
            }
        }
    }

    /// The objects, each with its document.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&Object, &Value)> {
        self.documents.iter().filter_map(|document| match &document.content {
            Content::Object { object, value, .. } => Some((&**object, value)),
            Content::PickerConfig(_) | Content::NoPart(_) | Content::Refused { .. } => None,
        })
    }

    /// The objects, each with its document as it is in the file.
    pub(super) fn originals(&self) -> impl Iterator<Item = (&Object, &Value)> {
        self.documents.iter().filter_map(|document| match &document.content {
            Content::Object { object, original, .. } => Some((&**object, original)),
            Content::PickerConfig(_) | Content::NoPart(_) | Content::Refused { .. } => None,
        })
    }

    /// The last configuration of pickers that is a document of its own.
    pub(super) fn picker_config(&self) -> Option<(&ObjectKey, &Value)> {
        self.documents.iter().rev().find_map(|document| match &document.content {
            Content::PickerConfig(value) => Some((&document.key, value)),
            Content::Object { .. } | Content::NoPart(_) | Content::Refused { .. } => None,
        })
    }

    /// Everything in the documents that has no effect, whatever the objects mean together.
    pub(super) fn remarks(&self) -> impl Iterator<Item = &Remark> {
        self.documents.iter().flat_map(|document| match &document.content {
            Content::Object { remarks, .. } => remarks.as_slice(),
            Content::NoPart(remark) => std::slice::from_ref(remark),
            Content::PickerConfig(_) | Content::Refused { .. } => &[],
        })
    }

    /// Fails for the first document that is refused.
    pub(super) fn check(&self) -> Result<()> {
        for Document { place, kind, key, content } in &self.documents {
            if let Content::Refused { field, what } = content {
                let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
                bail!("{place}, {kind} {key}: {field}{what}");
            }
        }
        Ok(())
    }

    /// The place of an object, if it is among the documents.
    pub(super) fn place(&self, kind: &str, key: &ObjectKey) -> Option<&Place> {
        let found = self.documents.iter().rfind(|document| document.kind == kind && document.key == *key);
        found.map(|document| &document.place)
    }

    fn add(&mut self, value: Value, place: &Place) {
        if value.is_null() {
            return;
        }
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        // `kubectl get` writes a v1 List, and an API server writes lists of its kinds.
        if kind.ends_with("List") && value.get("items").is_some_and(Value::is_array) {
            let Value::Object(mut list) = value else { return };
            let Some(Value::Array(items)) = list.shift_remove("items") else { return };
            return items.into_iter().for_each(|item| self.add(item, place));
        }
        let key = key(&value);
        let is_unknown = kinds::known_versions(&api_version, &kind).is_none();
        let templates = if is_unknown { templates::of(&value) } else { Vec::new() };
        let mut pods =
            templates.into_iter().filter_map(|template| of_template(template, (&kind, &key))).peekable();
        if pods.peek().is_none() {
            let content = read(value, (&api_version, &kind), &key);
            self.documents.push(Document { place: place.clone(), kind, key, content });
            return;
        }
        for (key, content) in pods {
            self.documents.push(Document { place: place.clone(), kind: kind.clone(), key, content });
        }
    }
}

fn key(value: &Value) -> ObjectKey {
    let text = |name: &str| value.get("metadata").and_then(|meta| meta.get(name)).and_then(Value::as_str);
    ObjectKey::new(text("namespace").unwrap_or(DEFAULT_NAMESPACE), text("name").unwrap_or("(unnamed)"))
}

fn read(value: Value, (api_version, kind): (&str, &str), key: &ObjectKey) -> Content {
    let remark = |on_a_cluster: &str| Content::NoPart(Remark::new(kind, key.clone(), "", on_a_cluster));
    match lenient::read(value.clone()) {
        Ok(Lenient { object, unknown }) => {
            if let Some(UnknownField { path, .. }) = unknown.iter().find(|field| field.path.contains(MATCHES))
            {
                let what =
                    "this condition is not supported, and without it the rule would take other requests: \
                            remove it, or the match"
                        .to_owned();
                return Content::Refused { field: path.clone(), what };
            }
            let original = value.clone();
            let mut value = value;
            let follower = follower(kind);
            let mut remarks = Vec::new();
            for UnknownField { path, .. } in unknown {
                remove(&mut value, &path);
                let effect = of_envoy_gateway(kind, &path).unwrap_or(follower);
                remarks.push(Remark::new(kind, key.clone(), path, effect));
            }
            Content::Object { object: Box::new(object), value, original, remarks }
        }
        Err(ReadError::NoKind) => {
            remark("nothing is made of it: it has no apiVersion or no kind, so it is not a Kubernetes object")
        }
        Err(ReadError::Kind { .. }) if picker_config::is_config(api_version, kind) => {
            Content::PickerConfig(value)
        }
        Err(ReadError::Kind { .. }) => match kinds::known_versions(api_version, kind) {
            None => remark(of_envoy_gateway(kind, "").unwrap_or_else(|| owner(api_version))),
            Some(versions) => {
                let what = format!("{api_version} is not read here, only {}", versions.join(", "));
                Content::Refused { field: "apiVersion".to_owned(), what }
            }
        },
        Err(ReadError::Object(error)) => {
            Content::Refused { field: error.error.field, what: error.error.what }
        }
    }
}

/// The pods of a template of an object whose kind is not known, under a key of their own.
fn of_template(template: Template, (kind, key): (&str, &ObjectKey)) -> Option<(ObjectKey, Content)> {
    let Template { name, deployment } = template;
    let Lenient { object: Object::Workload(mut workload), unknown } =
        lenient::read(deployment.clone()).ok()?
    else {
        return None;
    };
    if !name.is_empty() {
        workload.meta.name = format!("{}-{name}", key.name);
    }
    workload.kind = WorkloadKind::Other(kind.to_owned());
    let key = workload.meta.key();
    let remark = |field: &str, effect| Remark::new(kind, key.clone(), field, effect);
    let rest = "its controller follows it; here the templates of pods in it are run like Deployments";
    let mut remarks = vec![remark("spec", rest)];
    remarks.extend(unknown.iter().map(|field| remark(&field.path, follower("Deployment"))));
    let object = Box::new(Object::Workload(workload));
    Some((key, Content::Object { object, value: deployment.clone(), original: deployment, remarks }))
}

/// Returns what follows the fields of a known kind on a cluster.
fn follower(kind: &str) -> &'static str {
    match kind {
        "Deployment" | "ReplicaSet" | "StatefulSet" | "LeaderWorkerSet" | "Pod" => {
            "the scheduler, the kubelet and the container runtime follow them"
        }
        "Service" => "kube-proxy and load balancers follow them",
        "InferencePool" | "InferenceModel" | "InferenceObjective" | "InferenceModelRewrite" => {
            "the controllers of the pool may follow them"
        }
        _ => "the gateway's controller follows them",
    }
}

/// The effect of a kind or a field of Envoy Gateway, if it is one of those that people should know.
fn of_envoy_gateway(kind: &str, field: &str) -> Option<&'static str> {
    let known = OF_ENVOY_GATEWAY.iter().find(|(of, path, _)| (*of, *path) == (kind, field));
    known.map(|(_, _, effect)| *effect)
}

/// Returns what acts on an unknown kind on a cluster.
fn owner(api_version: &str) -> &'static str {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    match group.contains('.') && !group.ends_with(".k8s.io") {
        true => "the controllers of these kinds act on them, if they are installed",
        false => "Kubernetes acts on them",
    }
}

/// Removes the field at `path`, such as `spec.ports[0].name`, from the document.
fn remove(value: &mut Value, path: &str) {
    let mut place = value;
    let (parents, name) = path.rsplit_once('.').unwrap_or(("", path));
    for part in parents.split('.').filter(|part| !part.is_empty()) {
        let (field, indices) = part.split_once('[').map_or((part, ""), |(field, rest)| (field, rest));
        let indices = indices.split(['[', ']']).filter(|idx| !idx.is_empty());
        let Some(mut found) = place.get_mut(field) else { return };
        for idx in indices.filter_map(|idx| idx.parse::<usize>().ok()) {
            let Some(element) = found.get_mut(idx) else { return };
            found = element;
        }
        place = found;
    }
    if let Value::Object(map) = place {
        map.shift_remove(name);
    }
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file, self.document)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::remove;

    #[test]
    fn a_field_is_removed_by_its_path() {
        let mut value =
            json!({ "spec": { "ports": [ { "number": 1, "name": "a" }, { "number": 2 } ], "x": 1 } });
        remove(&mut value, "spec.ports[0].name");
        remove(&mut value, "spec.x");
        remove(&mut value, "spec.ports[7].name");
        assert_eq!(value, json!({ "spec": { "ports": [ { "number": 1 }, { "number": 2 } ] } }));
    }
}
