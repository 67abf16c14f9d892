//! A cluster for the lab's checks: objects with the lab's settings, faults, and evidence from logs that are followed into
//! files.
//!
//! ```text
//! manifests ──► edits (pure) ──► kubectl apply ──► pods ──► watch: status, logs into files
//!                                                             └──► membership (pure): what Envoy knows of them
//! ```

mod faults;

mod watch;

mod pickers;

mod records;

mod membership;

mod forward;

mod edits;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex as Brief, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod as Object;
use kube::api::DeleteParams;
use lab::cluster::fault::{Fault, Unavailable};
use lab::cluster::manifests::Manifests;
use lab::cluster::provider::{Answer, Provider, Server};
use lab::cluster::run_files::RunFiles;
use lab::cluster::{Fresh, Options, Pod, Progress, ProgressEvent, Status};
use lab::engine::Engine;
use load::client::Client;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::api::{Access, ENVOY_GATEWAY};
use crate::cluster::edits::Settings;
use crate::cluster::forward::Forward;
use crate::cluster::membership::Holders;
use crate::cluster::pickers::Controller;
use crate::cluster::watch::{View, Watch};
use crate::kind::Kind;
use crate::settle::{self, Conditions};
use crate::stand::{self, Standing, yaml};
use crate::wait::{self, Look};

/// Longest wait for Envoy to take in what pods there are. It asks for their names every second.
const KNOWN: Duration = Duration::from_secs(60);
const ADMIN_PORT: u16 = 19000;
const METRICS_PORT: u16 = 9090;

/// A cluster of Kubernetes as a provider.
pub struct KubernetesCluster {
    access: Access,
    conditions: Conditions,
    files: RunFiles,
    progress: Progress,
    /// Replicas of every picker.
    n_pickers: u32,
    /// The cluster of kind, whose node can be reached.
    kind: Option<Kind>,
    controller: Controller,
    /// The user's manifests, and those in force.
    original: Manifests,
    in_force: Brief<Manifests>,
    applied: Mutex<Applied>,
    watch: Watch,
    holders: Mutex<Holders>,
    /// Ways to Envoy's admin port and to pods.
    envoy: Mutex<Option<Forward>>,
    pods: Mutex<BTreeMap<SocketAddr, Forward>>,
    client: Client,
}

/// The objects that were applied last.
#[derive(Debug)]
struct Applied {
    settings: Settings,
    objects: Vec<Value>,
}

impl fmt::Debug for KubernetesCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesCluster").field("access", &self.access).finish_non_exhaustive()
    }
}

/// Says if a cluster can have these settings.
///
/// # Errors
/// When it cannot, with the reason.
pub fn can_have(options: &Options) -> Result<(), Unavailable> {
    pickers::arguments(&settings(options)).map(drop)
}

/// The settings with which pods and pickers start.
fn settings(options: &Options) -> Fresh {
    Fresh {
        engine_args: options.engine_args.clone(),
        picker_args: options.picker_args.clone(),
        responses: Some(options.responses),
        ..Fresh::default()
    }
}

impl KubernetesCluster {
    /// Applies the options' manifests with the lab's settings to a cluster that has the components, and returns when they
    /// serve.
    ///
    /// # Errors
    /// When the API server refuses the objects, or they do not serve in time.
    pub async fn start(
        standing: Standing,
        kind: Option<Kind>,
        options: &Options,
        progress: Progress,
    ) -> Result<Self> {
        let Standing { access, conditions } = standing;
        let files = RunFiles { dir: std::path::absolute(&options.run_dir)? };
        let original = stand::read(&access, &options.manifests).await?;
        let fresh = settings(options);
        let picker_arguments = pickers::arguments(&fresh)?;
        let (time_scale, replicas) = (options.time_scale, options.replicas);
        let settings = Settings { fresh, engine: conditions.engine, epoch: 0, time_scale, replicas };
        let controller = Controller::find(&access).await?;
        let watch = Watch::start(access.clone(), files.clone()).await?;
        let cluster = Self {
            access,
            conditions,
            files,
            progress,
            n_pickers: options.pickers,
            kind,
            controller,
            in_force: Brief::new(original.clone()),
            original,
            applied: Mutex::new(Applied { settings: settings.clone(), objects: Vec::new() }),
            watch,
            holders: Mutex::default(),
            envoy: Mutex::default(),
            pods: Mutex::default(),
            client: Client::default(),
        };
        let fresh = settings.fresh.clone();
        cluster.controller.set(&cluster.access, &picker_arguments).await?;
        cluster.put(&cluster.original, settings).await?;
        cluster.until_pickers_have(&fresh).await?;
        // A run that was killed may have left none.
        cluster.scale_pickers(cluster.n_pickers).await?;
        cluster.until_known().await?;
        Ok(cluster)
    }

