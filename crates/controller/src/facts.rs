//! The cluster as the rules see it: checked objects, and what the controller was told about itself.

use std::collections::{BTreeMap, BTreeSet};

use inference_api::gateway::{Gateway, GatewayClass, HttpRoute};
use inference_api::kinds::{Object, ReadError};
use inference_api::lenient;
use inference_api::model_rewrite::InferenceModelRewrite;
use inference_api::object::ObjectKey;
use inference_api::pool::{BodyMode, InferenceModel, InferencePool};
use inference_api::{keys, object};
use serde_json::Value;

use crate::names;
use crate::sweep;

/// Place of the controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Its namespace, in which managed pickers run.
    pub namespace: String,
    /// Domain of the cluster's DNS names.
    pub domain: String,
}

/// Everything that the rules need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    pub place: Place,
    /// PEM of the authority that signs the certificates of managed pickers.
    pub authority: String,
    pub pools: Vec<InferencePool>,
    pub models: Vec<InferenceModel>,
    pub rewrites: Vec<InferenceModelRewrite>,
    /// All Services, except those that the controller has made.
    pub services: BTreeSet<ObjectKey>,
    pub classes: Vec<GatewayClass>,
    pub gateways: Vec<Gateway>,
    pub routes: Vec<HttpRoute>,
    pub grants: BTreeSet<Grant>,
    /// How the pickers of others take bodies, as far as it was found out, by the Services of their pools' pods.
    pub body_modes: BTreeMap<ObjectKey, BodyMode>,
    /// Managed pickers by the name that they would like, each with the Service that has it: the first one of several.
    pub pickers: BTreeMap<ObjectKey, ObjectKey>,
}

/// A permission that a ReferenceGrant gives: HTTPRoutes of one namespace may lead to pools of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    pub route_namespace: String,
    pub pool_namespace: String,
    /// API group of the pools.
    pub group: String,
    /// Name of the one pool; `None`: all of the namespace.
    pub pool: Option<String>,
}

/// Facts about one object that the rules need.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// An object of a kind that Warmpath reads.
    Object(Box<Object>),
    /// A Service that the controller has not made. That it exists counts, whatever it is.
    Service(ObjectKey),
    /// The body mode that the controller has noted on a Service of pods.
    BodyMode(ObjectKey, BodyMode),
    Grants(Vec<Grant>),
    /// An object that no rule asks for.
    Nothing,
}

impl Fact {
    /// Reads an object as the API server holds it.
    ///
    /// # Errors
    /// If the object breaks a rule of the API.
    pub fn read(value: Value) -> Result<Self, ReadError> {
        match (value["apiVersion"].as_str(), value["kind"].as_str()) {
            (Some("v1"), Some("Service")) if sweep::is_made(&value) => {
                Ok(noted(&value).map_or(Self::Nothing, |(key, mode)| Self::BodyMode(key, mode)))
            }
            _ if sweep::is_made(&value) => Ok(Self::Nothing),
            (Some("v1"), Some("Service")) => Ok(key(&value).map_or(Self::Nothing, Self::Service)),
            (Some(version), Some("ReferenceGrant")) if version.starts_with(keys::GATEWAY_GROUP) => {
                Ok(Self::Grants(grants(&value)))
            }
            _ => match lenient::read(value) {
                Ok(read) => Ok(Self::Object(Box::new(read.object))),
                Err(ReadError::Kind { .. }) => Ok(Self::Nothing),
                Err(error @ (ReadError::NoKind | ReadError::Object(_))) => Err(error),
            },
        }
    }
}

impl Facts {
    /// Adds an object as the API server holds it. Objects of other kinds are passed over.
    ///
    /// # Errors
    /// If the object breaks a rule of the API. It is then as if it did not exist.
    pub fn add(&mut self, value: Value) -> Result<(), ReadError> {
        self.insert(Fact::read(value)?);
        Ok(())
    }

