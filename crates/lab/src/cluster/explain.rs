//! Explains what each object of the manifests comes to in the lab, without starting anything.

use std::path::PathBuf;

use anyhow::Result;
use inference_api::kinds::Object;
use inference_api::object::ObjectKey;
use inference_api::remark::Remark;
use serde::Serialize;

use crate::cluster::Strictness;
use crate::cluster::desired::Desired;
use crate::cluster::manifests::Manifests;
use crate::cluster::picker_choice::PickerChoice;
use crate::cluster::reading::{Content, Document, REPLACED, Reading};
use crate::cluster::refusal::Refusal;

/// The answer to every object, in the order of the files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub objects: Vec<Explained>,
    /// Why the cluster would not start, if that is no object's fault alone.
    pub problem: Option<String>,
}

/// The answer to one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explained {
    pub file: String,
    /// Number of the document in the file, from 1.
    pub document: usize,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub answer: Answer,
    /// Outcome, or the reason of a refusal.
    pub what: String,
    /// Its parts without effect; the object as a whole has no field.
    pub without_effect: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Translated,
    WithoutEffect,
    Refused,
}

/// A field without effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    pub field: String,
    pub on_a_cluster: String,
}

/// Explains the manifests of `sources`.
///
/// # Errors
/// When they cannot be read, or are neither YAML nor JSON.
pub fn explain(sources: &[PathBuf], strictness: Strictness) -> Result<Explanation> {
    let reading = Reading::new(&Manifests::read(sources)?)?;
    let mut refusal = None;
    let mut desired = None;
    if reading.check().is_ok() {
        match Desired::of(&reading, &PickerChoice::Ours) {
            Ok(found) => desired = Some(found),
            Err(found) => refusal = Some(found),
        }
    }
    let explained =
        |document: &Document| explained(document, (desired.as_ref(), refusal.as_ref()), strictness);
    let objects: Vec<Explained> = reading.documents.iter().map(explained).collect();
    let has_gateway = desired.as_ref().is_none_or(|desired| !desired.plan.listeners.is_empty());
    let problem = (!has_gateway).then(|| "there is no Gateway that listens for HTTP".to_owned());
    Ok(Explanation { objects, problem })
}

impl Explanation {
    /// True if a cluster of these objects would start.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.problem.is_none() && self.objects.iter().all(|object| object.answer != Answer::Refused)
    }
}

impl Answer {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Translated => "translated",
            Self::WithoutEffect => "without effect",
            Self::Refused => "refused",
        }
    }
}

fn explained(
    document: &Document,
    (desired, refusal): (Option<&Desired>, Option<&Refusal>),
    strictness: Strictness,
) -> Explained {
    let Document { place, kind, key, content } = document;
    let of_this =
        |remark: &&Remark| remark.kind == *kind && remark.key == *key && remark.on_a_cluster != REPLACED;
    let mut remarks: Vec<&Remark> = match (desired, content) {
        (_, Content::NoPart(remark)) => vec![remark],
        (Some(desired), Content::Object { .. } | Content::PickerConfig(_) | Content::Refused { .. }) => {
            desired.remarks.iter().filter(of_this).collect()
        }
        (None, Content::Object { remarks, .. }) => remarks.iter().collect(),
        (None, Content::PickerConfig(_) | Content::Refused { .. }) => Vec::new(),
    };
    remarks.dedup();
    let whole = remarks.iter().find(|remark| remark.field.is_empty());
    let (answer, what) = match (content, whole) {
        (Content::Refused { field, what }, _) => (Answer::Refused, format!("{field}: {what}")),
        (_, _) if refusal.is_some_and(|refusal| refusal.kind == *kind && refusal.key == *key) => {
            (Answer::Refused, refusal.map(|refusal| refusal.what.clone()).unwrap_or_default())
        }
        (_, _) if strictness == Strictness::Strict && !remarks.is_empty() => {
            (Answer::Refused, "--strict: parts of it have no effect here".to_owned())
        }
        (_, Some(remark)) => (Answer::WithoutEffect, format!("on a cluster {}", remark.on_a_cluster)),
        (Content::Object { object, .. }, None) => (Answer::Translated, came_to(object, key, desired)),
        (Content::PickerConfig(_), None) => (Answer::Translated, "configuration of pickers".to_owned()),
        (Content::NoPart(remark), None) => {
            (Answer::WithoutEffect, format!("on a cluster {}", remark.on_a_cluster))
        }
    };
    let part =
        |remark: &&Remark| Part { field: remark.field.clone(), on_a_cluster: remark.on_a_cluster.clone() };
    Explained {
        file: place.file.clone(),
        document: place.document,
        kind: kind.clone(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        answer,
        what,
        without_effect: remarks.iter().map(part).collect(),
    }
}

/// Returns what a translated object comes to.
fn came_to(object: &Object, key: &ObjectKey, desired: Option<&Desired>) -> String {
    let Some(desired) = desired else { return String::new() };
    match object {
        Object::Gateway(_) => {
            let own = desired.plan.listeners.iter().filter(|listener| listener.gateway == *key);
            let own: Vec<String> =
                own.map(|listener| format!("{} on {}", listener.name, listener.port)).collect();
            format!("listeners {}", own.join(", "))
        }
        Object::HttpRoute(_) => {
            let prefix = format!("httproute/{key}/");
            let routes = desired.plan.listeners.iter().flat_map(|listener| &listener.routes);
            let n_routes = routes.filter(|route| route.name.starts_with(&prefix)).count();
            format!("{n_routes} routes of Envoy")
        }
        Object::InferencePool(_) => {
            let picker = desired.pickers.iter().find(|picker| picker.pools.contains(key));
            picker.map_or_else(String::new, |picker| format!("picker {}", picker.name))
        }
        Object::Workload(workload) => {
            let pods = desired.deployments.iter().filter(|pods| {
                pods.key.namespace == key.namespace
                    && (pods.key.name == key.name
                        || pods.key.name == format!("{}-{}", key.name, pods.command.port))
            });
            let pods = pods.map(|pods| {
                format!(
                    "{} pods of `mock-vllm {}` on {}",
                    workload.replicas,
                    pods.command.args.join(" "),
                    pods.command.port
                )
            });
            pods.collect::<Vec<_>>().join(", ")
        }
        Object::InferenceModel(_)
        | Object::InferenceObjective(_)
        | Object::InferenceModelRewrite(_)
        | Object::GatewayClass(_)
        | Object::ReferenceGrant(_)
        | Object::Namespace(_)
        | Object::BackendTrafficPolicy(_)
        | Object::ClientTrafficPolicy(_)
        | Object::Service(_)
        | Object::ConfigMap(_)
        | Object::Secret(_) => String::new(),
    }
}