    /// Applies manifests with settings, removes what they lack, and replaces pods that change.
    async fn put(&self, manifests: &Manifests, settings: Settings) -> Result<()> {
        let objects = edits::objects(manifests, &settings)?;
        let mut applied = self.applied.lock().await;
        self.access.kubectl(&["apply", "-f", "-"], &yaml(&objects)).await?;
        let removed = edits::removed(&applied.objects, &objects);
        if !removed.is_empty() {
            let delete = ["delete", "--ignore-not-found", "--wait=false", "-f", "-"];
            self.access.kubectl(&delete, &yaml(&removed)).await?;
        }
        for deployment in edits::replaced(&applied.objects, &objects) {
            self.replace_pods(deployment).await?;
        }
        *applied = Applied { settings, objects };
        *self.in_force.lock().unwrap_or_else(PoisonError::into_inner) = manifests.clone();
        Ok(())
    }

    /// Deletes the pods of a Deployment that are older than its template, without grace: a `Recreate` waits for them.
    async fn replace_pods(&self, deployment: &Value) -> Result<()> {
        let (namespace, name) = edits::place(deployment);
        let api = self.access.of::<Deployment>(&namespace);
        let look = async || {
            let found = api.get(&name).await?;
            let seen = found.status.and_then(|status| status.observed_generation);
            Ok(match seen >= found.metadata.generation {
                true => Look::Done(()),
                false => Look::Missing("the new pods are not asked for yet".to_owned()),
            })
        };
        wait::until(&self.access, (&name, self.conditions.limit()), &self.progress, look).await?;
        let wanted = &deployment["spec"]["template"]["metadata"]["annotations"];
        let wanted: BTreeMap<String, String> = serde_json::from_value(wanted.clone())?;
        for pod in self.pods_of(deployment).await? {
            let annotations = pod.metadata.annotations.unwrap_or_default();
            if edits::epoch(&annotations) != edits::epoch(&wanted) {
                self.kill(&namespace, &pod.metadata.name.unwrap_or_default()).await?;
            }
        }
        Ok(())
    }

    /// Deletes the pods of the Deployments of engines without grace, and returns their names: their ReplicaSets make
    /// others at once.
    async fn kill_engines(&self, objects: &[Value]) -> Result<BTreeSet<String>> {
        let mut killed = BTreeSet::new();
        for deployment in edits::engines(objects) {
            let (namespace, _) = edits::place(deployment);
            for pod in self.pods_of(deployment).await? {
                let name = pod.metadata.name.unwrap_or_default();
                self.kill(&namespace, &name).await?;
                killed.insert(name);
            }
        }
        Ok(killed)
    }

    /// Waits until as many pods of engines are ready as the objects ask for, and none that was killed.
    async fn until_replaced(&self, objects: &[Value], killed: &BTreeSet<String>) -> Result<()> {
        let replicas = |deployment: &Value| deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let n_wanted: u64 = edits::engines(objects).into_iter().map(replicas).sum();
        let look = async || {
            let status = self.watch.fresh().await?.status;
            let is_new = |pod: &&Pod| pod.ready && !killed.contains(&pod.name);
            let n_new = status.pods.iter().filter(is_new).count();
            Ok(match n_new == status.pods.len() && u64::try_from(n_new)? == n_wanted {
                true => Look::Done(()),
                false => Look::Missing(format!("{n_new} of {n_wanted} new pods are ready")),
            })
        };
        let limit = self.conditions.limit();
        wait::until(&self.access, ("waiting for pods", limit), &self.progress, look).await
    }

    async fn pods_of(&self, deployment: &Value) -> Result<Vec<Object>> {
        let (namespace, _) = edits::place(deployment);
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        let labels: BTreeMap<String, String> = serde_json::from_value(labels.clone())?;
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        self.access.list::<Object>(&namespace, &labels.join(",")).await
    }

