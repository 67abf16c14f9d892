//! The only owner of the objects: applies changes, works out which pool selects which endpoint, publishes snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use inference_api::condition::{ConditionStatus, accepted};
use inference_api::keys;
use inference_api::kinds::Object;
use inference_api::model_rewrite::{InferenceModelRewrite, RewriteRule};
use inference_api::object::{ObjectKey, ObjectMeta, selects};
use inference_api::objective::InferenceObjective;
use inference_api::pool::{Criticality, InferenceModel, InferencePool};
use tracing::{info, warn};

use crate::slots::{Identity, Slots};
use crate::snapshot::{
    Endpoint, KvAddresses, Model, ModelStatus, Pool, Publisher, Reader, Rewrites, Slot, Snapshot,
};

/// A change that a source saw.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    ApplyPool(InferencePool),
    DeletePool(ObjectKey),
    ApplyModel(InferenceModel),
    DeleteModel(ObjectKey),
    /// An endpoint with this port and no other.
    ApplyEndpoint(EndpointRecord),
    /// The endpoint is gone, with all of its ports.
    DeleteEndpoint(ObjectKey),
    /// All objects that exist now; others are gone.
    ReplaceObjects(Objects),
    /// All endpoints that exist now; others are gone.
    ReplaceEndpoints(Vec<EndpointRecord>),
}

/// Pools, and the objects that refer to them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    pub pools: Vec<InferencePool>,
    pub models: Vec<InferenceModel>,
    pub objectives: Vec<InferenceObjective>,
    pub rewrites: Vec<InferenceModelRewrite>,
}

/// A port of a model server as its source describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointRecord {
    pub key: ObjectKey,
    pub address: SocketAddr,
    pub kv: KvAddresses,
    pub membership: Membership,
    /// True if the model server takes requests. Snapshots contain ready endpoints only.
    pub ready: bool,
}

/// Pools that an endpoint belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// The pools in its namespace whose selector matches these labels.
    Labels(BTreeMap<String, String>),
    /// Pools whose selector matches and that have the endpoint's port among their target ports.
    LabelsAndPort(BTreeMap<String, String>),
    /// All pools.
    EveryPool,
}

/// Pools, models and endpoints, and the publisher of their snapshots.
#[derive(Debug)]
pub struct Index {
    pools: BTreeMap<ObjectKey, InferencePool>,
    models: BTreeMap<ObjectKey, InferenceModel>,
    objectives: Vec<InferenceObjective>,
    /// In the order in which their rules are tried.
    rewrites: Vec<InferenceModelRewrite>,
    /// Records by pod and port.
    endpoints: BTreeMap<(ObjectKey, u16), EndpointRecord>,
    slots: Slots,
    /// Endpoints that share another one's address, each with that address and the endpoint that counts.
    doubles: BTreeMap<ObjectKey, (SocketAddr, ObjectKey)>,
    publisher: Publisher,
}

// === impl Objects ===

impl Objects {
    /// True if the object is of a kind that pickers read.
    #[must_use]
    pub fn take(object: &Object) -> bool {
        matches!(
            object,
            Object::InferencePool(_)
                | Object::InferenceModel(_)
                | Object::InferenceObjective(_)
                | Object::InferenceModelRewrite(_)
        )
    }
}

/// Objects of kinds that pickers do not read are left out.
impl FromIterator<Object> for Objects {
    fn from_iter<T: IntoIterator<Item = Object>>(objects: T) -> Self {
        let mut found = Self::default();
        for object in objects {
            match object {
                Object::InferencePool(pool) => found.pools.push(pool),
                Object::InferenceModel(model) => found.models.push(model),
                Object::InferenceObjective(objective) => found.objectives.push(objective),
                Object::InferenceModelRewrite(rewrite) => found.rewrites.push(rewrite),
                _ => {}
            }
        }
        found
    }
}

// === impl Index ===

