//! The view that the watches have of one namespace, as changes for the pool index. Pure.
//!
//! A pool or model that breaks a rule of the API is kept in its last good version, and reported.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use inference_api::kinds::{Object, ReadError};
use inference_api::lenient;
use inference_api::model_rewrite::InferenceModelRewrite;
use inference_api::object::{DEFAULT_NAMESPACE, ObjectKey};
use inference_api::objective::InferenceObjective;
use inference_api::pool::{InferenceModel, InferencePool};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::DynamicObject;
use kube::runtime::watcher::Event;
use pool_index::index::{Change, Objects};
use serde_json::Value;
use tracing::warn;

use crate::pods::PodState;
use crate::store::Store;

/// The pools that a picker serves, all of them in one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolScope {
    pub namespace: String,
    pub pools: Pools,
}

/// The choice of pools within the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pools {
    /// The pool of this name.
    Named(String),
    /// Pools whose reference to a picker has this name.
    OfPicker(String),
}

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Watch {
    /// InferencePools of `inference.networking.x-k8s.io/v1alpha2`.
    PoolsV1Alpha2,
    /// InferencePools of `inference.networking.k8s.io/v1`.
    PoolsV1,
    /// InferenceModels.
    Models,
    /// InferenceObjectives of a group.
    Objectives(Group),
    /// InferenceModelRewrites of a group.
    Rewrites(Group),
    /// Pods that match a label selector such as `app=qwen`.
    Pods(String),
}

/// An API group of InferenceObjective and InferenceModelRewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// `inference.networking.x-k8s.io`.
    Older,
    /// `llm-d.ai`.
    Newer,
}

/// An event of a watch.
#[derive(Debug)]
pub enum Seen {
    Object(Box<Event<DynamicObject>>),
    Pod(Box<Event<Pod>>),
}

/// All that is known of the namespace.
#[derive(Debug)]
pub struct NamespaceView {
    scope: PoolScope,
    pools_v1alpha2: Store<Version<InferencePool>>,
    pools_v1: Store<Version<InferencePool>>,
    models: Store<Version<InferenceModel>>,
    objectives: BTreeMap<Group, Store<Version<InferenceObjective>>>,
    rewrites: BTreeMap<Group, Store<Version<InferenceModelRewrite>>>,
    /// Pods by the selector of their watch.
    pods: BTreeMap<String, Store<PodState>>,
}

/// An object's last good version, and what is wrong with the newest one.
#[derive(Debug)]
struct Version<T> {
    good: Option<T>,
    error: Option<ReadError>,
}

// === impl PoolScope ===

impl PoolScope {
    fn contains(&self, pool: &InferencePool) -> bool {
        match &self.pools {
            Pools::Named(name) => pool.meta.name == *name,
            Pools::OfPicker(name) => pool.picker.as_ref().is_some_and(|picker| picker.name == *name),
        }
    }
}

// === impl Watch ===

impl Watch {
    /// API version and kind of the objects.
    #[must_use]
    pub fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::PoolsV1Alpha2 => ("inference.networking.x-k8s.io/v1alpha2", "InferencePool"),
            Self::PoolsV1 => ("inference.networking.k8s.io/v1", "InferencePool"),
            Self::Models => ("inference.networking.x-k8s.io/v1alpha2", "InferenceModel"),
            Self::Objectives(group) => (group.api_version(), "InferenceObjective"),
            Self::Rewrites(group) => (group.api_version(), "InferenceModelRewrite"),
            Self::Pods(_) => ("v1", "Pod"),
        }
    }
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, kind) = self.kind();
        f.write_str(kind)
    }
}

// === impl Group ===

impl Group {
    const ALL: [Self; 2] = [Self::Older, Self::Newer];

    fn api_version(self) -> &'static str {
        match self {
            Self::Older => "inference.networking.x-k8s.io/v1alpha2",
            Self::Newer => "llm-d.ai/v1alpha2",
        }
    }
}

// === impl NamespaceView ===