    /// Deletes a pod without grace; one that is gone already is no error.
    async fn kill(&self, namespace: &str, pod: &str) -> Result<()> {
        let api = self.access.of::<Object>(namespace);
        match api.delete(pod, &DeleteParams::default().grace_period(0)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("delete {pod}")),
        }
    }

    /// Waits until the objects serve, and Envoy knows the pods and the pickers that there are.
    async fn until_known(&self) -> Result<Arc<Status>> {
        settle::settle(&self.access, self.conditions, &self.progress).await?;
        self.until_envoy_knows().await
    }

    /// Waits until engines answer, and Envoy knows the pods and the pickers that there are.
    async fn until_envoy_knows(&self) -> Result<Arc<Status>> {
        self.until_engines_answer().await?;
        let look = async || {
            let view = self.watch.fresh().await?;
            if !view.status.settled {
                return Ok(Look::Missing(view.status.summary()));
            }
            let page = self.envoy_page("/clusters").await?;
            Ok(match self.holders.lock().await.lacks(&page, &view.endpoints) {
                None => Look::Done(view.status),
                Some(lack) => Look::Missing(lack),
            })
        };
        wait::until(&self.access, ("waiting for Envoy", KNOWN), &self.progress, look).await
    }

    /// Waits until every real engine answers: without a readiness probe its pod is ready long before.
    async fn until_engines_answer(&self) -> Result<()> {
        let limit = match self.conditions.engine {
            Engine::Mock => return Ok(()),
            Engine::Vllm => self.conditions.limit(),
        };
        let look = async || {
            for pod in self.watch.view().status.pods.iter() {
                if let Err(error) = self.page_of(pod, "/health").await {
                    return Ok(Look::Missing(format!("{} does not answer: {error:#}", pod.name)));
                }
            }
            Ok(Look::Done(()))
        };
        wait::until(&self.access, ("waiting for engines", limit), &self.progress, look).await
    }

    async fn page_of(&self, pod: &Pod, path: &str) -> Result<String> {
        self.access.pod_page(&pod.namespace, (&pod.name, pod.address.port()), path).await
    }

    async fn envoy_page(&self, path: &str) -> Result<String> {
        let pod = self.watch.view().envoy.context("no pod of Envoy is ready")?;
        let mut forward = self.envoy.lock().await;
        let open = forward.as_mut().filter(|forward| forward.pod == pod);
        let address = match open.and_then(|forward| forward.is_open().then_some(forward.address)) {
            Some(address) => address,
            None => {
                let opened = Forward::open(&self.access, ENVOY_GATEWAY, &pod, ADMIN_PORT).await?;
                forward.insert(opened).address
            }
        };
        drop(forward);
        self.page_at(address, path).await
    }

    async fn page_at(&self, address: SocketAddr, path: &str) -> Result<String> {
        let reply = self.client.get(&format!("http://{address}{path}")).await?;
        anyhow::ensure!(reply.status.is_success(), "{path} answers {}: {}", reply.status, reply.text());
        Ok(reply.text())
    }

    /// Returns the address on this machine that leads to a pod's.
    async fn way_to(&self, address: SocketAddr) -> Result<SocketAddr> {
        let mut pods = self.pods.lock().await;
        if let Some(forward) = pods.get_mut(&address)
            && forward.is_open()
        {
            return Ok(forward.address);
        }
        let status = self.watch.view().status;
        let pod = status.pods.iter().find(|pod| pod.address == address);
        let pod = pod.with_context(|| format!("no pod has the address {address}"))?;
        let forward = Forward::open(&self.access, &pod.namespace, &pod.name, address.port()).await?;
        let own = forward.address;
        pods.insert(address, forward);
        Ok(own)
    }

    async fn restart_all(&self, fresh: Fresh) -> Result<()> {
        let arguments = pickers::arguments(&fresh)?;
        let old: Vec<String> =
            self.watch.view().status.pickers.iter().map(|picker| picker.name.clone()).collect();
        // The controller and its pickers start while engines do.
        self.controller.set(&self.access, &arguments).await?;
        let (mut settings, before) = {
            let applied = self.applied.lock().await;
            (applied.settings.clone(), applied.objects.clone())
        };
        let n_pickers = fresh.pickers.unwrap_or(self.n_pickers);
        settings.fresh = fresh.clone();
        let killed = match edits::objects(&self.original, &settings)? == before {
            true => self.kill_engines(&before).await?,
            false => {
                settings.epoch += 1;
                self.put(&self.original, settings).await?;
                BTreeSet::new()
            }
        };
        self.until_pickers_have(&fresh).await?;
        self.scale_pickers(n_pickers).await?;
        for picker in &old {
            self.kill(ENVOY_GATEWAY, picker).await?;
        }
        if !killed.is_empty() {
            self.until_replaced(&before, &killed).await?;
        }
        // A request to the listeners would be the first pick of new pickers, and take a number of their seed.
        settle::objects(&self.access, self.conditions, &self.progress).await?;
        self.until_envoy_knows().await.map(drop)
    }

    /// Waits until the controller gives its pickers these settings.
    async fn until_pickers_have(&self, fresh: &Fresh) -> Result<()> {
        let look = async || pickers::look(&self.access, fresh).await;
        wait::until(&self.access, ("waiting for the controller", KNOWN), &self.progress, look).await
    }

    async fn exchange(&self, manifests: &Manifests) -> Result<()> {
        let settings = self.applied.lock().await.settings.clone();
        self.put(manifests, settings).await?;
        self.until_known().await.map(drop)
    }

    /// Gives the user's objects back as they were, with the user's settings.
    async fn take_back(&self) -> Result<()> {
        (self.progress)(ProgressEvent::Step("giving the cluster back".to_owned()));
        if self.kind.is_some() {
            self.signal_api_server("-CONT").await?;
        }
        self.scale_pickers(self.n_pickers).await?;
        self.controller.set(&self.access, &[]).await?;
        let applied = self.applied.lock().await;
        let plain = edits::plain(&self.original)?;
        self.access.kubectl(&["apply", "-f", "-"], &yaml(&plain)).await?;
        let removed = edits::removed(&applied.objects, &plain);
        let delete = ["delete", "--ignore-not-found", "--wait=false", "-f", "-"];
        self.access.kubectl(&delete, &yaml(&removed)).await.map(drop)
    }
}

