//! Manifests and endpoint records in files, read again whenever their content changes.
//!
//! Each file stands for itself: while one is invalid its last good version stays in force, and the others still count.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inference_api::manifest::{self, ManifestError, Object};
use inference_api::object::{DEFAULT_NAMESPACE, ObjectKey};
use inference_api::pool::{InferenceModel, InferencePool};
use serde::Deserialize;
use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use crate::index::{Change, EndpointRecord, Index, Membership};
use crate::snapshot::{KvAddresses, Reader};

/// How often files are read. A change counts within twice this, which a person who edits a file does not notice;
/// reading a few kilobytes costs microseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Multi-document YAML of InferencePools and InferenceModels.
    pub pool_files: Vec<PathBuf>,
    /// YAML list of `{name, namespace: default, address: ip:port, labels: {}, ready: true}`, and where an engine tells what
    /// its KV cache holds `kvEvents: ip:port`, `kvReplay: ip:port`.
    pub endpoints_file: Option<PathBuf>,
    /// Endpoints that belong to every pool and are always ready.
    pub static_endpoints: Vec<SocketAddr>,
}

/// Why files were refused; the message names the file.
#[derive(Debug, Error)]
pub enum FilesError {
    #[error("{}: cannot be read", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{}: {kind} {key} does not belong here, only InferencePool and InferenceModel do", path.display())]
    Kind { path: PathBuf, kind: &'static str, key: ObjectKey },
    #[error("{}: {kind} {key} is defined twice", path.display())]
    Duplicate { path: PathBuf, kind: &'static str, key: ObjectKey },
    #[error("{}: not a list of endpoints: {message}", path.display())]
    Endpoints { path: PathBuf, message: String },
}

/// The files and the index they feed.
#[derive(Debug)]
pub struct Files {
    pool_files: Vec<Watched<Objects>>,
    endpoints_file: Option<Watched<Vec<EndpointRecord>>>,
    static_endpoints: Vec<SocketAddr>,
    index: Index,
}

/// A file, with the newest content seen and what the last good content means.
#[derive(Debug)]
struct Watched<T> {
    path: PathBuf,
    /// What reading gave last, good or bad; the message stands for an error.
    seen: Result<String, String>,
    good: T,
}

#[derive(Clone, Debug, Default)]
struct Objects {
    pools: Vec<InferencePool>,
    models: Vec<InferenceModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawEndpoint {
    name: String,
    #[serde(default = "default_namespace")]
    namespace: String,
    address: SocketAddr,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default = "default_ready")]
    ready: bool,
    kv_events: Option<SocketAddr>,
    kv_replay: Option<SocketAddr>,
}

// === impl Files ===

impl Files {
    /// Reads every file once and publishes the result.
    ///
    /// # Errors
    /// The first file that cannot be read or is not valid.
    pub fn load(config: Config) -> Result<(Self, Reader), FilesError> {
        let Config { pool_files, endpoints_file, static_endpoints } = config;
        let pool_files = pool_files
            .into_iter()
            .map(|path| Watched::load(path, parse_objects))
            .collect::<Result<Vec<_>, _>>()?;
        let endpoints_file = endpoints_file.map(|path| Watched::load(path, parse_endpoints)).transpose()?;
        let (index, reader) = Index::new();
        let mut files = Self { pool_files, endpoints_file, static_endpoints, index };
        let changes = [files.objects()?, files.endpoints()];
        files.index.apply(changes);
        Ok((files, reader))
    }

