//! Faults that a cluster of Kubernetes can have: objects that an operator deletes, scales and restarts.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams};
use lab::cluster::fault::{Fault, Unavailable};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::api::{DEFAULT, ENVOY_GATEWAY};
use crate::cluster::KubernetesCluster;
use crate::cluster::pickers::PICKERS;
use crate::stand::yaml;
use crate::tool::Tool;

/// Label of the controller's pods.
const CONTROLLERS: &str = "app.kubernetes.io/name=warmpath-controller";
const GATEWAY: &str = "envoy-gateway";
/// The command that replaces the pods of Deployments in the namespace of Envoy Gateway.
const RESTART: [&str; 4] = ["--namespace=envoy-gateway-system", "rollout", "restart", "deployment"];
/// Annotation that says which pod of several goes first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Time between two looks at whether pods are gone.
const LOOK: Duration = Duration::from_millis(100);

impl KubernetesCluster {
    pub(super) fn can_have(&self, fault: &Fault) -> Result<(), Unavailable> {
        let reason = match fault {
            Fault::KillPod(_)
            | Fault::KillPicker(_)
            | Fault::KillPickers
            | Fault::ReplacePicker(_)
            | Fault::KillController
            | Fault::RestartGatewayController
            | Fault::RemakePools => return Ok(()),
            Fault::HangApiServer if self.kind.is_some() => return Ok(()),
            Fault::HangApiServer => "the API server's process is only reached on kind",
            Fault::HangPickers => "no program in the picker's image could stop its process",
            Fault::EndConnections | Fault::HoldAnswers | Fault::LoseMessages => {
                "nothing can come between Envoy and the pickers' Services"
            }
            Fault::ForgeCertificates => "the controller puts its own certificates back",
            Fault::EmptyPools | Fault::EmptyEndpoints => {
                "pickers read pools and endpoints from the API server, and not from files"
            }
        };
        Err(Unavailable(reason.to_owned()))
    }

    pub(super) async fn cause(&self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::KillPod(name) => {
                self.kill(DEFAULT, name).await?;
                self.until_gone(name).await
            }
            Fault::KillPicker(name) => self.end_picker(name).await,
            Fault::KillPickers => {
                self.scale_pickers(0).await?;
                for picker in &self.watch.view().status.pickers {
                    self.end_process(&picker.name).await?;
                }
                Ok(())
            }
            Fault::ReplacePicker(_) => {
                self.access.kubectl(&[&RESTART[..], &["-l", PICKERS]].concat(), "").await?;
                self.until_known().await.map(drop)
            }
            Fault::KillController => {
                for pod in self.access.list::<Pod>(ENVOY_GATEWAY, CONTROLLERS).await? {
                    self.kill(ENVOY_GATEWAY, &pod.metadata.name.unwrap_or_default()).await?;
                }
                self.until_known().await.map(drop)
            }
            Fault::RestartGatewayController => {
                self.access.kubectl(&[&RESTART[..], &[GATEWAY]].concat(), "").await?;
                self.until_known().await.map(drop)
            }
            Fault::RemakePools => {
                let applied = self.applied.lock().await;
                let of_pools =
                    |object: &&Value| object["kind"] == "InferencePool" || object["kind"] == "InferenceModel";
                let pools: Vec<Value> = applied.objects.iter().filter(of_pools).cloned().collect();
                self.access.kubectl(&["delete", "-f", "-"], &yaml(&pools)).await?;
                self.access.kubectl(&["apply", "-f", "-"], &yaml(&pools)).await?;
                drop(applied);
                self.until_known().await.map(drop)
            }
            Fault::HangApiServer => self.signal_api_server("-STOP").await,
            Fault::HangPickers
            | Fault::EndConnections
            | Fault::HoldAnswers
            | Fault::LoseMessages
            | Fault::ForgeCertificates
            | Fault::EmptyPools
            | Fault::EmptyEndpoints => Ok(self.can_have(fault)?),
        }
    }

    pub(super) async fn undo(&self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::KillPickers | Fault::KillPicker(_) => {
                let pickers = self.applied.lock().await.settings.fresh.pickers;
                self.scale_pickers(pickers.unwrap_or(self.n_pickers)).await?;
                self.until_known().await.map(drop)
            }
            Fault::HangApiServer => {
                self.signal_api_server("-CONT").await?;
                self.until_known().await.map(drop)
            }
            Fault::KillPod(_)
            | Fault::ReplacePicker(_)
            | Fault::KillController
            | Fault::RestartGatewayController
            | Fault::RemakePools
            | Fault::HangPickers
            | Fault::EndConnections
            | Fault::HoldAnswers
            | Fault::LoseMessages
            | Fault::ForgeCertificates
            | Fault::EmptyPools
            | Fault::EmptyEndpoints => Ok(()),
        }
    }

    /// Kills one of several pickers so that it stays down: one fewer is asked for, and it is the first to go.
    async fn end_picker(&self, name: &str) -> Result<()> {
        let cost = json!({ "metadata": { "annotations": { DELETION_COST: "-1" } } });
        let api = self.access.of::<Pod>(ENVOY_GATEWAY);
        api.patch(name, &PatchParams::default(), &Patch::Merge(&cost)).await.context("choose the picker")?;
        let n_others = self.watch.view().status.pickers.iter().filter(|picker| picker.name != name).count();
        self.scale_pickers(n_others.try_into()?).await?;
        self.end_process(name).await
    }

    /// Deletes a picker's pod and returns when its process has ended. Without any grace the pod is forgotten at once, and
    /// its process still answers for a moment.
    async fn end_process(&self, pod: &str) -> Result<()> {
        let api = self.access.of::<Pod>(ENVOY_GATEWAY);
        match api.delete(pod, &DeleteParams::default().grace_period(1)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| format!("delete {pod}")),
        }
        while api.get_opt(pod).await?.is_some() {
            sleep(LOOK).await;
        }
        self.until_gone(pod).await
    }

    /// Sends a signal to the API server's process, in the container of the node.
    pub(super) async fn signal_api_server(&self, signal: &str) -> Result<()> {
        let kind = self.kind.as_ref().context("there is no node of kind")?;
        let node = kind.control_plane();
        let command = ["exec", &node, "pkill", signal, "-x", "kube-apiserver"];
        Tool::Docker.run(&command).await.map(drop)
    }

    /// Scales the Deployments of pickers, whose replicas the controller leaves to others.
    pub(super) async fn scale_pickers(&self, replicas: u32) -> Result<()> {
        let api = self.access.of::<Deployment>(ENVOY_GATEWAY);
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        for deployment in self.access.list::<Deployment>(ENVOY_GATEWAY, PICKERS).await? {
            let name = deployment.metadata.name.unwrap_or_default();
            let patched = api.patch(&name, &PatchParams::default(), &patch).await;
            patched.with_context(|| format!("scale {name}"))?;
        }
        Ok(())
    }

    /// Waits until a pod does not serve any more.
    async fn until_gone(&self, pod: &str) -> Result<()> {
        loop {
            let status = self.watch.fresh().await?.status;
            let serves = status.pods.iter().any(|found| found.ready && found.name == pod);
            if !serves && !status.pickers.iter().any(|picker| picker.running && picker.name == pod) {
                return Ok(());
            }
            sleep(LOOK).await;
        }
    }
}
