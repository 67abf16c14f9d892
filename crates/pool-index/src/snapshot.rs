//! What the picker reads: the state of the world at one instant, never changed once it is published.

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
    /// Grows by one with each published snapshot; the first, empty one has 0.
    pub version: u64,
    pub pools: BTreeMap<ObjectKey, Arc<Pool>>,
    /// Every endpoint that at least one pool selects, once, in the order of slots.
    pub endpoints: Arc<[Arc<Endpoint>]>,
    /// Every InferenceModel, whether it is served or not.
    pub models: Arc<BTreeMap<ObjectKey, ModelStatus>>,
}

/// What became of an InferenceModel.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelStatus {
    pub model_name: String,
    /// The pool that it names.
    pub pool: ObjectKey,
    pub accepted: Condition,
}

/// An InferencePool, resolved.
#[derive(Debug, PartialEq)]
pub struct Pool {
    pub key: ObjectKey,
    pub strategy: RoutingStrategy,
    pub failure_mode: FailureMode,
    pub runtime: ModelServerRuntime,
    /// What `PREFIX_CACHE` goes by.
    pub prefix_source: PrefixSource,
    /// Annotations that were not understood, and what holds instead; for people.
    pub problems: Vec<String>,
    /// Value of the annotation `inference.networking.x-k8s.io/routing-policy`, verbatim.
    pub routing_policy: Option<String>,
    /// By the name that clients ask for.
    pub models: BTreeMap<String, Model>,
    /// The ready endpoints that the pool selects, in the order of slots.
    pub endpoints: Arc<[Arc<Endpoint>]>,
}

/// An InferenceModel that won its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The object it comes from.
    pub key: ObjectKey,
    pub criticality: Criticality,
    /// Empty: the model is served under the name that clients ask for.
    pub targets: Vec<TargetModel>,
}

/// A ready model server.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub slot: Slot,
    /// The pod; for an endpoint given by address alone, the address.
    pub key: ObjectKey,
    pub address: SocketAddr,
    pub kv: KvAddresses,
}

/// Where an engine tells what its KV cache holds, where that is known and not by convention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KvAddresses {
    /// It publishes events here (ZMQ PUB; vLLM's `--kv-events-config`, `endpoint`).
    pub events: Option<SocketAddr>,
    /// It repeats those of the past here (ZMQ ROUTER; the same flag's `replay_endpoint`).
    pub replay: Option<SocketAddr>,
}

/// The identity of an endpoint while it lives: a dense small number, reused later, and the generation that owns it.
///
/// An endpoint that goes and comes back, even under the same name and address, is another one: its cache is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub idx: u32,
    pub generation: u32,
}

/// Reads the current snapshot and waits for the next. Clones see the same snapshots.
#[derive(Clone, Debug)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
    versions: watch::Receiver<u64>,
}

/// The index is gone, so nothing will change any more.
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
    /// Endpoints of `earlier` that are no longer there, in the order of slots. Correct across skipped snapshots.
    #[must_use]
    pub fn removed_since(&self, earlier: &Self) -> Vec<Slot> {
        let gone = |slot: &Slot| self.endpoints.binary_search_by_key(slot, |endpoint| endpoint.slot).is_err();
        earlier.endpoints.iter().map(|endpoint| endpoint.slot).filter(gone).collect()
    }
}

// === impl Pool ===

impl Pool {
    /// Whether requests are placed by what engines say they hold.
    #[must_use]
    pub fn goes_by_events(&self) -> bool {
        self.strategy == RoutingStrategy::PrefixCache && self.prefix_source == PrefixSource::Events
    }
}

// === impl Reader ===

impl Reader {
    /// The current snapshot, without locks; hold it for a request, not for longer.
    #[must_use]
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The current snapshot, to keep: for comparing it with a later one.
    #[must_use]
    pub fn snapshot_owned(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Waits until a snapshot is published that this reader has not waited for yet. Several may have been skipped.
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
