//! Manifests and endpoint records in files, read again whenever their content changes.
//!
//! Each file is independent: while one is invalid its last good version stays in force, and the others still count.
//! Objects that disappear from a file count as removed if they stay absent.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use inference_api::kinds::Object;
use inference_api::manifest::{self, ManifestError};
use inference_api::object::{DEFAULT_NAMESPACE, ObjectKey};
use serde::Deserialize;
use thiserror::Error;
use tracing::error;

use super::kept::Kept;
use super::watched::{Content, Unreadable, Watched, poll_blocking};
use crate::address;
use crate::index::{Change, EndpointRecord, Index, Membership, Objects};
use crate::snapshot::{KvAddresses, Reader};

/// Files to read, and endpoints that need no file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Multi-document YAML of InferencePools, InferenceModels, InferenceObjectives and InferenceModelRewrites.
    pub pool_files: Vec<PathBuf>,
    /// YAML list of `{name, namespace: default, address: ip:port, labels: {}, ready: true}`, and if an engine publishes
    /// what its KV cache holds, `kvEvents: ip:port`, `kvReplay: ip:port`.
    pub endpoints_file: Option<PathBuf>,
    /// Endpoints that belong to every pool and are always ready.
    pub static_endpoints: Vec<SocketAddr>,
}

/// Why files were refused; the message names the file.
#[derive(Debug, Error)]
pub enum FilesError {
    #[error(transparent)]
    Read(#[from] Unreadable),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{}: {kind} {key} does not belong here, only InferencePool and the kinds that refer to one do", path.display())]
    Kind { path: PathBuf, kind: &'static str, key: ObjectKey },
    #[error("{}: {kind} {key} is defined twice", path.display())]
    Duplicate { path: PathBuf, kind: &'static str, key: ObjectKey },
    #[error("{}: not a list of endpoints: {message}", path.display())]
    Endpoints { path: PathBuf, message: String },
}

/// The files and the index that they feed.
#[derive(Debug)]
pub struct Files {
    pool_files: Vec<Watched<PoolFile>>,
    endpoints_file: Option<Watched<Endpoints>>,
    static_endpoints: Vec<SocketAddr>,
    index: Index,
}

/// The objects in a file of pools.
#[derive(Debug)]
struct PoolFile(Kept<ObjectId, Object>);

/// Kind and key of an object.
type ObjectId = (&'static str, ObjectKey);

/// The records in a file of endpoints.
#[derive(Debug)]
struct Endpoints(Kept<ObjectKey, EndpointRecord>);

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
        let pool_files = pool_files.into_iter().map(Watched::load).collect::<Result<Vec<_>, _>>()?;
        let endpoints_file = endpoints_file.map(Watched::load).transpose()?;
        let (index, reader) = Index::new();
        let mut files = Self { pool_files, endpoints_file, static_endpoints, index };
        let changes = [files.objects()?, files.endpoints()];
        files.index.apply(changes);
        Ok((files, reader))
    }

    /// Polls until `shutdown` resolves, in a thread that may block.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        poll_blocking(move |now| self.poll(now), shutdown).await;
    }

    /// Reads every file again and applies what changed.
    pub fn poll(&mut self, now: Instant) {
        let mut changes = Vec::new();
        let mut objects_changed = false;
        for file in &mut self.pool_files {
            objects_changed |= file.poll(now);
        }
        if objects_changed {
            match self.objects() {
                Ok(change) => changes.push(change),
                Err(error) => error!(%error, "Keeping the last good pools and models"),
            }
        }
        if self.endpoints_file.as_mut().is_some_and(|file| file.poll(now)) {
            changes.push(self.endpoints());
        }
        if !changes.is_empty() {
            self.index.apply(changes);
        }
    }

    /// All pool files together. An object that two of them define is an error, because nothing says which definition is
    /// meant; an object that moves from one file to another is in both for a moment.
    fn objects(&self) -> Result<Change, FilesError> {
        let mut objects: BTreeMap<&ObjectId, &Object> = BTreeMap::new();
        for file in &self.pool_files {
            let PoolFile(kept) = file.content();
            for (id, object) in kept.present() {
                if objects.insert(id, object).is_some() {
                    let (kind, key) = id.clone();
                    return Err(FilesError::Duplicate { path: file.path().to_owned(), kind, key });
                }
            }
        }
        for file in &self.pool_files {
            let PoolFile(kept) = file.content();
            for (id, object) in kept.absent() {
                objects.entry(id).or_insert(object);
            }
        }
        Ok(Change::ReplaceObjects(objects.into_values().cloned().collect()))
    }

    /// All endpoints. A record that is now present under another name is not kept under its old name.
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
        if let Some(Endpoints(kept)) = self.endpoints_file.as_ref().map(Watched::content) {
            records.extend(kept.present().map(|(_, record)| record.clone()));
            let taken: BTreeSet<SocketAddr> = records.iter().map(|record| record.address).collect();
            let absent = kept.absent().filter(|(_, record)| !taken.contains(&record.address));
            records.extend(absent.map(|(_, record)| record.clone()));
        }
        Change::ReplaceEndpoints(records)
    }
}

