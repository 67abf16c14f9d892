//! A plan and its bindings to Envoy's files: bootstrap, LDS, CDS, one EDS file per cluster, and one static equivalent.

mod cluster;
mod listener;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use inference_api::object::ObjectKey;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::MissingBinding;
use crate::plan::{Cluster, Listener, Plan};

/// Where the planned things are on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bindings {
    /// Address that every listener binds.
    pub listen: IpAddr,
    /// Port by [`Listener::xds_name`]; the manifest's own or another.
    pub listener_ports: BTreeMap<String, u16>,
    /// Ready pods by [`Cluster::name`]; a missing cluster has none.
    pub endpoints: BTreeMap<String, Vec<SocketAddr>>,
    /// By pool.
    pub pickers: BTreeMap<ObjectKey, PickerBinding>,
    pub admin: SocketAddr,
    /// Where the caller writes [`Rendered::files`]; Envoy watches it.
    pub xds_dir: PathBuf,
    pub access_log: PathBuf,
    /// Whether clients may ask the picker for its reasons; if not, listeners take the question out of requests.
    pub explains: bool,
}

/// Where a pool's picker serves ext_proc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickerBinding {
    /// One of each process; they share the pool's requests.
    pub addresses: Vec<SocketAddr>,
    /// `None`: without TLS.
    pub tls: Option<PickerTls>,
}

/// Whom the proxy takes for the picker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickerTls {
    /// DNS name that its certificate must have.
    pub server_name: String,
    /// PEM file with the authorities that may have signed it.
    pub trusted_ca: PathBuf,
}

/// Envoy's configuration, twice: as files that it watches, and as one static file that `--mode validate` checks whole
/// (Envoy ignores unknown fields in watched files, and a bad listener file removes listeners).
#[derive(Clone, Debug, PartialEq)]
pub struct Rendered {
    pub bootstrap: Value,
    pub files: Vec<XdsFile>,
    pub static_equivalent: Value,
}

/// One watched file of discovered resources.
#[derive(Clone, Debug, PartialEq)]
pub struct XdsFile {
    /// Within [`Bindings::xds_dir`].
    pub name: String,
    /// Name of Envoy's statistic that holds the version it has taken in.
    pub version_stat: String,
    /// A hash of the resources, so that equal resources have equal files.
    pub version: String,
    pub content: Value,
}

impl Rendered {
    /// Files are in the order in which they must be written, so that nothing refers to what is not there yet.
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
        for (pool, _) in plan.pools() {
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

/// `value` as a protobuf Any of the message `name`.
fn typed(name: &str, value: Value) -> Value {
    let mut any = json!({ "@type": format!("type.googleapis.com/{name}") });
    if let (Value::Object(any), Value::Object(value)) = (&mut any, value) {
        any.extend(value);
    }
    any
}

/// An extension: its name and its typed configuration.
fn extension(name: &str, message: &str, config: Value) -> Value {
    json!({ "name": name, "typed_config": typed(message, config) })
}

fn listener_port(listener: &Listener, bindings: &Bindings) -> Result<u16, MissingBinding> {
    let name = listener.xds_name();
    bindings.listener_ports.get(&name).copied().ok_or(MissingBinding::Listener(name))
}

/// The name of a pool's picker cluster, as Envoy AI Gateway gives it.
fn picker_cluster(pool: &ObjectKey) -> String {
    format!("envoy.clusters.endpointpicker_{}_{}_ext_proc", pool.name, pool.namespace)
}

/// The name of a pool's ext_proc filter, as Envoy AI Gateway gives it.
fn picker_filter(pool: &ObjectKey) -> String {
    format!("envoy.filters.http.ext_proc/endpointpicker/{}_{}_ext_proc", pool.name, pool.namespace)
}
