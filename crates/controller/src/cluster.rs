//! The cluster as the watches show it: every object that the controller follows, by kind.
//!
//! An object that breaks a rule of the API counts in its last good version.

use std::collections::BTreeMap;
use std::fmt;

use inference_api::kinds::ReadError;
use inference_api::object::{DEFAULT_NAMESPACE, ObjectKey};
use inference_api::pool::PoolVersion;
use kube::ResourceExt;
use kube::core::{DynamicObject, GroupVersionKind};
use kube::runtime::watcher::Event;
use pool_watch::store::Store;
use serde_json::Value;
use tracing::warn;

use crate::facts::{Fact, Facts, Place};
use crate::sweep;

/// A kind of object that the controller follows or makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    PoolV1Alpha2,
    PoolV1,
    Model,
    /// InferenceModelRewrites of `inference.networking.x-k8s.io`.
    Rewrite,
    /// InferenceModelRewrites of `llm-d.ai`.
    RewriteOfLlmD,
    GatewayClass,
    Gateway,
    HttpRoute,
    ReferenceGrant,
    Service,
    ServiceAccount,
    Secret,
    Role,
    RoleBinding,
    Deployment,
}

/// Objects of a kind that are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All objects in all namespaces.
    All,
    /// Objects that the controller has made, in all namespaces.
    Made,
    /// Objects that the controller has made, in its own namespace.
    MadeHere,
}

/// All that is known of the cluster.
#[derive(Debug)]
pub struct Cluster {
    stores: BTreeMap<Kind, Store<Held>>,
}

/// An object as it is held.
#[derive(Debug)]
struct Held {
    /// The newest version; null if no rule looks at more than its fact.
    value: Value,
    /// The last good version.
    fact: Option<Fact>,
    /// Why the newest version cannot be taken.
    error: Option<ReadError>,
}

// === impl Kind ===

impl Kind {
    pub const ALL: [Self; 15] = [
        Self::PoolV1Alpha2,
        Self::PoolV1,
        Self::Model,
        Self::Rewrite,
        Self::RewriteOfLlmD,
        Self::GatewayClass,
        Self::Gateway,
        Self::HttpRoute,
        Self::ReferenceGrant,
        Self::Service,
        Self::ServiceAccount,
        Self::Secret,
        Self::Role,
        Self::RoleBinding,
        Self::Deployment,
    ];

    /// API version and kind of the objects.
    #[must_use]
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::PoolV1Alpha2 => ("inference.networking.x-k8s.io/v1alpha2", "InferencePool"),
            Self::PoolV1 => ("inference.networking.k8s.io/v1", "InferencePool"),
            Self::Model => ("inference.networking.x-k8s.io/v1alpha2", "InferenceModel"),
            Self::Rewrite => ("inference.networking.x-k8s.io/v1alpha2", "InferenceModelRewrite"),
            Self::RewriteOfLlmD => ("llm-d.ai/v1alpha2", "InferenceModelRewrite"),
            Self::GatewayClass => ("gateway.networking.k8s.io/v1", "GatewayClass"),
            Self::Gateway => ("gateway.networking.k8s.io/v1", "Gateway"),
            Self::HttpRoute => ("gateway.networking.k8s.io/v1", "HTTPRoute"),
            Self::ReferenceGrant => ("gateway.networking.k8s.io/v1beta1", "ReferenceGrant"),
            Self::Service => ("v1", "Service"),
            Self::ServiceAccount => ("v1", "ServiceAccount"),
            Self::Secret => ("v1", "Secret"),
            Self::Role => ("rbac.authorization.k8s.io/v1", "Role"),
            Self::RoleBinding => ("rbac.authorization.k8s.io/v1", "RoleBinding"),
            Self::Deployment => ("apps/v1", "Deployment"),
        }
    }

    #[must_use]
    pub fn resource(self) -> GroupVersionKind {
        let (api_version, kind) = self.names();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        GroupVersionKind::gvk(group, version, kind)
    }

    /// The kind of an object; `None` for one that the controller neither follows nor makes.
    #[must_use]
    pub fn of(object: &Value) -> Option<Self> {
        let names = (object["apiVersion"].as_str()?, object["kind"].as_str()?);
        Self::ALL.into_iter().find(|kind| kind.names() == names)
    }

    #[must_use]
    pub fn pool(version: PoolVersion) -> Self {
        match version {
            PoolVersion::V1Alpha2 => Self::PoolV1Alpha2,
            PoolVersion::V1 => Self::PoolV1,
        }
    }

    #[must_use]
    pub fn reach(self) -> Reach {
        match self {
            Self::PoolV1Alpha2
            | Self::PoolV1
            | Self::Model
            | Self::Rewrite
            | Self::RewriteOfLlmD
            | Self::GatewayClass
            | Self::Gateway
            | Self::HttpRoute
            | Self::ReferenceGrant
            | Self::Service => Reach::All,
            Self::Role | Self::RoleBinding => Reach::Made,
            Self::ServiceAccount | Self::Secret | Self::Deployment => Reach::MadeHere,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.names().1)
    }
}