impl Index {
    #[must_use]
    pub fn new() -> (Self, Reader) {
        let (publisher, reader) = Publisher::new();
        let index = Self {
            pools: BTreeMap::new(),
            models: BTreeMap::new(),
            objectives: Vec::new(),
            rewrites: Vec::new(),
            endpoints: BTreeMap::new(),
            slots: Slots::default(),
            doubles: BTreeMap::new(),
            publisher,
        };
        (index, reader)
    }

    /// Applies `changes` in order and publishes the result as one snapshot, unless nothing changed.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.apply_one(change);
        }
        self.log_doubles();
        let previous = self.publisher.current();
        let next = self.resolve(previous.version + 1);
        if next.pools == previous.pools
            && next.endpoints == previous.endpoints
            && next.models == previous.models
        {
            return;
        }
        log_changes(&previous, &next);
        self.publisher.publish(next);
    }

    fn apply_one(&mut self, change: Change) {
        match change {
            Change::ApplyPool(pool) => drop(self.pools.insert(pool.key(), pool)),
            Change::DeletePool(key) => drop(self.pools.remove(&key)),
            Change::ApplyModel(model) => drop(self.models.insert(model.meta.key(), model)),
            Change::DeleteModel(key) => drop(self.models.remove(&key)),
            Change::ApplyEndpoint(record) => {
                self.endpoints.retain(|(pod, _), _| *pod != record.key);
                self.endpoints.insert(by_port(&record), record);
            }
            Change::DeleteEndpoint(key) => self.endpoints.retain(|(pod, _), _| *pod != key),
            Change::ReplaceObjects(Objects { pools, models, objectives, mut rewrites }) => {
                let keys: BTreeSet<ObjectKey> = pools.iter().map(InferencePool::key).collect();
                self.pools.retain(|key, _| keys.contains(key));
                self.pools.extend(pools.into_iter().map(|pool| (pool.key(), pool)));
                self.models = models.into_iter().map(|model| (model.meta.key(), model)).collect();
                self.objectives = objectives;
                rewrites.sort_by_key(|rewrite| by_age(&rewrite.meta));
                self.rewrites = rewrites;
            }
            Change::ReplaceEndpoints(records) => {
                self.endpoints = records.into_iter().map(|record| (by_port(&record), record)).collect();
            }
        }
    }

    fn resolve(&mut self, version: u64) -> Snapshot {
        let owners = self.owners();
        let selected: BTreeSet<Identity> = owners.values().map(|record| identity(record)).collect();
        self.slots.retain(|identity| selected.contains(identity));
        let endpoints: BTreeMap<SocketAddr, Arc<Endpoint>> = selected
            .into_iter()
            .map(|identity| {
                let slot = self.slots.acquire(&identity);
                let Identity { key, address, kv } = identity;
                (address, Arc::new(Endpoint { slot, key, address, kv }))
            })
            .collect();
        let pools = self.pools.values().map(|pool| {
            let members = self.endpoints.values().filter(|record| belongs(record, pool));
            let members = members.filter_map(|record| endpoints.get(&record.address).cloned());
            (pool.key(), Arc::new(self.resolve_pool(pool, by_slot(members))))
        });
        let pools: BTreeMap<ObjectKey, Arc<Pool>> = pools.collect();
        let models = Arc::new(self.statuses(&pools));
        Snapshot { version, pools, endpoints: by_slot(endpoints.into_values()), models }
    }

    /// The records that pools select, one per address. If two have the same address, the first by namespace and name
    /// owns it, and every pool that selects either of them gets that one.
    fn owners(&self) -> BTreeMap<SocketAddr, &EndpointRecord> {
        let mut owners: BTreeMap<SocketAddr, &EndpointRecord> = BTreeMap::new();
        for record in self.endpoints.values() {
            if self.pools.values().any(|pool| belongs(record, pool)) {
                owners.entry(record.address).or_insert(record);
            }
        }
        owners
    }

    /// Logs once for each endpoint that shares another one's address which of the two counts.
    fn log_doubles(&mut self) {
        let owners = self.owners();
        let is_selected = |record: &&EndpointRecord| self.pools.values().any(|pool| belongs(record, pool));
        let doubles: BTreeMap<ObjectKey, (SocketAddr, ObjectKey)> = self
            .endpoints
            .values()
            .filter(is_selected)
            .filter_map(|record| {
                let owner = owners.get(&record.address).filter(|owner| owner.key != record.key)?;
                Some((record.key.clone(), (record.address, owner.key.clone())))
            })
            .collect();
        for (pod, (endpoint, counted)) in &doubles {
            if self.doubles.get(pod).is_none_or(|known| known != &(*endpoint, counted.clone())) {
                warn!(%endpoint, %pod, %counted, "Two endpoints have one address, so that it counts once");
            }
        }
        self.doubles = doubles;
    }

    fn resolve_pool(&self, pool: &InferencePool, endpoints: Arc<[Arc<Endpoint>]>) -> Pool {
        let (strategy, runtime) = (pool.routing_strategy(), pool.model_server_runtime());
        let prefix_source = pool.prefix_source();
        let problem = |annotation: &str, value: &String, holds: &str| {
            format!("{annotation}: {value} is not known, using {holds}")
        };
        let unknown_strategy =
            strategy.as_ref().err().map(|value| problem(keys::ROUTING_STRATEGY, value, "DEFAULT"));
        let unknown_runtime =
            runtime.as_ref().err().map(|value| problem(keys::MODEL_SERVER_RUNTIME, value, "vllm"));
        let unknown_source =
            prefix_source.as_ref().err().map(|value| problem(keys::PREFIX_SOURCE, value, "estimate"));
        Pool {
            key: pool.key(),
            strategy: strategy.unwrap_or_default(),
            failure_mode: pool.failure_mode(),
            runtime: runtime.unwrap_or_default(),
            prefix_source: prefix_source.unwrap_or_default(),
            problems: [unknown_strategy, unknown_runtime, unknown_source].into_iter().flatten().collect(),
            routing_policy: pool.meta.annotations.get(keys::ROUTING_POLICY).cloned(),
            models: self.resolve_models(pool),
            objectives: self.resolve_objectives(pool),
            rewrites: self.resolve_rewrites(pool),
            endpoints,
        }
    }

    /// The models of a pool by name. If two objects have the same model name, the older wins, as the API says; if they
    /// are equally old, the first by name.
    fn resolve_models(&self, pool: &InferencePool) -> BTreeMap<String, Model> {
        let key = pool.key();
        let mut models: Vec<&InferenceModel> =
            self.models.values().filter(|model| model.pool == key).collect();
        models.sort_by_key(|model| by_age(&model.meta));
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

    fn resolve_objectives(&self, pool: &InferencePool) -> BTreeMap<String, Criticality> {
        let key = pool.key();
        let own = self.objectives.iter().filter(|objective| objective.pool == key);
        own.map(|objective| (objective.meta.name.clone(), objective.criticality())).collect()
    }

    /// The rules of a pool: the older object wins, and in it the first rule.
    fn resolve_rewrites(&self, pool: &InferencePool) -> Rewrites {
        let (mut rewrites, key) = (Rewrites::default(), pool.key());
        let own = self.rewrites.iter().filter(|rewrite| rewrite.pool == key);
        for RewriteRule { models, targets } in own.flat_map(|rewrite| &rewrite.rules) {
            for model in models {
                rewrites.by_model.entry(model.clone()).or_insert_with(|| targets.clone());
            }
            if models.is_empty() && rewrites.generic.is_none() {
                rewrites.generic = Some(targets.clone());
            }
        }
        rewrites
    }

    fn statuses(&self, pools: &BTreeMap<ObjectKey, Arc<Pool>>) -> BTreeMap<ObjectKey, ModelStatus> {
        let status = |model: &InferenceModel| {
            let (pool, model_name) = (model.pool.clone(), model.model_name.clone());
            let winner = pools.get(&pool).and_then(|pool| pool.models.get(&model_name));
            let accepted = match winner {
                None => accepted::pending(&pool),
                Some(winner) if winner.key == model.meta.key() => accepted::yes(),
                Some(winner) => accepted::name_in_use(&model_name, &winner.key),
            };
            ModelStatus { model_name, pool, accepted }
        };
        self.models.iter().map(|(key, model)| (key.clone(), status(model))).collect()
    }
}