// === impl PoolFile ===

impl From<BTreeMap<ObjectId, Object>> for PoolFile {
    fn from(objects: BTreeMap<ObjectId, Object>) -> Self {
        Self(objects.into())
    }
}

impl Content for PoolFile {
    type Parsed = BTreeMap<ObjectId, Object>;
    type Error = FilesError;

    fn parse(text: &str, path: &Path) -> Result<Self::Parsed, FilesError> {
        let mut parsed = BTreeMap::new();
        for object in manifest::parse(text, &path.display().to_string())? {
            let (kind, key) = (object.kind(), object.key());
            if !Objects::take(&object) {
                return Err(FilesError::Kind { path: path.to_owned(), kind, key });
            }
            if parsed.insert((kind, key.clone()), object).is_some() {
                return Err(FilesError::Duplicate { path: path.to_owned(), kind, key });
            }
        }
        Ok(parsed)
    }

    fn update(&mut self, objects: Self::Parsed, now: Instant) -> usize {
        self.0.update(objects, now)
    }

    fn settle(&mut self, now: Instant) -> bool {
        self.0.settle(now)
    }
}

// === impl Endpoints ===

impl From<BTreeMap<ObjectKey, EndpointRecord>> for Endpoints {
    fn from(records: BTreeMap<ObjectKey, EndpointRecord>) -> Self {
        Self(records.into())
    }
}

impl Content for Endpoints {
    type Parsed = BTreeMap<ObjectKey, EndpointRecord>;
    type Error = FilesError;

    fn parse(text: &str, path: &Path) -> Result<Self::Parsed, FilesError> {
        parse_endpoints(text, path)
    }

    fn update(&mut self, records: Self::Parsed, now: Instant) -> usize {
        self.0.update(records, now)
    }

    fn settle(&mut self, now: Instant) -> bool {
        self.0.settle(now)
    }
}

fn parse_endpoints(text: &str, path: &Path) -> Result<BTreeMap<ObjectKey, EndpointRecord>, FilesError> {
    let endpoints_error =
        |message: String| FilesError::Endpoints { path: path.to_owned(), message: message.trim().to_owned() };
    let raw: Vec<RawEndpoint> =
        serde_saphyr::from_str(text).map_err(|error| endpoints_error(error.to_string()))?;
    let mut records: BTreeMap<ObjectKey, EndpointRecord> = BTreeMap::new();
    for RawEndpoint { name, namespace, address, labels, ready, kv_events, kv_replay } in raw {
        let key = ObjectKey { namespace, name };
        let check = |address: SocketAddr| {
            address::check(address).map_err(|error| endpoints_error(format!("endpoint {key}: {error}")))
        };
        let address = check(address)?;
        let kv = KvAddresses {
            events: kv_events.map(check).transpose()?,
            replay: kv_replay.map(check).transpose()?,
        };
        let membership = Membership::Labels(labels);
        let record = EndpointRecord { key: key.clone(), address, kv, membership, ready };
        if records.insert(key.clone(), record).is_some() {
            return Err(FilesError::Duplicate { path: path.to_owned(), kind: "endpoint", key });
        }
    }
    Ok(records)
}

fn default_namespace() -> String {
    DEFAULT_NAMESPACE.to_owned()
}

fn default_ready() -> bool {
    true
}
