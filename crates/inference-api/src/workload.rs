//! Deployment and Service: what the local provider needs to start pods and to find them.
//!
//! Fields that only a cluster can honour (images, resources, volumes) are accepted and listed by
//! [`Deployment::inert_fields`], so that a run can say that they had no effect.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::object::ObjectMeta;
use crate::port::TargetPort;
use crate::probe::Probe;

/// Replicas of one pod template.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deployment {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    pub meta: ObjectMeta,
    pub spec: DeploymentSpec,
    #[serde(rename = "status")]
    _status: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeploymentSpec {
    #[serde(default = "one_replica")]
    pub replicas: u32,
    pub selector: Selector,
    pub template: PodTemplate,
    progress_deadline_seconds: Option<Value>,
    revision_history_limit: Option<Value>,
    strategy: Option<Value>,
    min_ready_seconds: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    pub match_labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodTemplate {
    #[serde(rename = "metadata", default)]
    pub meta: TemplateMeta,
    pub spec: PodSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateMeta {
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSpec {
    pub containers: Vec<Container>,
    volumes: Option<Value>,
    node_selector: Option<Value>,
    tolerations: Option<Value>,
    affinity: Option<Value>,
    restart_policy: Option<Value>,
    runtime_class_name: Option<Value>,
    image_pull_secrets: Option<Value>,
    service_account_name: Option<Value>,
    termination_grace_period_seconds: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Container {
    pub name: String,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
    pub startup_probe: Option<Probe>,
    pub readiness_probe: Option<Probe>,
    pub liveness_probe: Option<Probe>,
    image: Option<Value>,
    image_pull_policy: Option<Value>,
    resources: Option<Value>,
    env: Option<Value>,
    volume_mounts: Option<Value>,
    security_context: Option<Value>,
    termination_message_path: Option<Value>,
    termination_message_policy: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerPort {
    pub container_port: u16,
    pub name: Option<String>,
    pub protocol: Option<String>,
}

impl Deployment {
    /// Paths of the fields that are set and have no effect outside a cluster.
    #[must_use]
    pub fn inert_fields(&self) -> Vec<String> {
        let spec = &self.spec;
        let mut found = Vec::new();
        let mut note = |path: &str, field: &Option<Value>| {
            if field.is_some() {
                found.push(path.to_owned());
            }
        };
        note("spec.progressDeadlineSeconds", &spec.progress_deadline_seconds);
        note("spec.revisionHistoryLimit", &spec.revision_history_limit);
        note("spec.strategy", &spec.strategy);
        note("spec.minReadySeconds", &spec.min_ready_seconds);
        let pod = &spec.template.spec;
        for (name, field) in [
            ("volumes", &pod.volumes),
            ("nodeSelector", &pod.node_selector),
            ("tolerations", &pod.tolerations),
            ("affinity", &pod.affinity),
            ("restartPolicy", &pod.restart_policy),
            ("runtimeClassName", &pod.runtime_class_name),
            ("imagePullSecrets", &pod.image_pull_secrets),
            ("serviceAccountName", &pod.service_account_name),
            ("terminationGracePeriodSeconds", &pod.termination_grace_period_seconds),
        ] {
            note(&format!("spec.template.spec.{name}"), field);
        }
        for container in &pod.containers {
            for (name, field) in container.inert() {
                note(&format!("spec.template.spec.containers[{}].{name}", container.name), field);
            }
        }
        for container in &pod.containers {
            for (name, probe) in container.probes() {
                let inert = probe.inert().into_iter();
                let path = format!("spec.template.spec.containers[{}].{name}", container.name);
                found.extend(inert.map(|field| format!("{path}.{field}")));
            }
        }
        found
    }
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

    fn inert(&self) -> [(&'static str, &Option<Value>); 8] {
        [
            ("image", &self.image),
            ("imagePullPolicy", &self.image_pull_policy),
            ("resources", &self.resources),
            ("env", &self.env),
            ("volumeMounts", &self.volume_mounts),
            ("securityContext", &self.security_context),
            ("terminationMessagePath", &self.termination_message_path),
            ("terminationMessagePolicy", &self.termination_message_policy),
        ]
    }
}

/// A name for the pods that its selector matches.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    pub meta: ObjectMeta,
    pub spec: ServiceSpec,
    #[serde(rename = "status")]
    _status: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    #[serde(default)]
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
    /// `ClusterIP` or nothing: a gateway connects to the pods, not to the Service's address.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    pub name: Option<String>,
    pub protocol: Option<String>,
    pub port: u16,
    /// Port of the pods. None: the same as `port`.
    pub target_port: Option<TargetPort>,
}

fn one_replica() -> u32 {
    1
}
