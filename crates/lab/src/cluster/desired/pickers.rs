//! The pickers that the pools name: their pools and models, and their configuration.

use gateway_config::plan::Plan;
use inference_api::keys;
use inference_api::kinds::Object;
use inference_api::object::ObjectKey;
use inference_api::pool::{InferencePool, ModelServerRuntime, RoutingStrategy};
use inference_api::remark::Remark;
use serde_json::Value;

use crate::cluster::picker_choice::PickerChoice;
use crate::cluster::picker_config::{FoundConfig, PickerConfigs};
use crate::cluster::reading::Reading;
use crate::cluster::refusal::Refusal;
use crate::cluster::their_picker::TheirPicker;
use crate::cluster::workload::DesiredDeployment;
use crate::cluster::workload::command::Engine;
use crate::cluster::workload::env::Sources;

#[derive(Clone, Debug, PartialEq)]
pub(in crate::cluster) struct DesiredPicker {
    /// Name that the managed component gives the Deployment: `epp-<namespace>-<extensionRef.name>`.
    pub(in crate::cluster) name: String,
    pub(in crate::cluster) pools: Vec<ObjectKey>,
    /// The picker's InferencePools, and the objects that refer to them, as in the manifests.
    pub(in crate::cluster) pool_file: String,
    /// Upstream's configuration for it.
    pub(in crate::cluster) config: Option<FoundConfig>,
    /// Its own Deployment, if that is to run.
    pub(in crate::cluster) theirs: Option<TheirPicker>,
}

/// The pickers that the pools name, and what of their objects has no effect.
pub(super) fn of(
    reading: &Reading,
    choice: &PickerChoice,
    (plan, deployments): (&Plan, &[DesiredDeployment]),
) -> Result<(Vec<DesiredPicker>, Vec<Remark>), Refusal> {
    let configs = PickerConfigs::new(reading);
    let sources = Sources::new(reading.objects().map(|(object, _)| object));
    let mut pickers: Vec<DesiredPicker> = Vec::new();
    let mut remarks = Vec::new();
    for (object, document) in reading.objects() {
        if let Object::InferencePool(pool) = object {
            let Some(picker) = &pool.picker else {
                let effect = "a Gateway may pick its endpoints without a picker";
                remarks.push(Remark::new(object.kind(), pool.key(), "", effect));
                continue;
            };
            let name = format!("epp-{}-{}", pool.meta.namespace, picker.name);
            let position = pickers.iter().position(|picker| picker.name == name);
            let position = position.unwrap_or_else(|| {
                let (pools, pool_file) = (Vec::new(), String::new());
                pickers.push(DesiredPicker { name, pools, pool_file, config: None, theirs: None });
                pickers.len() - 1
            });
            let picker = &mut pickers[position];
            let theirs = match choice {
                PickerChoice::Ours => None,
                PickerChoice::Theirs { .. } => TheirPicker::of(pool, &configs, &sources)?,
            };
            if let Some((theirs, left_out)) = theirs {
                remarks.extend(left_out);
                picker.theirs = Some(theirs);
            } else if let Some(config) =
                configs.of(pool)?.filter(|config| picker.config.as_ref() != Some(config))
            {
                remarks.extend(config.remarks());
                picker.config = Some(config);
            }
            let mut document = document.clone();
            follow_config(&mut document, (pool, picker.config.as_ref()));
            remarks.extend(follow_engines(&mut document, (pool, deployments)));
            picker.pools.push(pool.key());
            push_document(&mut picker.pool_file, &document);
        }
    }
    for (object, document) in reading.objects() {
        if let Some(pool) = pool_of(object) {
            match pickers.iter_mut().find(|picker| picker.pools.contains(pool)) {
                Some(picker) => push_document(&mut picker.pool_file, document),
                None => {
                    let effect = format!("it waits for InferencePool {pool}, which is not among the files");
                    remarks.push(Remark::new(object.kind(), object.key(), "spec.poolRef.name", effect));
                }
            }
        }
    }
    // Envoy asks the pickers of the pools that it routes to, and no others.
    let routed = plan.pools();
    let is_routed = |pool: &ObjectKey| routed.iter().any(|routed| routed.key == pool);
    let idle = pickers.iter().flat_map(|picker| &picker.pools).filter(|pool| !is_routed(pool));
    remarks.extend(idle.map(|pool| {
        Remark::new("InferencePool", pool.clone(), "", "its picker waits for a route that leads to it")
    }));
    pickers.retain(|picker| picker.pools.iter().any(is_routed));
    Ok((pickers, remarks))
}

/// Gives a pool without a strategy the one that its picker's configuration means.
fn follow_config(document: &mut Value, (pool, config): (&InferencePool, Option<&FoundConfig>)) {
    let is_open = !pool.meta.annotations.contains_key(keys::ROUTING_STRATEGY);
    if is_open && config.is_some_and(FoundConfig::prefers_prefixes) {
        let strategy = Value::from(RoutingStrategy::PrefixCache.as_str());
        document["metadata"]["annotations"][keys::ROUTING_STRATEGY] = strategy;
    }
}

/// Lets the picker read the metrics that the pool's pods show here. Returns a remark if that is not what it would read
/// on a cluster, or nothing at all.
fn follow_engines(
    document: &mut Value,
    (pool, deployments): (&InferencePool, &[DesiredDeployment]),
) -> Option<Remark> {
    let mut programs = deployments.iter().filter(|pods| pods.is_in(pool)).map(|pods| pods.command.program);
    let remark = |effect: &str| {
        let field = format!("metadata.annotations[{}]", keys::MODEL_SERVER_RUNTIME);
        Some(Remark::new("InferencePool", pool.key(), field, effect))
    };
    let is_stand_in = |program| matches!(program, Engine::Simulator | Engine::Other);
    if programs.clone().any(is_stand_in) && remove_annotation(document, keys::MODEL_SERVER_RUNTIME) {
        remark("the picker reads the metrics of this runtime, and here those of the mock, which are vLLM's")
    } else if programs.any(|program| program == Engine::Sglang)
        && pool.model_server_runtime() == Ok(ModelServerRuntime::Vllm)
    {
        remark("the picker reads vLLM's metrics, which SGLang does not have, as here: set it to sglang")
    } else {
        None
    }
}

/// The pool that an object for a picker refers to.
fn pool_of(object: &Object) -> Option<&ObjectKey> {
    match object {
        Object::InferenceModel(model) => Some(&model.pool),
        Object::InferenceObjective(objective) => Some(&objective.pool),
        Object::InferenceModelRewrite(rewrite) => Some(&rewrite.pool),
        _ => None,
    }
}

/// Removes an annotation; false if the object does not have it.
fn remove_annotation(document: &mut Value, name: &str) -> bool {
    let annotations = document.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut);
    annotations.is_some_and(|annotations| annotations.shift_remove(name).is_some())
}

/// Appends a document in JSON, which is also YAML.
fn push_document(pool_file: &mut String, document: &Value) {
    pool_file.push_str(&format!("---\n{document:#}\n"));
}
