//! A look at the cluster every now and then: its status, and the logs of new pods, which are followed into the run's files
//! so that they outlive the pods.
//!
//! ```text
//! every 250 ms, or when asked: pods, pools, Gateways ──► Status (watch) ──► a follower for each new container ──► files
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{AsyncBufReadExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod as Object;
use kube::api::LogParams;
use lab::cluster::run_files::RunFiles;
use lab::cluster::{GatewayAddress, Picker, Pod, Status};
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::api::{Access, DEFAULT, ENVOY_GATEWAY};
use crate::cluster::edits::selector;
use crate::cluster::membership::Endpoints;
use crate::cluster::pickers::PICKERS;
use crate::cluster::records::{self, Records, Source};
use crate::settle;
use crate::wait::is_ready;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// Time between two tries to open a log.
const RETRY: Duration = Duration::from_millis(200);
const PROXIES: &str = "gateway.envoyproxy.io/owning-gateway-name";
const PICKER_PORT: u16 = 9002;
const METRICS_PORT: u16 = 9090;
const POOLS: [(&str, &str, &str); 2] = [
    ("inference.networking.x-k8s.io", "v1alpha2", "InferencePool"),
    ("inference.networking.k8s.io", "v1", "InferencePool"),
];

/// The newest look.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) status: Arc<Status>,
    /// Name of the newest pod of Envoy that is ready.
    pub(super) envoy: Option<String>,
    pub(super) endpoints: Arc<Endpoints>,
    /// Number of looks that have been begun.
    pub(super) n_looks: u64,
}

/// The task that looks; it ends with this value.
#[derive(Debug)]
pub(super) struct Watch {
    views: watch::Receiver<View>,
    /// Wakes the task for a look at once.
    asked: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Watch {
    /// Begins to look, and returns after the first look.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub(super) async fn start(access: Access, files: RunFiles) -> Result<Self> {
        std::fs::create_dir_all(files.logs())
            .with_context(|| format!("create {}", files.logs().display()))?;
        let mut looker = Looker { access, files, followed: BTreeSet::new(), followers: JoinSet::new() };
        let first = looker.look(None).await?;
        let (sender, views) = watch::channel(first);
        let asked = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        let wakes = Arc::clone(&asked);
        task.spawn(async move {
            loop {
                let _ = timeout(LOOK, wakes.notified()).await;
                let before = sender.borrow().clone();
                match looker.look(Some(&before)).await {
                    Ok(view) => drop(sender.send(view)),
                    // The API server may be away for a while, and nothing is known of the pods meanwhile.
                    Err(error) => debug!(%error, "Cannot look at the cluster"),
                }
            }
        });
        Ok(Self { views, asked, _task: task })
    }

    pub(super) fn view(&self) -> View {
        self.views.borrow().clone()
    }

    /// Returns a view of a look that begins after this call.
    ///
    /// # Errors
    /// When the task has ended.
    pub(super) async fn fresh(&self) -> Result<View> {
        let mut views = self.views.clone();
        let due = views.borrow().n_looks + 2;
        loop {
            self.asked.notify_one();
            views.changed().await.context("nobody looks any more")?;
            let view = views.borrow_and_update().clone();
            if view.n_looks >= due {
                return Ok(view);
            }
        }
    }
}

#[derive(Debug)]
struct Looker {
    access: Access,
    files: RunFiles,
    /// Pods whose logs are followed.
    followed: BTreeSet<String>,
    followers: JoinSet<()>,
}

