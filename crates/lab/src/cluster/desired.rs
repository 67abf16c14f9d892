//! The checked content of the manifests: deployments, pickers and the gateway's plan.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use gateway_config::plan::{Backend, Plan, PodPort};
use inference_api::kinds::Object;
use inference_api::manifest;
use inference_api::object::{self, ObjectKey};
use inference_api::pool::PrefixSource;
use inference_api::workload::{Container, Deployment};
use serde_json::Value;

use crate::cluster::command::EngineCommand;
use crate::cluster::manifests::Manifests;
use crate::cluster::probe::Probes;

/// Content of the manifests, ready to run.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    pub(super) plan: Plan,
    pub(super) deployments: Vec<DesiredDeployment>,
    pub(super) pickers: Vec<DesiredPicker>,
    /// Remarks on objects that have no effect here or look like mistakes.
    pub(super) notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DesiredDeployment {
    pub(super) key: ObjectKey,
    pub(super) replicas: u32,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) command: EngineCommand,
    pub(super) probes: Probes,
    /// True if a pool of these pods reads their KV events.
    pub(super) publishes_events: bool,
    /// Names of the container port on which the engine serves.
    port_names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DesiredPicker {
    /// Name that the managed component gives the Deployment: `epp-<namespace>-<extensionRef.name>`.
    pub(super) name: String,
    pub(super) pools: Vec<ObjectKey>,
    /// The picker's InferencePools and InferenceModels, as in the manifests.
    pub(super) pool_file: String,
}

impl Desired {
    /// Checks the manifests.
    ///
    /// # Errors
    /// Names the first object that is malformed or cannot run here, with its file and field.
    pub(super) fn new(manifests: &Manifests) -> Result<Self> {
        let mut objects = Vec::new();
        let mut documents = Vec::new();
        for (file, text) in &manifests.files {
            objects.extend(manifest::parse(text, file)?);
            documents.extend(documents_of(text)?);
        }
        let plan = Plan::new(&objects)?;
        if plan.listeners.is_empty() {
            bail!("there is no Gateway in the manifests");
        }
        let mut deployments = Vec::new();
        let mut notes = Vec::new();
        for object in &objects {
            if let Object::Deployment(deployment) = object {
                deployments.push(DesiredDeployment::new(deployment)?);
                notes.extend(inert_note(deployment));
            }
        }
        for cluster in &plan.clusters {
            notes.extend(check_backend(&cluster.backend, &deployments)?);
        }
        for deployment in &mut deployments {
            deployment.publishes_events = objects.iter().any(|object| wants_events(object, deployment));
        }
        let pickers = pickers(&objects, &documents)?;
        Ok(Self { plan, deployments, pickers, notes })
    }
}

impl DesiredDeployment {
    fn new(deployment: &Deployment) -> Result<Self> {
        let key = deployment.meta.key();
        let template = &deployment.spec.template;
        if !object::selects(&deployment.spec.selector.match_labels, &template.meta.labels) {
            bail!("Deployment {key}: spec.selector: does not match the labels of spec.template");
        }
        let [container] = template.spec.containers.as_slice() else {
            bail!("Deployment {key}: spec.template.spec.containers: exactly one container can be run here");
        };
        let command = EngineCommand::parse(container)
            .with_context(|| format!("Deployment {key}: command of container {}", container.name))?;
        let probes = Probes::new(container, command.port)
            .with_context(|| format!("Deployment {key}: container {}", container.name))?;
        Ok(Self {
            probes,
            port_names: port_names(container, command.port),
            replicas: deployment.spec.replicas,
            labels: template.meta.labels.clone(),
            command,
            publishes_events: false,
            key,
        })
    }

    /// True if the backend selects this Deployment's pods.
    pub(super) fn serves(&self, backend: &Backend) -> bool {
        self.key.namespace == backend.key().namespace && object::selects(backend.selector(), &self.labels)
    }
}

fn wants_events(object: &Object, deployment: &DesiredDeployment) -> bool {
    let Object::InferencePool(pool) = object else { return false };
    pool.prefix_source() == Ok(PrefixSource::Events)
        && pool.meta.namespace == deployment.key.namespace
        && object::selects(&pool.selector, &deployment.labels)
}

fn port_names(container: &Container, port: u16) -> Vec<String> {
    let named = container.ports.iter().filter(|candidate| candidate.container_port == port);
    named.filter_map(|candidate| candidate.name.clone()).collect()
}

/// Returns a note if no pod is behind the backend.
fn check_backend(backend: &Backend, deployments: &[DesiredDeployment]) -> Result<Option<String>> {
    let key = backend.key();
    let kind = match backend {
        Backend::Service { .. } => "Service",
        Backend::Pool { .. } => "InferencePool",
    };
    let mut n_behind = 0;
    for deployment in deployments.iter().filter(|deployment| deployment.serves(backend)) {
        n_behind += 1;
        let serves = match backend.port() {
            PodPort::Number(number) => *number == deployment.command.port,
            PodPort::Name(name) => deployment.port_names.contains(name),
        };
        if !serves {
            let wanted = match backend.port() {
                PodPort::Number(number) => number.to_string(),
                PodPort::Name(name) => name.clone(),
            };
            let port = deployment.command.port;
            bail!(
                "{kind} {key}: its target port is {wanted}, but the pods of Deployment {} serve on {port}",
                deployment.key
            );
        }
    }
    Ok((n_behind == 0).then(|| format!("{kind} {key} selects the pods of no Deployment")))
}

