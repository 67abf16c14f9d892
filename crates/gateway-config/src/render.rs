//! Renders a plan and its bindings as Envoy's files: bootstrap, LDS, CDS, an EDS file per cluster, and a static
//! equivalent.

pub(crate) mod cluster;
pub(crate) mod listener;
pub(crate) mod route;
pub(crate) mod filters;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use inference_api::object::ObjectKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::attachment::{Maker, Responses};
use crate::error::MissingBinding;
use crate::plan::{Cluster, Listener, Plan};

/// Addresses and paths on this machine of what the plan names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bindings {
    /// Address that every listener binds.
    pub listen: IpAddr,
    /// Port by [`Listener::xds_name`]: the manifest's or another one.
    pub listener_ports: BTreeMap<String, u16>,
    /// Ready pods by [`Cluster::name`]; a cluster that is missing has none.
    pub endpoints: BTreeMap<String, Vec<SocketAddr>>,
    /// Pickers by pool.
    pub pickers: BTreeMap<ObjectKey, PickerBinding>,
    pub admin: SocketAddr,
    /// Folder into which the caller writes [`Rendered::files`]; Envoy watches it.
    pub xds_dir: PathBuf,
    pub access_log: PathBuf,
    /// True if clients may ask the picker for its reasons; if not, listeners remove the question from requests.
    pub explains: bool,
    /// The way of the responses of pools that allow it.
    pub responses: Responses,
}

/// Addresses at which a pool's picker serves ext_proc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickerBinding {
    /// One address per picker process; the processes share the pool's requests.
    pub addresses: Vec<SocketAddr>,
    /// `None`: no TLS.
    pub tls: Option<PickerTls>,
    /// Our own answers health checks beside ext_proc. Others are not asked, because they may serve them elsewhere.
    pub maker: Maker,
}

/// Requirements on the picker's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PickerTls {
    /// It must be for this DNS name, and signed by one of the authorities in this PEM file.
    Authority { server_name: String, trusted_ca: PathBuf },
    /// Somebody else's picker: any certificate.
    Any,
}

/// Envoy's configuration in two forms: files that Envoy watches, and one static file that `--mode validate` checks as a
/// whole (Envoy ignores unknown fields in watched files, and an invalid listener file removes listeners).
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub bootstrap: Value,
    pub files: Vec<XdsFile>,
    pub static_equivalent: Value,
}

/// One watched file of discovered resources.
#[derive(Clone, Debug, PartialEq)]
pub struct XdsFile {
    /// File name in [`Bindings::xds_dir`].
    pub name: String,
    /// Name of Envoy's statistic that shows the version in force.
    pub version_stat: String,
    /// Hash of the resources: equal resources give equal files.
    pub version: String,
    pub content: Value,
}

impl Rendered {
    /// Renders `plan`. The files are in the order in which they must be written, so that each refers only to what
    /// exists.
    ///
    /// # Errors
    /// A binding that the plan needs and the caller did not give.
    pub fn new(plan: &Plan, bindings: &Bindings) -> Result<Self, MissingBinding> {
        let mut clusters = Vec::new();
        let mut static_clusters = Vec::new();
        let mut files = Vec::new();
        for planned in &plan.clusters {
            let endpoints = bindings.endpoints.get(&planned.name).map(Vec::as_slice).unwrap_or_default();
            let assignment = cluster::load_assignment(&planned.name, endpoints);
            static_clusters.push(cluster::fixed(planned, assignment.clone()));
            clusters.push(cluster::discovered(planned, &bindings.xds_dir.join(eds_name(planned))));
            let assignment = typed("envoy.config.endpoint.v3.ClusterLoadAssignment", assignment);
            let stat = format!("cluster.{}.version_text", planned.name);
            files.push(XdsFile::new(eds_name(planned), stat, vec![assignment]));
        }
        for pool in plan.pools() {
            let pool = pool.key;
            let picker = bindings.pickers.get(pool).ok_or_else(|| MissingBinding::Picker(pool.clone()))?;
            clusters.push(cluster::picker(pool, picker));
            static_clusters.push(cluster::picker(pool, picker));
        }
        let mut listeners = Vec::new();
        for planned in &plan.listeners {
            listeners.push(listener::render(planned, plan, bindings)?);
        }
        let static_equivalent = json!({
            "admin": admin(bindings),
            "static_resources": { "listeners": listeners.clone(), "clusters": static_clusters },
        });
        let clusters =
            clusters.into_iter().map(|value| typed("envoy.config.cluster.v3.Cluster", value)).collect();
        let listeners =
            listeners.into_iter().map(|value| typed("envoy.config.listener.v3.Listener", value)).collect();
        let stat = |subscriber: &str| format!("{subscriber}.version_text");
        files.push(XdsFile::new("cds.json".to_owned(), stat("cluster_manager.cds"), clusters));
        files.push(XdsFile::new("lds.json".to_owned(), stat("listener_manager.lds"), listeners));
        Ok(Self { bootstrap: bootstrap(bindings), files, static_equivalent })
    }
}

