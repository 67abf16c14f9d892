//! The pools and endpoints of one snapshot; each endpoint has its state as picks see it.
//!
//! A [`Roster`] never changes; its [`Member`]s live as long as their endpoints.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use inference_api::object::ObjectKey;
use inference_api::pool::ModelServerRuntime;
use parking_lot::Mutex;
use picking::endpoint::Endpoint;
use picking::picker::Picker;
use pool_index::snapshot::{self, KvAddresses, ModelStatus, Pool, Slot, Snapshot};

/// An endpoint while it lives.
#[derive(Debug)]
pub struct Member {
    /// The endpoint's state as picks see it.
    pub endpoint: Endpoint,
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

/// A pool with its members.
#[derive(Debug)]
pub struct Roll {
    pub pool: Arc<Pool>,
    pub members: Vec<Arc<Member>>,
}

/// All pools and endpoints of one snapshot.
#[derive(Debug, Default)]
pub struct Roster {
    /// Version of the snapshot; 0 before the first.
    pub version: u64,
    pub rolls: BTreeMap<ObjectKey, Roll>,
    /// Members in the order of slots.
    pub members: Vec<Arc<Member>>,
    /// Every InferenceModel, served or not.
    pub models: Arc<BTreeMap<ObjectKey, ModelStatus>>,
}

// === impl Member ===

impl Borrow<Endpoint> for Member {
    fn borrow(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Member {
    fn new(found: &snapshot::Endpoint, picker: &Picker) -> Self {
        Self {
            endpoint: picker.endpoint(found.slot.idx),
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

// === impl Roster ===

impl Roster {
    /// The roster of `snapshot`; endpoints that live on keep their member.
    #[must_use]
    pub fn follow(&self, snapshot: &Snapshot, picker: &Picker) -> Self {
        let known: HashMap<Slot, &Arc<Member>> =
            self.members.iter().map(|member| (member.slot, member)).collect();
        let members: Vec<Arc<Member>> = snapshot
            .endpoints
            .iter()
            .map(|endpoint| match known.get(&endpoint.slot) {
                Some(member) => Arc::clone(member),
                None => Arc::new(Member::new(endpoint, picker)),
            })
            .collect();
        let by_slot: HashMap<Slot, &Arc<Member>> =
            members.iter().map(|member| (member.slot, member)).collect();
        let roll = |pool: &Arc<Pool>| Roll {
            pool: Arc::clone(pool),
            members: pool
                .endpoints
                .iter()
                .filter_map(|endpoint| by_slot.get(&endpoint.slot).map(|member| Arc::clone(member)))
                .collect(),
        };
        let rolls: BTreeMap<ObjectKey, Roll> =
            snapshot.pools.iter().map(|(key, pool)| (key.clone(), roll(pool))).collect();
        // If several pools select an endpoint, the first by name determines its engine.
        for Roll { pool, members } in rolls.values().rev() {
            members.iter().for_each(|member| *member.runtime.lock() = pool.runtime);
        }
        for member in &members {
            let wants = |roll: &Roll| {
                roll.pool.goes_by_events() && roll.members.iter().any(|own| own.slot == member.slot)
            };
            member.wants_events.store(rolls.values().any(wants), Ordering::Relaxed);
        }
        Self { version: snapshot.version, rolls, members, models: Arc::clone(&snapshot.models) }
    }

    /// Members of `earlier` that are gone.
    pub fn removed_since<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = &'a Arc<Member>> {
        let lives =
            |member: &&Arc<Member>| self.members.binary_search_by_key(&member.slot, |own| own.slot).is_ok();
        earlier.members.iter().filter(move |member| !lives(member))
    }
}