    /// Polls until `shutdown` resolves.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                _ = ticks.tick() => self.poll(),
            }
        }
    }

    /// Reads every file again and applies what changed. An error is logged once per content that causes it.
    pub fn poll(&mut self) {
        let mut changes = Vec::new();
        let mut objects_changed = false;
        for file in &mut self.pool_files {
            objects_changed |= file.reload(parse_objects);
        }
        if objects_changed {
            match self.objects() {
                Ok(change) => changes.push(change),
                Err(error) => error!(%error, "Keeping the last good pools and models"),
            }
        }
        if self.endpoints_file.as_mut().is_some_and(|file| file.reload(parse_endpoints)) {
            changes.push(self.endpoints());
        }
        if !changes.is_empty() {
            self.index.apply(changes);
        }
    }

    /// All pool files together. An object that two of them define is an error, as nothing says which one is meant.
    fn objects(&self) -> Result<Change, FilesError> {
        let mut pools: BTreeMap<ObjectKey, InferencePool> = BTreeMap::new();
        let mut models: BTreeMap<ObjectKey, InferenceModel> = BTreeMap::new();
        for Watched { path, seen: _, good } in &self.pool_files {
            let duplicate = |kind, key| FilesError::Duplicate { path: path.clone(), kind, key };
            for pool in &good.pools {
                if pools.insert(pool.key(), pool.clone()).is_some() {
                    return Err(duplicate("InferencePool", pool.key()));
                }
            }
            for model in &good.models {
                if models.insert(model.meta.key(), model.clone()).is_some() {
                    return Err(duplicate("InferenceModel", model.meta.key()));
                }
            }
        }
        Ok(Change::ReplaceObjects {
            pools: pools.into_values().collect(),
            models: models.into_values().collect(),
        })
    }

    fn endpoints(&self) -> Change {
        let mut records: Vec<EndpointRecord> = self
            .static_endpoints
            .iter()
            .map(|&address| EndpointRecord {
                key: ObjectKey::new(DEFAULT_NAMESPACE, address.to_string()),
                address,
                kv: KvAddresses::default(),
                membership: Membership::EveryPool,
                ready: true,
            })
            .collect();
        if let Some(file) = &self.endpoints_file {
            records.extend_from_slice(&file.good);
        }
        Change::ReplaceEndpoints(records)
    }
}

// === impl Watched ===

impl<T> Watched<T> {
    fn load(path: PathBuf, parse: fn(&str, &Path) -> Result<T, FilesError>) -> Result<Self, FilesError> {
        let text = read(&path)?;
        let good = parse(&text, &path)?;
        Ok(Self { path, seen: Ok(text), good })
    }

    /// Returns true if there is a new good version.
    fn reload(&mut self, parse: fn(&str, &Path) -> Result<T, FilesError>) -> bool {
        let read = read(&self.path);
        let seen = match &read {
            Ok(text) => Ok(text.clone()),
            Err(error) => Err(chain(error)),
        };
        if seen == self.seen {
            return false;
        }
        self.seen = seen;
        match read.and_then(|text| parse(&text, &self.path)) {
            Ok(good) => {
                info!(file = %self.path.display(), "Reading changed file");
                self.good = good;
                true
            }
            Err(error) => {
                error!(file = %self.path.display(), error = chain(&error), "Keeping the last good version");
                false
            }
        }
    }
}

fn read(path: &Path) -> Result<String, FilesError> {
    std::fs::read_to_string(path).map_err(|source| FilesError::Read { path: path.to_owned(), source })
}

fn parse_objects(text: &str, path: &Path) -> Result<Objects, FilesError> {
    let mut objects = Objects::default();
    for object in manifest::parse(text, &path.display().to_string())? {
        let (kind, key) = (object.kind(), object.key());
        match object {
            Object::InferencePool(pool) => objects.pools.push(pool),
            Object::InferenceModel(model) => objects.models.push(model),
            Object::GatewayClass(_)
            | Object::Gateway(_)
            | Object::HttpRoute(_)
            | Object::BackendTrafficPolicy(_)
            | Object::Deployment(_)
            | Object::Service(_) => return Err(FilesError::Kind { path: path.to_owned(), kind, key }),
        }
    }
    Ok(objects)
}

fn parse_endpoints(text: &str, path: &Path) -> Result<Vec<EndpointRecord>, FilesError> {
    let endpoints_error =
        |message: String| FilesError::Endpoints { path: path.to_owned(), message: message.trim().to_owned() };
    let raw: Vec<RawEndpoint> =
        serde_saphyr::from_str(text).map_err(|error| endpoints_error(error.to_string()))?;
    let mut records: BTreeMap<ObjectKey, EndpointRecord> = BTreeMap::new();
    for RawEndpoint { name, namespace, address, labels, ready, kv_events, kv_replay } in raw {
        let key = ObjectKey { namespace, name };
        let kv = KvAddresses { events: kv_events, replay: kv_replay };
        let membership = Membership::Labels(labels);
        let record = EndpointRecord { key: key.clone(), address, kv, membership, ready };
        if records.insert(key.clone(), record).is_some() {
            return Err(FilesError::Duplicate { path: path.to_owned(), kind: "endpoint", key });
        }
    }
    Ok(records.into_values().collect())
}

/// The error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain(source)),
    }
}

fn default_namespace() -> String {
    DEFAULT_NAMESPACE.to_owned()
}

fn default_ready() -> bool {
    true
}
