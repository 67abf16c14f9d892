//! Writes the files that Envoy and the pickers read, and the status that scenarios read.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use gateway_config::attachment::Maker;
use gateway_config::plan::{Backend, Cluster};
use gateway_config::render::{Bindings, PickerBinding, PickerTls, Rendered};
use inference_api::object::ObjectKey;
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::cluster::authority::picker_host;
use crate::cluster::envoy::write_whole;
use crate::cluster::greeting::Security;
use crate::cluster::local::pickers::{PickerProcess, PickerProgram};
use crate::cluster::local::{Action, Job, Local, PICKER_RELOAD, PICKER_REMOVAL, View};
use crate::cluster::ports::local;
use crate::cluster::{GatewayAddress, Picker, Pod, Status, http};

/// The last written content, so that only changes are written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Published {
    /// Text of the pickers' files, by path.
    picker_files: BTreeMap<PathBuf, String>,
    versions: Vec<(String, String)>,
}

impl Local {
    pub(super) fn render(&self) -> Result<Rendered> {
        let plan = &self.desired.plan;
        let pickers: BTreeMap<ObjectKey, PickerBinding> = self
            .desired
            .pickers
            .iter()
            .flat_map(|wanted| {
                let binding = self.binding(&wanted.name);
                wanted.pools.iter().map(move |pool| (pool.clone(), binding.clone()))
            })
            .collect();
        let endpoints =
            plan.clusters.iter().map(|cluster| (cluster.name.clone(), self.endpoints(cluster))).collect();
        let bindings = Bindings {
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            listener_ports: self
                .listener_ports
                .iter()
                .map(|(name, port)| (name.clone(), port.bound))
                .collect(),
            endpoints,
            pickers,
            admin: self.admin,
            xds_dir: self.envoy_files.xds_dir(),
            access_log: self.files.access_log(),
            explains: self.options.explains,
            responses: self.responses,
        };
        Ok(Rendered::new(plan, &bindings)?)
    }

    /// Addresses of the processes of a picker, and how Envoy may trust them.
    fn binding(&self, group: &str) -> PickerBinding {
        let mut processes = self.pickers.iter().filter(|picker| picker.group == group).peekable();
        let is_relayed = processes.peek().is_some_and(|picker| picker.is_relayed());
        let maker = self.maker(group);
        let tls = match processes.peek().map(|picker| picker.program) {
            Some(PickerProgram::Ours) if is_relayed => None,
            Some(PickerProgram::Theirs(Security::Plain)) => None,
            Some(PickerProgram::Theirs(Security::Tls)) => Some(PickerTls::Any),
            Some(PickerProgram::Ours) | None => {
                let (server_name, trusted_ca) = (picker_host(group), self.files.authority());
                Some(PickerTls::Authority { server_name, trusted_ca })
            }
        };
        PickerBinding { addresses: processes.map(PickerProcess::address).collect(), tls, maker }
    }

    fn maker(&self, group: &str) -> Maker {
        let mut pickers = self.desired.pickers.iter();
        let wanted = pickers.find(|picker| picker.name == group);
        match wanted.and_then(|picker| picker.theirs.as_ref()) {
            Some(theirs) => Maker::Other(theirs.body_mode),
            None => Maker::Warmpath,
        }
    }

    /// Writes the files that changed, and starts a job that reports when they are in effect.
    pub(super) fn publish(&mut self) -> Result<()> {
        let mut picker_files = BTreeMap::new();
        for picker in &self.desired.pickers {
            picker_files.insert(self.files.pools(&picker.name), picker.pool_file.clone());
        }
        picker_files.insert(self.files.endpoints(), self.endpoints_file());
        for (path, text) in &picker_files {
            if self.published.picker_files.get(path) != Some(text) {
                write_whole(path, text)?;
            }
        }
        let versions = self.envoy_files.write(&self.render()?)?;
        let reload = reload(&self.published.picker_files, &picker_files);
        let published = Published { picker_files, versions };
        if published != self.published {
            self.publication += 1;
            self.watch_taken(reload, published.versions.clone());
            self.published = published;
        }
        let settled = self.taken == self.publication && self.pods_settled() && self.pickers_settled();
        if settled {
            self.trouble = None;
        }
        self.send_view(settled);
        Ok(())
    }

    pub(super) fn send_view(&self, settled: bool) {
        let status = self.status(settled);
        let deployments = self.desired.deployments.iter();
        let patience = deployments.map(|deployment| deployment.probes.patience()).max().unwrap_or_default();
        let view = View { status: Arc::new(status), manifests: Arc::clone(&self.in_force), patience };
        self.view.send_if_modified(|current| {
            let changed = current.status != view.status || current.manifests != view.manifests;
            *current = view;
            changed
        });
    }