impl Looker {
    async fn look(&mut self, before: Option<&View>) -> Result<View> {
        let pools = self.pools().await?;
        let all: Vec<Object> = self.access.list(DEFAULT, "").await?;
        let engines: Vec<(&Object, u16)> =
            all.iter().filter_map(|pod| Some((pod, port_of(pod, &pools)?))).collect();
        let pickers: Vec<Object> = self.access.list(ENVOY_GATEWAY, PICKERS).await?;
        let proxies: Vec<Object> = self.access.list(ENVOY_GATEWAY, PROXIES).await?;
        for (pod, _) in &engines {
            self.follow(pod, Source::Engine)?;
        }
        for pod in &pickers {
            self.follow(pod, Source::Picker)?;
        }
        for pod in &proxies {
            self.follow(pod, Source::Envoy)?;
        }
        let pods: Vec<Pod> = engines
            .iter()
            .filter_map(|(pod, port)| Some(self.pod(pod, SocketAddr::new(ip(pod)?, *port))))
            .collect();
        let pickers: Vec<Picker> =
            pickers.iter().filter_map(|pod| Some(self.picker(pod, ip(pod)?))).collect();
        let envoy = proxies
            .iter()
            .filter(|pod| serves(pod))
            .max_by_key(|pod| pod.metadata.creation_timestamp.clone());
        let status = Status {
            settled: !pods.is_empty() && pods.iter().all(|pod| pod.ready),
            pods,
            gateways: self.gateways().await?,
            pickers,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            config_error: None,
            trouble: None,
        };
        let endpoints = Arc::new(endpoints(&status, before.map(|view| &*view.endpoints)));
        let n_looks = before.map_or(0, |view| view.n_looks) + 1;
        Ok(View { status: Arc::new(status), envoy: envoy.map(name), endpoints, n_looks })
    }

    async fn pools(&self) -> Result<Vec<Value>> {
        let mut pools = Vec::new();
        for kind in POOLS {
            pools.extend(self.access.custom(kind, DEFAULT).await?.into_iter().map(|pool| pool.data));
        }
        Ok(pools)
    }

    async fn gateways(&self) -> Result<Vec<GatewayAddress>> {
        let listeners = settle::listeners(&self.access).await?;
        let address = |listener: settle::Listener| {
            let address = SocketAddr::new(listener.address.parse().ok()?, listener.port);
            let settle::Listener { gateway, name: listener, address: _, port } = listener;
            Some(GatewayAddress { gateway, namespace: DEFAULT.to_owned(), listener, port, address })
        };
        Ok(listeners.into_iter().filter_map(address).collect())
    }

    fn pod(&self, pod: &Object, address: SocketAddr) -> Pod {
        let name = name(pod);
        let (log, request_log) = self.paths(Source::Engine, &name);
        let deployment = name.rsplitn(3, '-').last().unwrap_or(&name).to_owned();
        Pod { namespace: DEFAULT.to_owned(), deployment, address, ready: serves(pod), log, request_log, name }
    }

    fn picker(&self, pod: &Object, ip: IpAddr) -> Picker {
        let name = name(pod);
        let (log, _) = self.paths(Source::Picker, &name);
        let (grpc, metrics) = (SocketAddr::new(ip, PICKER_PORT), SocketAddr::new(ip, METRICS_PORT));
        Picker { running: serves(pod), grpc, health: Some(metrics), metrics: Some(metrics), log, name }
    }

    fn paths(&self, source: Source, pod: &str) -> (std::path::PathBuf, std::path::PathBuf) {
        records::paths(source, (&self.files.logs(), &self.files.access_log()), pod)
    }

    /// Follows the log of a pod that is new.
    fn follow(&mut self, pod: &Object, source: Source) -> Result<()> {
        let name = name(pod);
        if !self.followed.insert(name.clone()) {
            return Ok(());
        }
        let (log, requests) = self.paths(source, &name);
        let records = Records::open(source, &log, &requests)?;
        let namespace = if source == Source::Engine { DEFAULT } else { ENVOY_GATEWAY };
        let container = match source {
            Source::Envoy => "envoy".to_owned(),
            Source::Engine | Source::Picker => first_container(pod),
        };
        let access = self.access.clone();
        self.followers.spawn(async move { follow(&access, namespace, (&name, container), records).await });
        Ok(())
    }
}

/// Follows a log until its pod is gone. A log that breaks off is read again, without the lines that were read before.
async fn follow(access: &Access, namespace: &str, (pod, container): (&str, String), mut records: Records) {
    let params = LogParams { follow: true, container: Some(container), ..LogParams::default() };
    let api = access.of::<Object>(namespace);
    let mut n_read = 0;
    loop {
        let read = async {
            let mut lines = api.log_stream(pod, &params).await?.lines();
            let mut n_seen = 0;
            while let Some(line) = lines.try_next().await? {
                n_seen += 1;
                if n_seen > n_read {
                    n_read = n_seen;
                    records.write(&line)?;
                }
            }
            anyhow::Ok(())
        };
        if let Err(error) = read.await {
            debug!(pod, %error, "A log breaks off");
        }
        if matches!(api.get_opt(pod).await, Ok(None)) {
            return;
        }
        sleep(RETRY).await;
    }
}

