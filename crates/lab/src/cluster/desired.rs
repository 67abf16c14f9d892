//! The checked content of the manifests: pods, pickers and the gateway's plan.

mod pickers;
#[cfg(test)]
mod workloads;

use anyhow::{Result, bail};
use gateway_config::plan::{Backend, Plan, PodPort};
use inference_api::kinds::Object;
use inference_api::remark::Remark;
use inference_api::workload::{EnvFrom, Workload};

use crate::cluster::Strictness;
use crate::cluster::adapters;
use crate::cluster::manifests::Manifests;
use crate::cluster::notes;
use crate::cluster::picker_choice::PickerChoice;
use crate::cluster::picker_config::FoundConfig;
use crate::cluster::reading::Reading;
use crate::cluster::refusal::Refusal;
use crate::cluster::their_picker::TheirPicker;
use crate::cluster::workload::{DesiredDeployment, WorkloadContext};

pub(super) use crate::cluster::desired::pickers::DesiredPicker;

/// Content of the manifests, ready to run.
#[derive(Clone, Debug)]
pub(super) struct Desired {
    pub(super) plan: Plan,
    pub(super) deployments: Vec<DesiredDeployment>,
    pub(super) pickers: Vec<DesiredPicker>,
    /// Objects and fields that have no effect here.
    pub(super) remarks: Vec<Remark>,
    /// The remarks, and what looks like a mistake, for people.
    pub(super) notes: Vec<String>,
}

impl Desired {
    /// Checks the manifests.
    ///
    /// # Errors
    /// Names the first object that is malformed or cannot run here, with its file and field; if they are read strictly,
    /// everything that has no effect.
    pub(super) fn new(manifests: &Manifests, strictness: Strictness, choice: &PickerChoice) -> Result<Self> {
        let reading = Reading::new(manifests)?;
        reading.check()?;
        let desired = Self::of(&reading, choice).map_err(|refusal| reading.at(refusal))?;
        if matches!(choice, PickerChoice::Theirs { .. })
            && desired.pickers.iter().all(|picker| picker.theirs.is_none())
        {
            bail!(
                "--picker theirs: among the files is no Deployment behind a Service that a pool names as its picker: \
                 add it, or leave out `--picker` for the lab's own"
            );
        }
        match strictness {
            Strictness::Strict if !desired.remarks.is_empty() => {
                let parts: Vec<String> =
                    desired.remarks.iter().map(|remark| reading.strictly(remark)).collect();
                bail!("{}", parts.join("\n"))
            }
            Strictness::Strict | Strictness::Lenient => Ok(desired),
        }
    }

    /// Finds out what the objects mean together.
    pub(super) fn of(reading: &Reading, choice: &PickerChoice) -> Result<Self, Refusal> {
        let objects: Vec<Object> = reading.objects().map(|(object, _)| object.clone()).collect();
        let plan = Plan::new(&objects)?;
        let objects: Vec<&Object> = objects.iter().collect();
        let context = WorkloadContext::new(&objects, &plan, choice);
        let mut deployments = Vec::new();
        let mut remarks: Vec<Remark> = reading.remarks().chain(&plan.remarks).cloned().collect();
        for (object, document) in reading.originals() {
            let Some(workload) = as_workload(object) else { continue };
            let (mut pods, left_out) =
                context.pods(workload).map_err(|error| refuse(workload, format!("{error:#}")))?;
            let maps = objects.iter().filter_map(|object| match object {
                Object::ConfigMap(map) if map.meta.namespace == workload.meta.namespace => Some(map),
                _ => None,
            });
            let adapters = adapters::of_sidecar(document, &maps.collect::<Vec<_>>());
            pods.iter_mut().for_each(|pods| pods.command.load(&adapters));
            deployments.extend(pods);
            remarks.extend(left_out);
        }
        let (pickers, left_out) = pickers::of(reading, choice, (&plan, &deployments))?;
        let is_used = |object: &&&Object| {
            let key = object.key();
            let is_config = |config: &FoundConfig| config.holder() == (object.kind(), &key);
            let is_read = |theirs: &TheirPicker| object.kind() == "ConfigMap" && theirs.reads(&key);
            pickers.iter().any(|picker| {
                picker.config.as_ref().is_some_and(is_config) || picker.theirs.as_ref().is_some_and(is_read)
            })
        };
        let others = objects.iter().filter(|object| !is_used(object));
        remarks.extend(others.filter_map(|object| unused(object, &objects, &plan)));
        remarks.extend(left_out);
        let theirs: Vec<&TheirPicker> = pickers.iter().filter_map(|picker| picker.theirs.as_ref()).collect();
        remarks.retain(|remark| !theirs.iter().any(|theirs| theirs.follows(remark)));
        let mut notes = notes::grouped(&remarks);
        for cluster in &plan.clusters {
            notes.extend(check_backend(&cluster.backend, &deployments)?);
        }
        Ok(Self { plan, deployments, pickers, remarks, notes })
    }
}

