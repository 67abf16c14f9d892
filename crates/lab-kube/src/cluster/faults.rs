//! Faults that a cluster of Kubernetes can have: objects that an operator deletes, scales and restarts.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use lab::cluster::fault::{Fault, Unavailable};
use serde_json::json;
use tokio::time::sleep;

use crate::api::{DEFAULT, ENVOY_GATEWAY};
use crate::cluster::KubernetesCluster;

/// Label of the Deployments of pickers.
const PICKERS: &str = "app.kubernetes.io/name=epp";
/// Time between two looks at whether pods are gone.
const LOOK: Duration = Duration::from_millis(100);

impl KubernetesCluster {
    pub(super) fn can_have(&self, fault: &Fault) -> Result<(), Unavailable> {
        let reason = match fault {
            Fault::KillPod(_) | Fault::KillPicker(_) | Fault::KillPickers | Fault::ReplacePicker(_) => {
                return Ok(());
            }
            Fault::HangPickers => "no program in the picker's image could stop its process",
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
            Fault::KillPicker(name) => {
                self.kill(ENVOY_GATEWAY, name).await?;
                self.until_gone(name).await
            }
            Fault::KillPickers => {
                self.scale_pickers(0).await?;
                for picker in &self.watch.view().status.pickers {
                    self.kill(ENVOY_GATEWAY, &picker.name).await?;
                    self.until_gone(&picker.name).await?;
                }
                Ok(())
            }
            Fault::ReplacePicker(_) => {
                let namespace = ["--namespace", ENVOY_GATEWAY];
                let restart =
                    [&namespace[..], &["rollout", "restart", "deployments", "-l", PICKERS]].concat();
                self.access.kubectl(&restart, "").await?;
                self.until_known().await.map(drop)
            }
            Fault::HangPickers | Fault::ForgeCertificates | Fault::EmptyPools | Fault::EmptyEndpoints => {
                Ok(())
            }
        }
    }

    pub(super) async fn undo(&self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::KillPickers => {
                let pickers = self.applied.lock().await.settings.fresh.pickers;
                self.scale_pickers(pickers.unwrap_or(1)).await?;
                self.until_known().await.map(drop)
            }
            Fault::KillPicker(_) => self.until_known().await.map(drop),
            Fault::KillPod(_)
            | Fault::ReplacePicker(_)
            | Fault::HangPickers
            | Fault::ForgeCertificates
            | Fault::EmptyPools
            | Fault::EmptyEndpoints => Ok(()),
        }
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
