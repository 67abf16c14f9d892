//! The cluster as the controller knows it: checked objects, and what it was told about itself.

use std::collections::BTreeSet;

use inference_api::gateway::{Gateway, GatewayClass, HttpRoute};
use inference_api::kinds::{Object, ReadError};
use inference_api::lenient;
use inference_api::object::ObjectKey;
use inference_api::pool::{InferenceModel, InferencePool};
use inference_api::{keys, object};
use serde_json::Value;

use crate::sweep;

/// Everything that the rules need.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// Namespace of the controller, in which managed pickers run.
    pub namespace: String,
    /// PEM of the authority that signs the certificates of managed pickers.
    pub authority: String,
    pub models: Vec<InferenceModel>,
    /// All Services, except those that the controller has made.
    pub services: BTreeSet<ObjectKey>,
    pub classes: Vec<GatewayClass>,
    pub gateways: Vec<Gateway>,
    pub routes: Vec<HttpRoute>,
    pub grants: BTreeSet<Grant>,
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

impl World {
    /// Adds an object as the API server holds it. Objects of other kinds are passed over.
    ///
    /// # Errors
    /// If the object breaks a rule of the API. It is then as if it did not exist.
    pub fn add(&mut self, value: Value) -> Result<(), ReadError> {
        match (value["apiVersion"].as_str(), value["kind"].as_str()) {
            (Some("v1"), Some("Service")) => {
                // That it exists counts, whatever it is.
                if !sweep::is_made(&value) {
                    self.services.extend(key(&value));
                }
                return Ok(());
            }
            (Some(version), Some("ReferenceGrant")) if version.starts_with(keys::GATEWAY_GROUP) => {
                self.grants.extend(grants(&value));
                return Ok(());
            }
            _ => {}
        }
        match lenient::read(value).map(|read| read.object) {
            Ok(Object::InferenceModel(model)) => self.models.push(model),
            Ok(Object::GatewayClass(class)) => self.classes.push(class),
            Ok(Object::Gateway(gateway)) => self.gateways.push(gateway),
            Ok(Object::HttpRoute(route)) => self.routes.push(route),
            Ok(
                Object::InferencePool(_)
                | Object::BackendTrafficPolicy(_)
                | Object::Deployment(_)
                | Object::Service(_),
            )
            | Err(ReadError::Kind { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
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
}

fn key(value: &Value) -> Option<ObjectKey> {
    let metadata = &value["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or(object::DEFAULT_NAMESPACE);
    Some(ObjectKey::new(namespace, metadata["name"].as_str()?))
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
