//! The one owner of the objects: applies changes, resolves who selects whom, publishes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use inference_api::keys;
use inference_api::object::{ObjectKey, selects};
use inference_api::pool::{InferenceModel, InferencePool, RoutingStrategy};
use tracing::{info, warn};

use crate::slots::{Identity, Slots};
use crate::snapshot::{Endpoint, Model, Pool, Publisher, Reader, Snapshot};

/// What a source saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    ApplyPool(InferencePool),
    DeletePool(ObjectKey),
    ApplyModel(InferenceModel),
    DeleteModel(ObjectKey),
    ApplyEndpoint(EndpointRecord),
    DeleteEndpoint(ObjectKey),
    /// These are all the pools and models that there are.
    ReplaceObjects {
        pools: Vec<InferencePool>,
        models: Vec<InferenceModel>,
    },
    /// These are all the endpoints that there are.
    ReplaceEndpoints(Vec<EndpointRecord>),
}

/// A model server as its source knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointRecord {
    pub key: ObjectKey,
    pub address: SocketAddr,
    pub membership: Membership,
    /// An endpoint that is not ready is in no snapshot.
    pub ready: bool,
}

/// Which pools an endpoint belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// Those in its namespace whose selector matches these labels.
    Labels(BTreeMap<String, String>),
    /// All of them.
    EveryPool,
}

/// Pools, models and endpoints, and the snapshot made of them.
#[derive(Debug)]
pub struct Index {
    pools: BTreeMap<ObjectKey, InferencePool>,
    models: BTreeMap<ObjectKey, InferenceModel>,
    endpoints: BTreeMap<ObjectKey, EndpointRecord>,
    slots: Slots,
    publisher: Publisher,
}

// === impl Index ===

impl Index {
    #[must_use]
    pub fn new() -> (Self, Reader) {
        let (publisher, reader) = Publisher::new();
        let index = Self {
            pools: BTreeMap::new(),
            models: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            slots: Slots::default(),
            publisher,
        };
        (index, reader)
    }

