//! The objects by kind; each name occurs once per kind.

use std::collections::BTreeSet;

use inference_api::gateway::{
    Gateway, GatewayClass, GrantFrom, GrantTo, HttpRoute, Namespace, ReferenceGrant,
};
use inference_api::kinds::Object;
use inference_api::model_rewrite::InferenceModelRewrite;
use inference_api::object::{ObjectKey, ObjectMeta};
use inference_api::pool::{InferenceModel, InferencePool};
use inference_api::selector::LabelSelector;
use inference_api::traffic::{BackendTrafficPolicy, ClientTrafficPolicy};
use inference_api::workload::Service;

use crate::error::TranslateError;

#[derive(Debug, Default)]
pub(super) struct Index<'a> {
    pub(super) classes: Vec<&'a GatewayClass>,
    pub(super) gateways: Vec<&'a Gateway>,
    pub(super) routes: Vec<&'a HttpRoute>,
    pub(super) policies: Vec<&'a BackendTrafficPolicy>,
    pub(super) client_policies: Vec<&'a ClientTrafficPolicy>,
    pub(super) grants: Vec<&'a ReferenceGrant>,
    pub(super) namespaces: Vec<&'a Namespace>,
    pub(super) services: Vec<&'a Service>,
    pub(super) pools: Vec<&'a InferencePool>,
    pub(super) models: Vec<&'a InferenceModel>,
    pub(super) rewrites: Vec<&'a InferenceModelRewrite>,
}

/// Label that Kubernetes gives each namespace: its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

impl<'a> Index<'a> {
    pub(super) fn new(objects: &'a [Object]) -> Result<Self, TranslateError> {
        let mut index = Self::default();
        let mut seen = BTreeSet::new();
        for object in objects {
            // Objects of two kinds may stand for one HTTPRoute.
            let kind = match object {
                Object::HttpRoute(_) => "HTTPRoute",
                other => other.kind(),
            };
            if !seen.insert((kind, object.key())) {
                return Err(TranslateError {
                    kind: object.kind(),
                    key: object.key(),
                    path: "metadata.name".to_owned(),
                    message: "there are two objects of this name".to_owned(),
                });
            }
            match object {
                Object::GatewayClass(class) => index.classes.push(class),
                Object::Gateway(gateway) => index.gateways.push(gateway),
                Object::HttpRoute(route) => index.routes.push(route),
                Object::BackendTrafficPolicy(policy) => index.policies.push(policy),
                Object::Service(service) => index.services.push(service),
                Object::InferencePool(pool) => index.pools.push(pool),
                Object::InferenceModel(model) => index.models.push(model),
                Object::InferenceModelRewrite(rewrite) => index.rewrites.push(rewrite),
                Object::ClientTrafficPolicy(policy) => index.client_policies.push(policy),
                Object::ReferenceGrant(grant) => index.grants.push(grant),
                Object::Namespace(namespace) => index.namespaces.push(namespace),
                // The caller binds pods and pickers.
                Object::InferenceObjective(_)
                | Object::Workload(_)
                | Object::ConfigMap(_)
                | Object::Secret(_) => {}
            }
        }
        Ok(index)
    }

    /// True if the selector selects the namespace by its labels. Without a selector it selects none.
    pub(super) fn is_selected(&self, namespace: &str, selector: Option<&LabelSelector>) -> bool {
        let known = self.namespaces.iter().find(|known| known.meta.name == namespace);
        let mut labels = known.map(|known| known.meta.labels.clone()).unwrap_or_default();
        labels.insert(NAMESPACE_NAME.to_owned(), namespace.to_owned());
        selector.is_some_and(|selector| selector.matches(&labels))
    }

    /// True if a ReferenceGrant lets the objects of a group, kind and namespace refer to the object `to`, of this group
    /// and kind.
    pub(super) fn is_granted(&self, from: [&str; 3], to: (&str, &str, &ObjectKey)) -> bool {
        let (group, kind, key) = to;
        let is_from = |granted: &GrantFrom| [&granted.group, &granted.kind, &granted.namespace] == from;
        let is_to = |granted: &GrantTo| {
            granted.group == group
                && granted.kind == kind
                && granted.name.as_ref().is_none_or(|name| *name == key.name)
        };
        self.grants.iter().any(|grant| {
            grant.meta.namespace == key.namespace
                && grant.spec.from.iter().any(is_from)
                && grant.spec.to.iter().any(is_to)
        })
    }
}

pub(super) fn error(kind: &'static str, meta: &ObjectMeta, path: String, message: String) -> TranslateError {
    TranslateError { kind, key: meta.key(), path, message }
}