impl NamespaceView {
    #[must_use]
    pub fn new(scope: PoolScope) -> Self {
        Self {
            scope,
            pools_v1alpha2: Store::default(),
            pools_v1: Store::default(),
            models: Store::default(),
            objectives: Group::ALL.map(|group| (group, Store::default())).into(),
            rewrites: Group::ALL.map(|group| (group, Store::default())).into(),
            pods: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn scope(&self) -> &PoolScope {
        &self.scope
    }

    /// Applies an event. One of a watch that is not wanted any more has no effect. Returns false if what is
    /// known stays the same.
    pub fn apply(&mut self, watch: &Watch, seen: Seen) -> bool {
        let is_news = match (watch, seen) {
            (Watch::PoolsV1Alpha2, Seen::Object(event)) => apply(&mut self.pools_v1alpha2, watch, *event),
            (Watch::PoolsV1, Seen::Object(event)) => apply(&mut self.pools_v1, watch, *event),
            (Watch::Models, Seen::Object(event)) => apply(&mut self.models, watch, *event),
            (Watch::Objectives(group), Seen::Object(event)) => {
                apply(self.objectives.entry(*group).or_default(), watch, *event)
            }
            (Watch::Rewrites(group), Seen::Object(event)) => {
                apply(self.rewrites.entry(*group).or_default(), watch, *event)
            }
            (Watch::Pods(selector), Seen::Pod(event)) => self
                .pods
                .get_mut(selector)
                .is_some_and(|pods| pods.apply(*event, key, |pod, _| PodState::new(pod))),
            (
                Watch::PoolsV1Alpha2
                | Watch::PoolsV1
                | Watch::Models
                | Watch::Objectives(_)
                | Watch::Rewrites(_),
                Seen::Pod(_),
            )
            | (Watch::Pods(_), Seen::Object(_)) => false,
        };
        self.follow_selectors();
        is_news
    }

    /// Notes that the API server does not have the kind. Returns false if that is known.
    pub fn clear(&mut self, watch: &Watch) -> bool {
        let is_news = match watch {
            Watch::PoolsV1Alpha2 => self.pools_v1alpha2.clear(),
            Watch::PoolsV1 => self.pools_v1.clear(),
            Watch::Models => self.models.clear(),
            Watch::Objectives(group) => self.objectives.entry(*group).or_default().clear(),
            Watch::Rewrites(group) => self.rewrites.entry(*group).or_default().clear(),
            Watch::Pods(selector) => self.pods.entry(selector.clone()).or_default().clear(),
        };
        self.follow_selectors();
        is_news
    }

    /// The watches that are needed now.
    #[must_use]
    pub fn watches(&self) -> Vec<Watch> {
        let objects = [Watch::PoolsV1Alpha2, Watch::PoolsV1, Watch::Models].into_iter();
        let groups = Group::ALL.into_iter();
        let newer = groups.flat_map(|group| [Watch::Objectives(group), Watch::Rewrites(group)]);
        objects.chain(newer).chain(self.pods.keys().cloned().map(Watch::Pods)).collect()
    }

    /// True once every watch has delivered its first list.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.pools_v1alpha2.is_listed()
            && self.pools_v1.is_listed()
            && self.models.is_listed()
            && self.objectives.values().all(Store::is_listed)
            && self.rewrites.values().all(Store::is_listed)
            && self.pods.values().all(Store::is_listed)
    }

    /// Everything that is known, to replace what the index knew before.
    #[must_use]
    pub fn changes(&self) -> [Change; 2] {
        let pools = self.pools();
        let ports: BTreeSet<u16> = pools.values().flat_map(|pool| &pool.target_ports).copied().collect();
        let pods: BTreeMap<&ObjectKey, &PodState> = self.pods.values().flat_map(Store::iter).collect();
        let records = pods.into_iter().flat_map(|(key, pod)| pod.records(key, &ports)).collect();
        let objects = Objects {
            pools: pools.into_values().cloned().collect(),
            models: good([&self.models]),
            objectives: good(self.objectives.values()),
            rewrites: good(self.rewrites.values()),
        };
        [Change::ReplaceObjects(objects), Change::ReplaceEndpoints(records)]
    }

    /// Objects whose newest version cannot be taken.
    pub fn refused(&self) -> impl Iterator<Item = &ReadError> {
        let pools = self.pools_v1alpha2.iter().chain(self.pools_v1.iter());
        let pools = pools.filter_map(|(_, pool)| pool.error.as_ref());
        let models = self.models.iter().filter_map(|(_, model)| model.error.as_ref());
        let objectives = self.objectives.values().flat_map(Store::iter);
        let rewrites = self.rewrites.values().flat_map(Store::iter);
        pools
            .chain(models)
            .chain(objectives.filter_map(|(_, objective)| objective.error.as_ref()))
            .chain(rewrites.filter_map(|(_, rewrite)| rewrite.error.as_ref()))
    }

    /// Keeps pods by the selectors that pools have now; a new selector's pods are not listed yet.
    fn follow_selectors(&mut self) {
        let selectors: BTreeSet<String> = self.pools().into_values().map(selector).collect();
        self.pods.retain(|selector, _| selectors.contains(selector));
        for selector in selectors {
            self.pods.entry(selector).or_default();
        }
    }

    /// The pools in scope. Of two with one name, the one of the newer version counts.
    fn pools(&self) -> BTreeMap<&ObjectKey, &InferencePool> {
        let both = self.pools_v1alpha2.iter().chain(self.pools_v1.iter());
        let good = both.filter_map(|(key, pool)| Some((key, pool.good.as_ref()?)));
        good.filter(|(_, pool)| self.scope.contains(pool)).collect()
    }
}

/// The kind of object that a store has.
trait Stored: Sized + Clone {
    fn from_object(object: Object) -> Option<Self>;
}

impl Stored for InferencePool {
    fn from_object(object: Object) -> Option<Self> {
        if let Object::InferencePool(pool) = object { Some(pool) } else { None }
    }
}

impl Stored for InferenceModel {
    fn from_object(object: Object) -> Option<Self> {
        if let Object::InferenceModel(model) = object { Some(model) } else { None }
    }
}

impl Stored for InferenceObjective {
    fn from_object(object: Object) -> Option<Self> {
        if let Object::InferenceObjective(objective) = object { Some(objective) } else { None }
    }
}

impl Stored for InferenceModelRewrite {
    fn from_object(object: Object) -> Option<Self> {
        if let Object::InferenceModelRewrite(rewrite) = object { Some(rewrite) } else { None }
    }
}

/// The last good versions of all objects. Of two with one name, the one of the later store counts.
fn good<'a, T: Clone + 'a>(stores: impl IntoIterator<Item = &'a Store<Version<T>>>) -> Vec<T> {
    let all = stores.into_iter().flat_map(Store::iter);
    let good: BTreeMap<&ObjectKey, &T> =
        all.filter_map(|(key, version)| Some((key, version.good.as_ref()?))).collect();
    good.into_values().cloned().collect()
}

fn apply<T: Stored>(store: &mut Store<Version<T>>, watch: &Watch, event: Event<DynamicObject>) -> bool {
    store.apply(event, key, |object, known| match read(watch, object) {
        Ok(object) => Version { good: T::from_object(object), error: None },
        Err(error) => {
            if known.is_none_or(|known| known.error.as_ref() != Some(&error)) {
                warn!(%error, "Keeping the last good version");
            }
            Version { good: known.and_then(|known| known.good.clone()), error: Some(error) }
        }
    })
}

/// Reads an object of the watched kind. Lists of some servers leave out the kind of their items.
fn read(watch: &Watch, object: DynamicObject) -> Result<Object, ReadError> {
    let (api_version, kind) = watch.kind();
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["apiVersion"] = Value::from(api_version);
    value["kind"] = Value::from(kind);
    Ok(lenient::read(value)?.object)
}

/// The pool's selector in the form that a list takes.
fn selector(pool: &InferencePool) -> String {
    let pairs: Vec<String> = pool.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}

fn key(object: &impl ResourceExt) -> ObjectKey {
    let namespace = object.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    ObjectKey::new(namespace, object.name_any())
}