    /// Applies `changes` in order and publishes their result as one snapshot, unless nothing came of them.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.apply_one(change);
        }
        let previous = self.publisher.current();
        let next = self.resolve(previous.version + 1);
        if next.pools == previous.pools && next.endpoints == previous.endpoints {
            return;
        }
        log_changes(&previous, &next);
        self.publisher.publish(next);
    }

    fn apply_one(&mut self, change: Change) {
        match change {
            Change::ApplyPool(pool) => self.apply_pool(pool),
            Change::DeletePool(key) => drop(self.pools.remove(&key)),
            Change::ApplyModel(model) => drop(self.models.insert(model.meta.key(), model)),
            Change::DeleteModel(key) => drop(self.models.remove(&key)),
            Change::ApplyEndpoint(record) => drop(self.endpoints.insert(record.key.clone(), record)),
            Change::DeleteEndpoint(key) => drop(self.endpoints.remove(&key)),
            Change::ReplaceObjects { pools, models } => {
                let keys: BTreeSet<ObjectKey> = pools.iter().map(InferencePool::key).collect();
                self.pools.retain(|key, _| keys.contains(key));
                pools.into_iter().for_each(|pool| self.apply_pool(pool));
                self.models = models.into_iter().map(|model| (model.meta.key(), model)).collect();
            }
            Change::ReplaceEndpoints(records) => {
                self.endpoints = records.into_iter().map(|record| (record.key.clone(), record)).collect();
            }
        }
    }

    /// Warns of an unknown strategy when it appears, not each time that the pool is seen with it.
    fn apply_pool(&mut self, pool: InferencePool) {
        let key = pool.key();
        let strategy = pool.routing_strategy();
        let previous = self.pools.insert(key.clone(), pool).map(|previous| previous.routing_strategy());
        match &strategy {
            Err(value) if previous.as_ref() != Some(&strategy) => warn!(
                pool = %key,
                annotation = keys::ROUTING_STRATEGY,
                value,
                "Unknown routing strategy, using DEFAULT"
            ),
            Err(_) | Ok(RoutingStrategy::Default | RoutingStrategy::PrefixCache) => {}
        }
    }

    fn resolve(&mut self, version: u64) -> Snapshot {
        let selected: BTreeSet<Identity> = self
            .endpoints
            .values()
            .filter(|record| self.pools.values().any(|pool| belongs(record, pool)))
            .map(identity)
            .collect();
        self.slots.retain(|identity| selected.contains(identity));
        let endpoints: BTreeMap<&ObjectKey, Arc<Endpoint>> = selected
            .iter()
            .map(|identity| {
                let Identity { key, address } = identity.clone();
                (&identity.key, Arc::new(Endpoint { slot: self.slots.acquire(identity), key, address }))
            })
            .collect();
        let pools = self.pools.values().map(|pool| {
            let members = self.endpoints.values().filter(|record| belongs(record, pool));
            let members = members.filter_map(|record| endpoints.get(&record.key).cloned());
            (pool.key(), Arc::new(self.resolve_pool(pool, by_slot(members))))
        });
        let pools = pools.collect();
        Snapshot { version, pools, endpoints: by_slot(endpoints.into_values()) }
    }

    fn resolve_pool(&self, pool: &InferencePool, endpoints: Arc<[Arc<Endpoint>]>) -> Pool {
        Pool {
            key: pool.key(),
            strategy: pool.routing_strategy().unwrap_or_default(),
            failure_mode: pool.picker.failure_mode,
            model_server_runtime: pool.meta.annotations.get(keys::MODEL_SERVER_RUNTIME).cloned(),
            models: self.resolve_models(pool),
            endpoints,
        }
    }

    /// Of two objects with one model name the older wins, as the API says; of two as old, the first by name.
    fn resolve_models(&self, pool: &InferencePool) -> BTreeMap<String, Model> {
        let mut models: Vec<&InferenceModel> = self
            .models
            .values()
            .filter(|model| model.meta.namespace == pool.meta.namespace && model.pool == pool.meta.name)
            .collect();
        // An object without a timestamp was not created by an API server yet: it is younger than any that has one.
        models.sort_by_key(|model| {
            let created = model.meta.creation_timestamp.as_deref();
            (created.is_none(), created, model.meta.key())
        });
        let mut winners = BTreeMap::new();
        for model in models {
            winners.entry(model.model_name.clone()).or_insert_with(|| Model {
                key: model.meta.key(),
                criticality: model.criticality,
                targets: model.target_models.clone(),
            });
        }
        winners
    }
}

fn belongs(record: &EndpointRecord, pool: &InferencePool) -> bool {
    record.ready
        && match &record.membership {
            Membership::EveryPool => true,
            Membership::Labels(labels) => {
                record.key.namespace == pool.meta.namespace && selects(&pool.selector, labels)
            }
        }
}

fn identity(record: &EndpointRecord) -> Identity {
    Identity { key: record.key.clone(), address: record.address }
}

fn by_slot(endpoints: impl Iterator<Item = Arc<Endpoint>>) -> Arc<[Arc<Endpoint>]> {
    let mut endpoints: Vec<Arc<Endpoint>> = endpoints.collect();
    endpoints.sort_unstable_by_key(|endpoint| endpoint.slot);
    endpoints.into()
}

fn log_changes(previous: &Snapshot, next: &Snapshot) {
    for (key, pool) in &next.pools {
        let strategy = pool.strategy.as_str();
        match previous.pools.get(key) {
            None => info!(pool = %key, strategy, "Adding pool"),
            Some(old) if old.strategy != pool.strategy => info!(pool = %key, strategy, "Changing strategy"),
            Some(_) => {}
        }
    }
    for key in previous.pools.keys().filter(|key| !next.pools.contains_key(key)) {
        info!(pool = %key, "Removing pool");
    }
    let added = |endpoint: &&Arc<Endpoint>| !previous.endpoints.iter().any(|old| old.slot == endpoint.slot);
    for endpoint in next.endpoints.iter().filter(added) {
        info!(endpoint = %endpoint.address, pod = %endpoint.key, "Adding endpoint");
    }
    let removed = next.removed_since(previous);
    for endpoint in previous.endpoints.iter().filter(|endpoint| removed.contains(&endpoint.slot)) {
        info!(endpoint = %endpoint.address, pod = %endpoint.key, "Removing endpoint");
    }
}