/// The order of objects that claim the same: the older one first. An object without a timestamp has not been created by
/// an API server yet: it is younger than any that has one.
fn by_age(meta: &ObjectMeta) -> (bool, Option<String>, ObjectKey) {
    let created = meta.creation_timestamp.clone();
    (created.is_none(), created, meta.key())
}

fn belongs(record: &EndpointRecord, pool: &InferencePool) -> bool {
    let selected = |labels: &BTreeMap<String, String>| {
        record.key.namespace == pool.meta.namespace && selects(&pool.selector, labels)
    };
    record.ready
        && match &record.membership {
            Membership::EveryPool => true,
            Membership::Labels(labels) => selected(labels),
            Membership::LabelsAndPort(labels) => {
                selected(labels) && pool.target_ports.contains(&record.address.port())
            }
        }
}

fn by_port(record: &EndpointRecord) -> (ObjectKey, u16) {
    (record.key.clone(), record.address.port())
}

fn identity(record: &EndpointRecord) -> Identity {
    Identity { key: record.key.clone(), address: record.address, kv: record.kv }
}

fn by_slot(endpoints: impl Iterator<Item = Arc<Endpoint>>) -> Arc<[Arc<Endpoint>]> {
    let mut endpoints: Vec<Arc<Endpoint>> = endpoints.collect();
    endpoints.sort_unstable_by_key(|endpoint| endpoint.slot);
    endpoints.dedup_by_key(|endpoint| endpoint.slot);
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
        let known = previous.pools.get(key).map_or(&[][..], |old| &old.problems);
        for problem in pool.problems.iter().filter(|problem| !known.contains(problem)) {
            warn!(pool = %key, problem, "Pool has an annotation that is not understood");
        }
    }
    log_models(previous, next);
    for key in previous.pools.keys().filter(|key| !next.pools.contains_key(key)) {
        info!(pool = %key, "Removing pool");
    }
    let is_in = |endpoints: &[Arc<Endpoint>], slot: Slot| {
        endpoints.binary_search_by_key(&slot, |endpoint| endpoint.slot).is_ok()
    };
    for endpoint in next.endpoints.iter().filter(|endpoint| !is_in(&previous.endpoints, endpoint.slot)) {
        info!(endpoint = %endpoint.address, pod = %endpoint.key, "Adding endpoint");
    }
    for endpoint in previous.endpoints.iter().filter(|endpoint| !is_in(&next.endpoints, endpoint.slot)) {
        info!(endpoint = %endpoint.address, pod = %endpoint.key, "Removing endpoint");
    }
}

/// Logs once when a model is not served, when it is served after all, and when it is gone.
fn log_models(previous: &Snapshot, next: &Snapshot) {
    for key in previous.models.keys().filter(|key| !next.models.contains_key(key)) {
        info!(model = %key, "Removing model");
    }
    for (key, ModelStatus { model_name, pool, accepted }) in &*next.models {
        let before = previous.models.get(key).map(|status| &status.accepted);
        if before == Some(accepted) {
            continue;
        }
        match accepted.status {
            ConditionStatus::True => info!(model = %key, model_name, pool = %pool, "Serving model"),
            ConditionStatus::False | ConditionStatus::Unknown => warn!(
                model = %key,
                model_name,
                pool = %pool,
                reason = accepted.reason,
                why = accepted.message,
                "Model is not served"
            ),
        }
    }
}