// === impl Cluster ===

impl Default for Cluster {
    fn default() -> Self {
        Self { stores: Kind::ALL.into_iter().map(|kind| (kind, Store::default())).collect() }
    }
}

impl Cluster {
    /// Applies an event of the watch of `kind`. Returns false if what is known stays the same.
    pub fn apply(&mut self, kind: Kind, event: Event<DynamicObject>) -> bool {
        let store = self.stores.entry(kind).or_default();
        store.apply(event, key, |object, known| Held::new(kind, object, known))
    }

    /// Notes that the API server does not have the kind. Returns false if that is known.
    pub fn clear(&mut self, kind: Kind) -> bool {
        self.stores.entry(kind).or_default().clear()
    }

    /// True once every watch has delivered its first list.
    #[must_use]
    pub fn is_listed(&self) -> bool {
        self.stores.values().all(Store::is_listed)
    }

    /// The facts of a controller at this `place` that knows this `authority`.
    #[must_use]
    pub fn facts(&self, place: &Place, authority: &str) -> Facts {
        let mut facts = Facts { place: place.clone(), authority: authority.to_owned(), ..Facts::default() };
        let held = self.stores.values().flat_map(Store::iter);
        for fact in held.filter_map(|(_, held)| held.fact.clone()) {
            facts.insert(fact);
        }
        facts
    }

    /// The newest version of an object.
    #[must_use]
    pub fn newest(&self, kind: Kind, key: &ObjectKey) -> Option<&Value> {
        self.stores.get(&kind)?.get(key).map(|held| &held.value)
    }

    /// Objects that the controller has made.
    pub fn made(&self) -> impl Iterator<Item = &Value> {
        self.stores
            .values()
            .flat_map(Store::iter)
            .map(|(_, held)| &held.value)
            .filter(|value| sweep::is_made(value))
    }

    /// Objects whose newest version cannot be taken.
    pub fn refused(&self) -> impl Iterator<Item = &ReadError> {
        self.stores.values().flat_map(Store::iter).filter_map(|(_, held)| held.error.as_ref())
    }

    /// True if a pool counts in no version at all. What was made for it must not be taken for unwanted.
    #[must_use]
    pub fn hides_a_pool(&self) -> bool {
        let pools = [Kind::PoolV1Alpha2, Kind::PoolV1].iter().filter_map(|kind| self.stores.get(kind));
        pools.flat_map(Store::iter).any(|(_, held)| held.fact.is_none())
    }
}

// === impl Held ===

impl Held {
    fn new(kind: Kind, object: DynamicObject, known: Option<&Self>) -> Self {
        let (api_version, name) = kind.names();
        let mut object = object;
        object.metadata.managed_fields = None;
        let mut value = serde_json::to_value(object).unwrap_or_default();
        // Lists of some servers leave out the kind of their items.
        value["apiVersion"] = Value::from(api_version);
        value["kind"] = Value::from(name);
        let (fact, error) = match Fact::read(value.clone()) {
            Ok(fact) => (Some(fact), None),
            Err(error) => {
                if known.is_none_or(|known| known.error.as_ref() != Some(&error)) {
                    warn!(%error, "Keeping the last good version");
                }
                (known.and_then(|known| known.fact.clone()), Some(error))
            }
        };
        let value = if kind == Kind::Service && !sweep::is_made(&value) { Value::Null } else { value };
        Self { value, fact, error }
    }
}

fn key(object: &DynamicObject) -> ObjectKey {
    let namespace = object.namespace().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    ObjectKey::new(namespace, object.name_any())
}
