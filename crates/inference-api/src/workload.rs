//! Workloads and Services: what the local provider needs to start pods and to find them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::object::ObjectMeta;
use crate::port::TargetPort;
use crate::probe::Probe;

/// Label of a LeaderWorkerSet's pods with the name of the set.
const LWS_NAME: &str = "leaderworkerset.sigs.k8s.io/name";
/// Label of a LeaderWorkerSet's pods with the number of the pod in its group; the leader has 0.
const LWS_WORKER_INDEX: &str = "leaderworkerset.sigs.k8s.io/worker-index";

/// Replicas of one pod template.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub kind: WorkloadKind,
    pub meta: ObjectMeta,
    pub replicas: u32,
    /// Labels that must be among those of the template. Empty: the kind has no such selector.
    pub selector: BTreeMap<String, String>,
    pub template: PodTemplate,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkloadKind {
    Deployment,
    ReplicaSet,
    StatefulSet,
    /// Groups of pods. Only the leaders of the groups serve, so a replica is a leader.
    LeaderWorkerSet,
    Pod,
    /// A kind that is known only by the templates of pods in its objects.
    Other(String),
}

impl WorkloadKind {
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(kind) => kind,
            known => known.known().unwrap_or_default(),
        }
    }

    /// The name of a known kind.
    pub(crate) fn known(&self) -> Option<&'static str> {
        match self {
            Self::Deployment => Some("Deployment"),
            Self::ReplicaSet => Some("ReplicaSet"),
            Self::StatefulSet => Some("StatefulSet"),
            Self::LeaderWorkerSet => Some("LeaderWorkerSet"),
            Self::Pod => Some("Pod"),
            Self::Other(_) => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PodTemplate {
    #[serde(rename = "metadata", default)]
    pub meta: TemplateMeta,
    pub spec: PodSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TemplateMeta {
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    pub containers: Vec<Container>,
    /// Containers that run before the others; one with a restart policy runs beside them.
    #[serde(default)]
    pub init_containers: Vec<Container>,
}

impl PodSpec {
    /// All ports that containers declare.
    pub fn ports(&self) -> impl Iterator<Item = &ContainerPort> + Clone {
        self.containers.iter().chain(&self.init_containers).flat_map(|container| &container.ports)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    pub image: Option<String>,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
    #[serde(default)]
    pub env: Vec<EnvVar>,
    #[serde(default)]
    pub env_from: Vec<EnvFrom>,
    pub startup_probe: Option<Probe>,
    pub readiness_probe: Option<Probe>,
    pub liveness_probe: Option<Probe>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    pub container_port: u16,
    pub name: Option<String>,
    pub protocol: Option<String>,
}

/// A variable of a container: a value, or where the value is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    pub name: String,
    #[serde(default)]
    pub value: String,
    pub value_from: Option<EnvSource>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvSource {
    pub config_map_key_ref: Option<KeyRef>,
    pub secret_key_ref: Option<KeyRef>,
    pub field_ref: Option<FieldRef>,
}

/// A key of a ConfigMap or Secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct KeyRef {
    pub name: String,
    pub key: String,
}

/// A field of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldRef {
    pub field_path: String,
}

/// All keys of a ConfigMap or Secret as variables.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnvFrom {
    #[serde(default)]
    pub prefix: String,
    pub config_map_ref: Option<NameRef>,
    pub secret_ref: Option<NameRef>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct NameRef {
    pub name: String,
}

impl Container {
    /// The probes that are set, each with the name of its field.
    pub fn probes(&self) -> impl Iterator<Item = (&'static str, &Probe)> {
        let Self { startup_probe, readiness_probe, liveness_probe, .. } = self;
        [
            ("startupProbe", startup_probe),
            ("readinessProbe", readiness_probe),
            ("livenessProbe", liveness_probe),
        ]
        .into_iter()
        .filter_map(|(name, probe)| Some((name, probe.as_ref()?)))
    }
}

/// Text by key: a ConfigMap, or a Secret whose values are readable.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyValues {
    pub meta: ObjectMeta,
    pub values: BTreeMap<String, String>,
}

/// A name for the pods that its selector matches.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Service {
    #[serde(rename = "metadata")]
    pub meta: ObjectMeta,
    pub spec: ServiceSpec,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    #[serde(default)]
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: u16,
    /// Port of the pods. None: the same as `port`.
    pub target_port: Option<TargetPort>,
}

// === wire forms ===

/// A Deployment, ReplicaSet or StatefulSet.
#[derive(Deserialize)]
pub(crate) struct Replicated {
    metadata: ObjectMeta,
    spec: ReplicatedSpec,
}

#[derive(Deserialize)]
struct ReplicatedSpec {
    #[serde(default = "one_replica")]
    replicas: u32,
    selector: Selector,
    template: PodTemplate,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
pub(crate) struct LeaderWorkerSet {
    metadata: ObjectMeta,
    spec: LeaderWorkerSetSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaderWorkerSetSpec {
    #[serde(default = "one_replica")]
    replicas: u32,
    leader_worker_template: LeaderWorkerTemplate,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaderWorkerTemplate {
    /// `None` if the leader has the workers' template.
    leader_template: Option<PodTemplate>,
    worker_template: PodTemplate,
}

#[derive(Deserialize)]
pub(crate) struct Pod {
    metadata: ObjectMeta,
    spec: PodSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConfigMap {
    metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Secret {
    metadata: ObjectMeta,
    #[serde(default)]
    string_data: BTreeMap<String, String>,
}

impl Replicated {
    pub(crate) fn into_workload(self, kind: WorkloadKind) -> Workload {
        let Self { metadata, spec: ReplicatedSpec { replicas, selector, template } } = self;
        Workload { kind, meta: metadata, replicas, selector: selector.match_labels, template }
    }
}

impl From<LeaderWorkerSet> for Workload {
    fn from(LeaderWorkerSet { metadata, spec }: LeaderWorkerSet) -> Self {
        let LeaderWorkerSetSpec { replicas, leader_worker_template } = spec;
        let LeaderWorkerTemplate { leader_template, worker_template } = leader_worker_template;
        let mut template = leader_template.unwrap_or(worker_template);
        let labels = [(LWS_NAME, metadata.name.as_str()), (LWS_WORKER_INDEX, "0")];
        template.meta.labels.extend(labels.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let kind = WorkloadKind::LeaderWorkerSet;
        Self { kind, meta: metadata, replicas, selector: BTreeMap::new(), template }
    }
}

impl From<Pod> for Workload {
    fn from(Pod { metadata, spec }: Pod) -> Self {
        let meta =
            TemplateMeta { labels: metadata.labels.clone(), annotations: metadata.annotations.clone() };
        let template = PodTemplate { meta, spec };
        Self { kind: WorkloadKind::Pod, meta: metadata, replicas: 1, selector: BTreeMap::new(), template }
    }
}

impl From<ConfigMap> for KeyValues {
    fn from(ConfigMap { metadata, data }: ConfigMap) -> Self {
        Self { meta: metadata, values: data }
    }
}

impl From<Secret> for KeyValues {
    fn from(Secret { metadata, string_data }: Secret) -> Self {
        Self { meta: metadata, values: string_data }
    }
}

fn one_replica() -> u32 {
    1
}