impl Provider for KubernetesCluster {
    fn engine(&self) -> Engine {
        self.conditions.engine
    }

    fn files(&self) -> &RunFiles {
        &self.files
    }

    fn status(&self) -> Arc<Status> {
        let View { status, .. } = self.watch.view();
        status
    }

    fn settled(&self) -> Answer<'_, Arc<Status>> {
        Box::pin(self.until_known())
    }

    fn restart(&self, fresh: Fresh) -> Answer<'_, ()> {
        Box::pin(self.restart_all(fresh))
    }

    fn manifests(&self) -> Manifests {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn apply<'a>(&'a self, manifests: &'a Manifests) -> Answer<'a, ()> {
        Box::pin(self.exchange(manifests))
    }

    fn reset_manifests(&self) -> Answer<'_, ()> {
        Box::pin(self.exchange(&self.original))
    }

    fn can(&self, fault: &Fault) -> Result<(), Unavailable> {
        self.can_have(fault)
    }

    fn inflict<'a>(&'a self, fault: &'a Fault) -> Answer<'a, ()> {
        Box::pin(self.cause(fault))
    }

    fn end<'a>(&'a self, fault: &'a Fault) -> Answer<'a, ()> {
        Box::pin(self.undo(fault))
    }

    fn reach(&self, address: SocketAddr) -> Answer<'_, SocketAddr> {
        Box::pin(self.way_to(address))
    }

    fn page<'a>(&'a self, server: Server<'a>, path: &'a str) -> Answer<'a, String> {
        Box::pin(async move {
            match server {
                Server::Picker(picker) => {
                    self.access.pod_page(ENVOY_GATEWAY, (&picker.name, METRICS_PORT), path).await
                }
                Server::Pod(pod) => self.page_of(pod, path).await,
                Server::Envoy => self.envoy_page(path).await,
            }
        })
    }

    fn stop(self: Box<Self>) -> Answer<'static, ()> {
        Box::pin(async move { self.take_back().await })
    }
}
