//! The pools and endpoints of one snapshot; each endpoint has its state as picks see it.
//!
//! A [`Datastore`] never changes; a [`LiveEndpoint`] is in each one from its first snapshot to its last.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use inference_api::object::ObjectKey;
use inference_api::pool::ModelServerRuntime;
use parking_lot::Mutex;
use picking::endpoint::EndpointState;
use picking::picker::Picker;
use pool_index::snapshot::{self, KvAddresses, ModelStatus, Pool, Slot, Snapshot};

/// An endpoint while it lives.
#[derive(Debug)]
pub struct LiveEndpoint {
    /// The endpoint's state as picks see it.
    pub state: EndpointState,
    pub slot: Slot,
    pub address: SocketAddr,
    /// `ip:port`, in the form for the proxy.
    pub destination: Arc<str>,
    pub pod: Arc<str>,
    runtime: Mutex<ModelServerRuntime>,
    /// Addresses of its engine's KV events.
    pub kv: KvAddresses,
    /// True if a pool uses these events.
    wants_events: AtomicBool,
}

/// A pool with those of its endpoints that live.
#[derive(Debug)]
pub struct LivePool {
    pub pool: Arc<Pool>,
    /// `namespace/name`.
    pub name: Arc<str>,
    pub endpoints: Vec<Arc<LiveEndpoint>>,
}

/// All pools and endpoints of one snapshot.
#[derive(Debug, Default)]
pub struct Datastore {
    /// Version of the snapshot; 0 before the first.
    pub version: u64,
    pub pools: BTreeMap<ObjectKey, LivePool>,
    /// Endpoints in the order of slots.
    pub endpoints: Vec<Arc<LiveEndpoint>>,
    /// Every InferenceModel, served or not.
    pub models: Arc<BTreeMap<ObjectKey, ModelStatus>>,
}

// === impl LiveEndpoint ===

impl Borrow<EndpointState> for LiveEndpoint {
    fn borrow(&self) -> &EndpointState {
        &self.state
    }
}

impl LiveEndpoint {
    fn new(found: &snapshot::Endpoint, picker: &Picker) -> Self {
        Self {
            state: picker.endpoint(found.slot.idx),
            slot: found.slot,
            address: found.address,
            destination: found.address.to_string().into(),
            pod: found.key.name.as_str().into(),
            runtime: Mutex::default(),
            kv: found.kv,
            wants_events: AtomicBool::new(false),
        }
    }

    /// Returns true if a pool uses its engine's KV events.
    #[must_use]
    pub fn wants_events(&self) -> bool {
        self.wants_events.load(Ordering::Relaxed)
    }

    /// The engine according to the pool's annotation.
    #[must_use]
    pub fn runtime(&self) -> ModelServerRuntime {
        *self.runtime.lock()
    }
}

// === impl Datastore ===

impl Datastore {
    /// The datastore of `snapshot`; endpoints that live on keep their state.
    #[must_use]
    pub fn follow(&self, snapshot: &Snapshot, picker: &Picker) -> Self {
        let known: HashMap<Slot, &Arc<LiveEndpoint>> =
            self.endpoints.iter().map(|endpoint| (endpoint.slot, endpoint)).collect();
        let endpoints: Vec<Arc<LiveEndpoint>> = snapshot
            .endpoints
            .iter()
            .map(|endpoint| match known.get(&endpoint.slot) {
                Some(endpoint) => Arc::clone(endpoint),
                None => Arc::new(LiveEndpoint::new(endpoint, picker)),
            })
            .collect();
        let by_slot: HashMap<Slot, &Arc<LiveEndpoint>> =
            endpoints.iter().map(|endpoint| (endpoint.slot, endpoint)).collect();
        let live_pool = |pool: &Arc<Pool>| LivePool {
            pool: Arc::clone(pool),
            name: pool.key.to_string().into(),
            endpoints: pool
                .endpoints
                .iter()
                .filter_map(|endpoint| by_slot.get(&endpoint.slot).map(|endpoint| Arc::clone(endpoint)))
                .collect(),
        };
        let pools: BTreeMap<ObjectKey, LivePool> =
            snapshot.pools.iter().map(|(key, pool)| (key.clone(), live_pool(pool))).collect();
        // If several pools select an endpoint, the first by name determines its engine.
        for LivePool { pool, name: _, endpoints } in pools.values().rev() {
            endpoints.iter().for_each(|endpoint| *endpoint.runtime.lock() = pool.runtime);
        }
        for endpoint in &endpoints {
            let wants = |live_pool: &LivePool| {
                live_pool.pool.goes_by_events()
                    && live_pool.endpoints.iter().any(|own| own.slot == endpoint.slot)
            };
            endpoint.wants_events.store(pools.values().any(wants), Ordering::Relaxed);
        }
        Self { version: snapshot.version, pools, endpoints, models: Arc::clone(&snapshot.models) }
    }

    /// Endpoints of `earlier` that are gone.
    pub fn removed_since<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = &'a Arc<LiveEndpoint>> {
        let lives = |endpoint: &&Arc<LiveEndpoint>| {
            self.endpoints.binary_search_by_key(&endpoint.slot, |own| own.slot).is_ok()
        };
        earlier.endpoints.iter().filter(move |endpoint| !lives(endpoint))
    }
}