    /// Adds what is known of an object.
    pub fn insert(&mut self, fact: Fact) {
        match fact {
            Fact::Service(key) => drop(self.services.insert(key)),
            Fact::BodyMode(service, mode) => drop(self.body_modes.insert(service, mode)),
            Fact::Grants(grants) => self.grants.extend(grants),
            Fact::Nothing => {}
            Fact::Object(object) => match *object {
                Object::InferencePool(pool) => self.insert_pool(pool),
                Object::InferenceModel(model) => self.models.push(model),
                Object::InferenceModelRewrite(rewrite) => self.rewrites.push(rewrite),
                Object::GatewayClass(class) => self.classes.push(class),
                Object::Gateway(gateway) => self.gateways.push(gateway),
                Object::HttpRoute(route) => self.routes.push(route),
                Object::InferenceObjective(_)
                | Object::ReferenceGrant(_)
                | Object::Namespace(_)
                | Object::BackendTrafficPolicy(_)
                | Object::ClientTrafficPolicy(_)
                | Object::Workload(_)
                | Object::Service(_)
                | Object::ConfigMap(_)
                | Object::Secret(_) => {}
            },
        }
    }

    /// The managed picker for pools that name the Service `named`.
    #[must_use]
    pub fn managed_picker(&self, named: &ObjectKey) -> ObjectKey {
        let plain = names::managed_picker(named, &self.place.namespace);
        match self.pickers.get(&plain) {
            Some(first) if first != named => names::other_managed_picker(named, &self.place.namespace),
            Some(_) | None => plain,
        }
    }

    /// True if HTTPRoutes of `namespace` may lead to `pool`.
    #[must_use]
    pub fn allows(&self, namespace: &str, pool: &InferencePool) -> bool {
        let allows = |grant: &Grant| {
            grant.route_namespace == namespace
                && grant.pool_namespace == pool.meta.namespace
                && grant.group == pool.version.group()
                && grant.pool.as_ref().is_none_or(|name| *name == pool.meta.name)
        };
        namespace == pool.meta.namespace || self.grants.iter().any(allows)
    }

    fn insert_pool(&mut self, pool: InferencePool) {
        if let Some(picker) = &pool.picker {
            let named = ObjectKey::new(&pool.meta.namespace, &picker.name);
            let name = names::managed_picker(&named, &self.place.namespace);
            let first = self.pickers.entry(name).or_insert_with(|| named.clone());
            if named < *first {
                *first = named;
            }
        }
        self.pools.push(pool);
    }
}

fn key(value: &Value) -> Option<ObjectKey> {
    let metadata = &value["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or(object::DEFAULT_NAMESPACE);
    Some(ObjectKey::new(namespace, metadata["name"].as_str()?))
}

/// The body mode that a Service of pods notes.
fn noted(value: &Value) -> Option<(ObjectKey, BodyMode)> {
    let text = value["metadata"]["annotations"][keys::PICKER_BODY_MODE].as_str()?;
    Some((key(value)?, BodyMode::parse(text)?))
}

/// Rights that a ReferenceGrant gives HTTPRoutes: each of its `from` may use each of its `to`.
fn grants(value: &Value) -> Vec<Grant> {
    let list = |field: &str| value["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
    let Some(ObjectKey { namespace: pool_namespace, name: _ }) = key(value) else { return Vec::new() };
    let mut grants = Vec::new();
    let is_route = |from: &&Value| from["group"] == keys::GATEWAY_GROUP && from["kind"] == "HTTPRoute";
    for route_namespace in list("from").iter().filter(is_route).filter_map(|from| from["namespace"].as_str())
    {
        for to in list("to").iter().filter(|to| to["kind"] == "InferencePool") {
            grants.push(Grant {
                route_namespace: route_namespace.to_owned(),
                pool_namespace: pool_namespace.clone(),
                group: to["group"].as_str().unwrap_or_default().to_owned(),
                pool: to["name"].as_str().map(str::to_owned),
            });
        }
    }
    grants
}