fn inert_note(deployment: &Deployment) -> Option<String> {
    let inert = deployment.inert_fields();
    let short = |path: &String| path.trim_start_matches("spec.template.").to_owned();
    let fields: Vec<String> = inert.iter().map(short).collect();
    let key = deployment.meta.key();
    (!fields.is_empty())
        .then(|| format!("Deployment {key}: without effect outside a cluster: {}", fields.join(", ")))
}

fn pickers(objects: &[Object], documents: &[Value]) -> Result<Vec<DesiredPicker>> {
    let mut pickers: Vec<DesiredPicker> = Vec::new();
    for (object, document) in objects.iter().zip(documents) {
        if let Object::InferencePool(pool) = object {
            let name = format!("epp-{}-{}", pool.meta.namespace, pool.picker.name);
            let position = pickers.iter().position(|picker| picker.name == name);
            let position = position.unwrap_or_else(|| {
                pickers.push(DesiredPicker { name, pools: Vec::new(), pool_file: String::new() });
                pickers.len() - 1
            });
            pickers[position].pools.push(pool.key());
            push_document(&mut pickers[position].pool_file, document)?;
        }
    }
    let mut names = BTreeSet::new();
    for (object, document) in objects.iter().zip(documents) {
        if let Object::InferenceModel(model) = object {
            if !names.insert(model.meta.key()) {
                bail!(
                    "InferenceModel {}: metadata.name: there are two objects of this name",
                    model.meta.key()
                );
            }
            let pool = ObjectKey::new(&model.meta.namespace, &model.pool);
            let Some(picker) = pickers.iter_mut().find(|picker| picker.pools.contains(&pool)) else {
                bail!(
                    "InferenceModel {}: spec.poolRef.name: there is no InferencePool {pool}",
                    model.meta.key()
                );
            };
            push_document(&mut picker.pool_file, document)?;
        }
    }
    Ok(pickers)
}

/// Appends a document in JSON, which is also YAML.
fn push_document(pool_file: &mut String, document: &Value) -> Result<()> {
    pool_file.push_str("---\n");
    pool_file.push_str(&serde_json::to_string_pretty(document)?);
    pool_file.push('\n');
    Ok(())
}

/// Returns the documents from which [`manifest::parse`] makes objects, in the same order.
fn documents_of(text: &str) -> Result<Vec<Value>> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

#[cfg(test)]
mod tests {
    use super::Desired;
    use crate::cluster::manifests::Manifests;

    fn tutorial() -> Manifests {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/doc");
        Manifests::read(std::path::Path::new(dir)).unwrap()
    }

    fn check_refused(from: &str, to: &str, part: &str) {
        let mut manifests = tutorial();
        manifests.replace(from, to).unwrap();
        let error = format!("{:#}", Desired::new(&manifests).unwrap_err());
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn tutorial_is_five_pods_and_one_picker() {
        let desired = Desired::new(&tutorial()).unwrap();
        let [deployment] = desired.deployments.as_slice() else { panic!("{:?}", desired.deployments) };
        assert_eq!((deployment.replicas, deployment.command.port), (5, 8000));
        assert_eq!(deployment.command.args[..2], ["serve", "/models/Qwen2.5-7B-Instruct"]);
        let [picker] = desired.pickers.as_slice() else { panic!("{:?}", desired.pickers) };
        assert_eq!(picker.name, "epp-default-inference-gateway-ext-proc");
        assert_eq!(picker.pool_file.matches("---\n").count(), 2);
        assert!(
            picker.pool_file.contains(r#""inference.networking.x-k8s.io/routing-strategy": "PREFIX_CACHE""#)
        );
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        check_refused(
            "targetPortNumber: 8000",
            "targetPortNumber: 9000",
            "InferencePool default/vllm-qwen-pool: its target port is 9000",
        );
        check_refused("targetPort: 8000", "targetPort: metrics", "its target port is metrics");
        check_refused(
            "vllm serve /models",
            "sglang serve /models",
            "Deployment default/qwen: command of container vllm",
        );
        check_refused(
            "    kind: InferencePool\n    name: vllm-qwen-pool\n  targetModels",
            "    kind: InferencePool\n    name: other\n  targetModels",
            "there is no InferencePool default/other",
        );
    }

    #[test]
    fn a_named_target_port_is_followed() {
        let mut manifests = tutorial();
        manifests.replace("targetPort: 8000", "targetPort: http").unwrap();
        Desired::new(&manifests).unwrap();
    }

    #[test]
    fn a_backend_without_pods_is_noted() {
        let mut manifests = tutorial();
        manifests
            .replace(
                "  selector:\n    app: qwen\n  extensionRef",
                "  selector:\n    app: other\n  extensionRef",
            )
            .unwrap();
        let notes = Desired::new(&manifests).unwrap().notes;
        assert!(
            notes.contains(
                &"InferencePool default/vllm-qwen-pool selects the pods of no Deployment".to_owned()
            ),
            "{notes:?}"
        );
    }
}