/// Returns the endpoints that serve, and all that were known before and do not.
fn endpoints(status: &Status, before: Option<&Endpoints>) -> Endpoints {
    let pods = status.pods.iter().filter(|pod| pod.ready).map(|pod| pod.address);
    let pickers = status.pickers.iter().filter(|picker| picker.running).map(|picker| picker.grpc);
    let present: BTreeSet<SocketAddr> = pods.chain(pickers).collect();
    let known = before.into_iter().flat_map(|before| before.present.iter().chain(&before.gone));
    let gone = known.filter(|address| !present.contains(address)).copied().collect();
    Endpoints { present, gone }
}

/// The port on which a pod of one of these pools serves; `None` if no pool selects it.
fn port_of(pod: &Object, pools: &[Value]) -> Option<u16> {
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let pool = pools.iter().find(|pool| {
        let selected = |wanted: &serde_json::Map<String, Value>| {
            wanted.iter().all(|(name, value)| labels.get(name).map(String::as_str) == value.as_str())
        };
        selector(pool).is_some_and(selected)
    })?;
    let port = pool["spec"]["targetPortNumber"].as_u64();
    port.or_else(|| pool["spec"]["targetPorts"][0]["number"].as_u64())?.try_into().ok()
}

/// True if a pod is an endpoint: ready, and not about to end.
fn serves(pod: &Object) -> bool {
    is_ready(pod) && pod.metadata.deletion_timestamp.is_none()
}

fn ip(pod: &Object) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()
}

fn name(pod: &Object) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}

fn first_container(pod: &Object) -> String {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers.map(|container| container.name.clone()).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use lab::cluster::run_files::RunFiles;
    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio::task::spawn_blocking;
    use tokio::time::{Instant, pause};

    use super::Watch;
    use crate::stub::Stub;

    const PODS: &str = "/api/v1/namespaces/default/pods";
    /// Longest wait for all views; only a hang reaches it.
    const HANG: Duration = Duration::from_secs(60);

    fn pod(is_ready: bool) -> Value {
        let status = if is_ready { "True" } else { "False" };
        json!([{
            "metadata": { "name": "qwen-0-1", "labels": { "app": "qwen" } },
            "spec": { "containers": [{ "name": "vllm" }] },
            "status": { "podIP": "10.0.0.1", "conditions": [{ "type": "Ready", "status": status }] },
        }])
    }

    #[tokio::test]
    async fn a_fresh_view_is_taken_at_once_and_shows_what_was_before() {
        let (api, dir) = (Stub::start().await, TempDir::new().unwrap());
        let pool = json!({
            "metadata": { "name": "p" },
            "spec": { "selector": { "app": "qwen" }, "targetPortNumber": 8000 },
        });
        api.list(
            "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/default/inferencepools",
            json!([pool]),
        );
        api.list("/api/v1/namespaces/envoy-gateway-system/pods", json!([]));
        api.list(PODS, pod(true));
        let files = RunFiles { dir: dir.path().to_owned() };
        let watch = Watch::start(api.access().await, files).await.unwrap();
        pause();
        let begun = Instant::now();
        // The clock stands still while a blocking task runs. If a view waits for its turn, the clock goes on after the task.
        let (done, is_done) = mpsc::channel::<()>();
        let stillness = spawn_blocking(move || is_done.recv_timeout(HANG));
        for number in 0..8 {
            let is_ready = number % 2 == 1;
            api.list(PODS, pod(is_ready));
            let status = watch.fresh().await.unwrap().status;
            assert_eq!(status.pods.iter().map(|pod| pod.ready).collect::<Vec<_>>(), [is_ready], "{number}");
        }
        assert_eq!(begun.elapsed(), Duration::ZERO, "a view has waited for its turn");
        drop(done);
        assert_eq!(stillness.await.unwrap(), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