impl XdsFile {
    fn new(name: String, version_stat: String, resources: Vec<Value>) -> Self {
        let resources = Value::Array(resources);
        let digest = Sha256::digest(resources.to_string());
        let version: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let content = json!({ "version_info": version, "resources": resources });
        Self { name, version_stat, version, content }
    }
}

/// Name of the endpoint file of a cluster.
fn eds_name(cluster: &Cluster) -> String {
    format!("eds-{}.json", cluster.name.replace('/', "_"))
}

fn bootstrap(bindings: &Bindings) -> Value {
    let source = |file: &str| {
        json!({
            "path_config_source": {
                "path": bindings.xds_dir.join(file),
                "watched_directory": { "path": bindings.xds_dir },
            },
            "resource_api_version": "V3",
        })
    };
    json!({
        "node": { "id": "warmpath-local", "cluster": "warmpath-local" },
        "admin": admin(bindings),
        "dynamic_resources": { "lds_config": source("lds.json"), "cds_config": source("cds.json") },
    })
}

fn admin(bindings: &Bindings) -> Value {
    json!({ "address": address(bindings.admin) })
}

fn address(socket: SocketAddr) -> Value {
    json!({ "socket_address": { "address": socket.ip().to_string(), "port_value": socket.port() } })
}

/// Protobuf's JSON form of a duration.
fn duration(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        millis => format!("{}.{millis:03}s", duration.as_secs()),
    }
}

/// `value` as a protobuf Any of the message `name`.
fn typed(name: &str, value: Value) -> Value {
    let mut any = json!({ "@type": format!("type.googleapis.com/{name}") });
    if let (Value::Object(any), Value::Object(value)) = (&mut any, value) {
        any.extend(value);
    }
    any
}

/// An extension: its name and its typed configuration.
pub(crate) fn extension(name: &str, message: &str, config: Value) -> Value {
    json!({ "name": name, "typed_config": typed(message, config) })
}

fn listener_port(listener: &Listener, bindings: &Bindings) -> Result<u16, MissingBinding> {
    let name = listener.xds_name();
    bindings.listener_ports.get(&name).copied().ok_or(MissingBinding::Listener(name))
}

/// Name of a pool's picker cluster, the same as Envoy AI Gateway's.
pub(crate) fn picker_cluster(pool: &ObjectKey) -> String {
    format!("envoy.clusters.endpointpicker_{}_{}_ext_proc", pool.name, pool.namespace)
}

/// Name of the filter that reports a pool's responses.
pub(crate) fn observer_filter(pool: &ObjectKey) -> String {
    format!("{}/observer", picker_filter(pool))
}

/// Name of the access log that tells a pool's picker the ends of requests.
pub(crate) fn access_log_name(pool: &ObjectKey) -> String {
    format!("{}/ends", picker_filter(pool))
}

/// Name of a pool's ext_proc filter, the same as Envoy AI Gateway's.
fn picker_filter(pool: &ObjectKey) -> String {
    format!("envoy.filters.http.ext_proc/endpointpicker/{}_{}_ext_proc", pool.name, pool.namespace)
}