    fn watch_taken(&mut self, reload: Duration, versions: Vec<(String, String)>) {
        let publication = self.publication;
        let admin = self.admin;
        let limit = self.options.ready_timeout;
        // Envoy never reports versions that were replaced before it saw them.
        let reload = if self.taken + 1 < publication { reload.max(PICKER_RELOAD) } else { reload };
        self.taking = Some(Job(self.jobs.spawn(async move {
            let envoy = timeout(limit, http::until_versions(admin, versions));
            match tokio::join!(envoy, sleep(reload)) {
                (Ok(()), ()) => Action::Taken { publication },
                (Err(_), ()) => Action::NotTaken { publication },
            }
        })));
    }

    /// Returns the addresses of the ready pods behind a cluster.
    fn endpoints(&self, cluster: &Cluster) -> Vec<SocketAddr> {
        let serves = |key: &ObjectKey, backend: &Backend| {
            self.desired
                .deployments
                .iter()
                .any(|deployment| deployment.key == *key && deployment.serves(backend))
        };
        let behind =
            self.pods.iter().filter(|pod| pod.is_ready() && serves(&pod.deployment, &cluster.backend));
        behind.map(|pod| pod.address).collect()
    }

    /// Returns the endpoints file: one flow mapping per line, for each pod that is ready or was.
    fn endpoints_file(&self) -> String {
        let mut text = String::new();
        for pod in self.pods.iter().filter(|pod| pod.has_been_ready()) {
            let deployment =
                self.desired.deployments.iter().find(|deployment| deployment.key == pod.deployment);
            let Some(deployment) = deployment.filter(|deployment| deployment.is_endpoint) else { continue };
            let mut endpoint = json!({
                "name": pod.name,
                "namespace": pod.deployment.namespace,
                "address": pod.address.to_string(),
                "labels": deployment.labels,
                "ready": pod.is_ready(),
            });
            if let Some((events, replay)) = pod.kv {
                endpoint["kvEvents"] = json!(events);
                endpoint["kvReplay"] = json!(replay);
            }
            text.push_str(&format!("- {endpoint}\n"));
        }
        if text.is_empty() { "[]\n".to_owned() } else { text }
    }

    fn status(&self, settled: bool) -> Status {
        let mut pods: Vec<Pod> = self
            .pods
            .iter()
            .map(|pod| Pod {
                name: pod.name.clone(),
                namespace: pod.deployment.namespace.clone(),
                deployment: pod.deployment.name.clone(),
                address: pod.address,
                ready: pod.is_ready(),
                log: pod.log.clone(),
                request_log: pod.request_log.clone(),
            })
            .collect();
        pods.sort_by(|left, right| left.name.cmp(&right.name));
        let pickers = self.pickers.iter().map(|picker| {
            let is_ours = picker.program == PickerProgram::Ours;
            Picker {
                name: picker.name.clone(),
                running: picker.is_ready(),
                grpc: picker.address(),
                health: is_ours.then_some(picker.health),
                metrics: is_ours.then_some(picker.metrics),
                log: picker.log.clone(),
            }
        });
        Status {
            settled,
            pods,
            gateways: self.gateways(),
            pickers: pickers.collect(),
            admin: self.admin,
            config_error: self.config_error.clone(),
            trouble: self.trouble.clone(),
        }
    }

    fn gateways(&self) -> Vec<GatewayAddress> {
        let address = |name: &String| self.listener_ports.get(name).map(|port| local(port.bound));
        let listeners = self.desired.plan.listeners.iter();
        listeners
            .filter_map(|listener| {
                Some(GatewayAddress {
                    gateway: listener.gateway.name.clone(),
                    namespace: listener.gateway.namespace.clone(),
                    listener: listener.name.clone(),
                    port: listener.port,
                    address: address(&listener.xds_name())?,
                })
            })
            .collect()
    }
}

/// Returns the time that pickers take to follow their files from `before` to `after`.
fn reload(before: &BTreeMap<PathBuf, String>, after: &BTreeMap<PathBuf, String>) -> Duration {
    let has_shrunk = |(path, text): (&PathBuf, &String)| {
        before.get(path).is_some_and(|before| text.lines().count() < before.lines().count())
    };
    match before == after {
        true => Duration::ZERO,
        false if after.iter().any(has_shrunk) => PICKER_REMOVAL,
        false => PICKER_RELOAD,
    }
}
