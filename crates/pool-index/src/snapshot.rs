//! The picker's view: the state of the world at one instant, never changed after it is published.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use inference_api::condition::Condition;
use inference_api::object::ObjectKey;
use inference_api::pool::{
    Criticality, FailureMode, ModelServerRuntime, PrefixSource, RoutingStrategy, TargetModel,
};
use tokio::sync::watch;

/// Pools with their models and endpoints.
#[derive(Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Number of this snapshot: the first, empty one has 0, each published one has one more.
    pub version: u64,
    pub pools: BTreeMap<ObjectKey, Arc<Pool>>,
    /// Every endpoint that at least one pool selects, once each, in the order of slots.
    pub endpoints: Arc<[Arc<Endpoint>]>,
    /// Every InferenceModel, served or not.
    pub models: Arc<BTreeMap<ObjectKey, ModelStatus>>,
}

/// Status of an InferenceModel.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelStatus {
    pub model_name: String,
    /// The pool that its `poolRef` names.
    pub pool: ObjectKey,
    pub accepted: Condition,
}

/// An InferencePool with its models and endpoints.
#[derive(Debug, PartialEq)]
pub struct Pool {
    pub key: ObjectKey,
    pub strategy: RoutingStrategy,
    pub failure_mode: FailureMode,
    pub runtime: ModelServerRuntime,
    /// Source of the prefix matches that `PREFIX_CACHE` uses.
    pub prefix_source: PrefixSource,
    /// Annotations that were not understood, and the value that is used instead; for people to read.
    pub problems: Vec<String>,
    /// Value of the annotation `inference.networking.x-k8s.io/routing-policy`, verbatim.
    pub routing_policy: Option<String>,
    /// Models by the name that clients ask for.
    pub models: BTreeMap<String, Model>,
    /// Treatment of requests by the InferenceObjective that they name.
    pub objectives: BTreeMap<String, Criticality>,
    pub rewrites: Rewrites,
    /// The ready endpoints that the pool selects, in the order of slots.
    pub endpoints: Arc<[Arc<Endpoint>]>,
}

/// An InferenceModel that is served: no older one has its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The InferenceModel's key.
    pub key: ObjectKey,
    pub criticality: Criticality,
    /// Target models. Empty: the model is served under the name that clients ask for.
    pub targets: Vec<TargetModel>,
}

/// Rules of the pool's InferenceModelRewrites.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rewrites {
    /// Targets of requests for these models.
    pub by_model: BTreeMap<String, Vec<TargetModel>>,
    /// Targets of requests for any other model.
    pub generic: Option<Vec<TargetModel>>,
}

/// A ready model server.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub slot: Slot,
    /// The pod's key; for an endpoint that is given by its address alone, the address.
    pub key: ObjectKey,
    pub address: SocketAddr,
    pub kv: KvAddresses,
}

/// Addresses at which an engine publishes what its KV cache holds, if they are given rather than conventional.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KvAddresses {
    /// Address at which it publishes events (ZMQ PUB; `endpoint` in vLLM's `--kv-events-config`).
    pub events: Option<SocketAddr>,
    /// Address at which it repeats past events (ZMQ ROUTER; the same flag's `replay_endpoint`).
    pub replay: Option<SocketAddr>,
}

/// Identity of an endpoint while it lives: a small dense number that is reused later, and the generation that owns it.
///
/// An endpoint that goes and comes back, even under the same name and address, is another one: its cache is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub idx: u32,
    pub generation: u32,
}

/// Reads the current snapshot and waits for the next one. Clones see the same snapshots.
#[derive(Clone, Debug)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
    versions: watch::Receiver<u64>,
}

/// The index was dropped, so nothing will change any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the pool index has ended")]
pub struct Ended;

#[derive(Debug)]
pub(crate) struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    versions: watch::Sender<u64>,
}

// === impl Snapshot ===

impl Snapshot {
    /// Endpoints of `earlier` that are gone, in the order of slots. Also correct if snapshots between the two were
    /// skipped.
    #[must_use]
    pub fn removed_since(&self, earlier: &Self) -> Vec<Slot> {
        let gone = |slot: &Slot| self.endpoints.binary_search_by_key(slot, |endpoint| endpoint.slot).is_err();
        earlier.endpoints.iter().map(|endpoint| endpoint.slot).filter(gone).collect()
    }
}

// === impl Pool ===

impl Pool {
    /// True if requests are placed by the KV events that engines publish.
    #[must_use]
    pub fn goes_by_events(&self) -> bool {
        self.strategy == RoutingStrategy::PrefixCache && self.prefix_source == PrefixSource::Events
    }
}

// === impl Rewrites ===

impl Rewrites {
    /// The targets of requests for `model`. Empty: it keeps its name.
    #[must_use]
    pub fn targets(&self, model: &str) -> &[TargetModel] {
        let targets = self.by_model.get(model).or(self.generic.as_ref());
        targets.map(Vec::as_slice).unwrap_or_default()
    }
}

// === impl Reader ===

impl Reader {
    /// The current snapshot, without a lock. Hold it for one request, not longer.
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The current snapshot, to be kept, for example to compare it with a later one.
    #[must_use]
    pub fn snapshot_owned(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Waits for a snapshot that this reader has not waited for yet. Several may be skipped.
    ///
    /// # Errors
    /// [`Ended`] if the index was dropped.
    pub async fn changed(&mut self) -> Result<(), Ended> {
        self.versions.changed().await.map_err(|_| Ended)
    }
}

// === impl Publisher ===

impl Publisher {
    pub(crate) fn new() -> (Self, Reader) {
        let current = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (sender, receiver) = watch::channel(0);
        let publisher = Self { current: Arc::clone(&current), versions: sender };
        (publisher, Reader { current, versions: receiver })
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        self.current.store(Arc::new(snapshot));
        self.versions.send_replace(version);
    }
}