impl Reading {
    /// The error with the place of its object.
    pub(super) fn at(&self, refusal: Refusal) -> anyhow::Error {
        match self.place(&refusal.kind, &refusal.key) {
            Some(place) => anyhow::anyhow!("{place}, {refusal}"),
            None => anyhow::anyhow!("{refusal}"),
        }
    }

    /// The remark as the error that it is to a strict reader.
    pub(super) fn strictly(&self, remark: &Remark) -> String {
        let Remark { kind, key, field, on_a_cluster } = remark;
        let place = self.place(kind, key).map_or_else(String::new, |place| format!("{place}, "));
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        format!(
            "{place}{kind} {key}: {field}without effect here, refused by --strict; on a cluster {on_a_cluster}"
        )
    }
}

fn refuse(workload: &Workload, what: String) -> Refusal {
    Refusal { kind: workload.kind.as_str().to_owned(), key: workload.meta.key(), what }
}

fn as_workload(object: &Object) -> Option<&Workload> {
    match object {
        Object::Workload(workload) => Some(workload),
        _ => None,
    }
}

/// A remark on an object that nothing here refers to.
fn unused(object: &Object, objects: &[&Object], plan: &Plan) -> Option<Remark> {
    let remark = |effect: &str| Some(Remark::new(object.kind(), object.key(), "", effect));
    match object {
        Object::Service(service) => {
            let is_routed = plan.clusters.iter().any(|cluster| {
                matches!(&cluster.backend, Backend::Service { key, .. } if *key == service.meta.key())
            });
            let is_pickers = objects.iter().any(|object| {
                matches!(object, Object::InferencePool(pool)
                    if pool.meta.namespace == service.meta.namespace && pool.picker.as_ref().is_some_and(|picker| picker.name == service.meta.name))
            });
            if is_routed || is_pickers { None } else { remark("other pods reach its pods by this name") }
        }
        Object::ConfigMap(_) | Object::Secret(_) => {
            let is_read = objects.iter().filter_map(|object| as_workload(object)).any(|workload| {
                workload.meta.namespace == object.key().namespace && reads(workload, &object.key().name)
            });
            if is_read { None } else { remark("pods mount it, or controllers read it") }
        }
        _ => None,
    }
}

/// True if a variable of the workload's containers comes from a ConfigMap or Secret of this name.
fn reads(workload: &Workload, name: &str) -> bool {
    workload.template.spec.containers.iter().any(|container| {
        let sources = container.env.iter().filter_map(|variable| variable.value_from.as_ref());
        let keys = sources.flat_map(|source| source.config_map_key_ref.iter().chain(&source.secret_key_ref));
        let all = container.env_from.iter().flat_map(|EnvFrom { prefix: _, config_map_ref, secret_ref }| {
            config_map_ref.iter().chain(secret_ref)
        });
        keys.map(|key| &key.name).chain(all.map(|source| &source.name)).any(|found| found == name)
    })
}

/// Returns a note if no pod is behind the backend.
fn check_backend(backend: &Backend, deployments: &[DesiredDeployment]) -> Result<Option<String>, Refusal> {
    let key = backend.key();
    let kind = match backend {
        Backend::Service { .. } => "Service",
        Backend::Pool { .. } => "InferencePool",
    };
    let mut behind = deployments.iter().filter(|deployment| deployment.is_selected(backend)).peekable();
    let Some(first) = behind.peek().copied() else {
        return Ok(Some(format!("{kind} {key} selects the pods of no Deployment")));
    };
    if behind.any(|deployment| deployment.serves(backend)) {
        return Ok(None);
    }
    let wanted = backend.ports().iter().map(|port| match port {
        PodPort::Number(number) => number.to_string(),
        PodPort::Name(name) => name.clone(),
    });
    let wanted: Vec<String> = wanted.collect();
    let what = format!(
        "its target port is {}, but the pods of Deployment {} serve on {}",
        wanted.join(", "),
        first.key,
        first.command.port
    );
    Err(Refusal { kind: kind.to_owned(), key: key.clone(), what })
}

#[cfg(test)]
mod tests {
    use super::Desired;
    use super::PickerChoice;
    use crate::cluster::Strictness;
    use crate::cluster::manifests::Manifests;

    fn check_refused(from: &str, to: &str, part: &str) {
        let mut manifests = Manifests::tutorial();
        manifests.replace(from, to).unwrap();
        let error =
            format!("{:#}", Desired::new(&manifests, Strictness::Lenient, &PickerChoice::Ours).unwrap_err());
        assert!(error.contains(part), "{error}");
    }

    /// Edits the tutorial: it is taken with a note, and refused by a strict reader.
    fn check_noted(from: &str, to: &str, part: &str) {
        let mut manifests = Manifests::tutorial();
        manifests.replace(from, to).unwrap();
        let notes = Desired::new(&manifests, Strictness::Lenient, &PickerChoice::Ours).unwrap().notes;
        assert!(notes.iter().any(|note| note.contains(part)), "{notes:?}");
        let error =
            format!("{:#}", Desired::new(&manifests, Strictness::Strict, &PickerChoice::Ours).unwrap_err());
        assert!(
            error.contains(part) && error.contains("--strict") && error.contains(", document "),
            "{error}"
        );
    }

    #[test]
    fn tutorial_is_five_pods_and_one_picker() {
        let desired = Desired::new(&Manifests::tutorial(), Strictness::Lenient, &PickerChoice::Ours).unwrap();
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
            "--port 8000 --trust",
            "--port many --trust",
            "Deployment default/qwen: command of container vllm: --port many",
        );
        check_noted(
            "    kind: InferencePool\n    name: vllm-qwen-pool\n  targetModels",
            "    kind: InferencePool\n    name: other\n  targetModels",
            "it waits for InferencePool default/other",
        );
    }

    #[test]
    fn what_has_no_effect_is_noted() {
        check_noted("      containers:", "      hostNetwork: true\n      containers:", "hostNetwork");
        check_noted("kind: GatewayClass", "kind: TCPRoute", "TCPRoute default/qwen-inference-gateway-class");
        check_noted(
            "  timeout:\n",
            "  rateLimit: {type: Local}\n  timeout:\n",
            "on a cluster Envoy answers 429 above the limit",
        );
        check_noted(
            "kind: GatewayClass",
            "kind: SecurityPolicy",
            "Envoy refuses requests that it does not allow",
        );
        let mut manifests = Manifests::tutorial();
        manifests.files.insert("values.yaml".to_owned(), "replicas: 1".to_owned());
        let notes = Desired::new(&manifests, Strictness::Lenient, &PickerChoice::Ours).unwrap().notes;
        assert!(notes.iter().any(|note| note.contains("not a Kubernetes object")), "{notes:?}");
    }

    #[test]
    fn the_last_of_two_objects_of_one_name_counts() {
        let mut manifests = Manifests::tutorial();
        let pods = manifests.files["vllm-service.yaml"].replace("replicas: 5", "replicas: 2");
        manifests.files.insert("z.yaml".to_owned(), pods);
        let desired = Desired::new(&manifests, Strictness::Lenient, &PickerChoice::Ours).unwrap();
        let [deployment] = desired.deployments.as_slice() else { panic!("{:?}", desired.deployments) };
        assert_eq!(deployment.replicas, 2);
        let note = "Deployment default/qwen (metadata.name), Service default/qwen (metadata.name); on a cluster a later object";
        assert!(desired.notes.iter().any(|found| found.contains(note)), "{:?}", desired.notes);
        // Control: the same object in another namespace is another one.
        let mut manifests = Manifests::tutorial();
        let pods =
            manifests.files["vllm-service.yaml"].replace("name: qwen\n", "name: qwen\n  namespace: other\n");
        manifests.files.insert("z.yaml".to_owned(), pods);
        assert!(
            !Desired::new(&manifests, Strictness::Lenient, &PickerChoice::Ours)
                .unwrap()
                .notes
                .concat()
                .contains("a later object")
        );
    }

    #[test]
    fn a_named_target_port_is_followed() {
        let mut manifests = Manifests::tutorial();
        manifests.replace("targetPort: 8000", "targetPort: http").unwrap();
        Desired::new(&manifests, Strictness::Lenient, &PickerChoice::Ours).unwrap();
    }

    #[test]
    fn a_backend_without_pods_is_noted() {
        let mut manifests = Manifests::tutorial();
        manifests
            .replace(
                "  selector:\n    app: qwen\n  extensionRef",
                "  selector:\n    app: other\n  extensionRef",
            )
            .unwrap();
        let notes = Desired::new(&manifests, Strictness::Lenient, &PickerChoice::Ours).unwrap().notes;
        assert!(
            notes.contains(
                &"InferencePool default/vllm-qwen-pool selects the pods of no Deployment".to_owned()
            ),
            "{notes:?}"
        );
    }
}
