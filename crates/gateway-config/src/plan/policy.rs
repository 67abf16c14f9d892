//! Envoy Gateway's policies: what the most specific one that targets a route or a listener says of it.

use std::time::Duration;

use inference_api::gateway::{
    BackendTrafficPolicy, ClientTrafficPolicy, ClientTrafficPolicySpec, HttpRoute, PolicyTarget,
};
use inference_api::keys;
use inference_api::object::ObjectKey;

use crate::error::TranslateError;
use crate::plan::Listener;
use crate::plan::index::{self, Index};

/// The object that a policy targets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Gateway(ObjectKey),
    Listener(ObjectKey, String),
    Route(ObjectKey),
}

#[derive(Debug)]
pub(super) struct Policies<'a> {
    scoped: Vec<(Scope, &'a BackendTrafficPolicy)>,
    clients: &'a [&'a ClientTrafficPolicy],
}

impl<'a> Policies<'a> {
    pub(super) fn new(index: &'a Index<'a>) -> Result<Self, TranslateError> {
        let mut scoped: Vec<(Scope, &BackendTrafficPolicy)> = Vec::new();
        for policy in &index.policies {
            let single = policy.spec.target_ref.is_some();
            for (idx, target) in policy.spec.targets().enumerate() {
                let path = match (single, idx) {
                    (true, 0) => "spec.targetRef".to_owned(),
                    (true, _) => format!("spec.targetRefs[{}]", idx - 1),
                    (false, _) => format!("spec.targetRefs[{idx}]"),
                };
                let error = |field: &str, message: String| {
                    index::error("BackendTrafficPolicy", &policy.meta, format!("{path}.{field}"), message)
                };
                let scope = scope(target, policy, index).map_err(|(field, message)| error(field, message))?;
                if let Some((_, other)) = scoped.iter().find(|(known, _)| *known == scope) {
                    return Err(error("name", format!("{} targets it too", other.meta.key())));
                }
                scoped.push((scope, policy));
            }
            if policy.spec.targets().next().is_none() {
                let message = "a policy without a target has no effect".to_owned();
                let path = "spec.targetRefs".to_owned();
                return Err(index::error("BackendTrafficPolicy", &policy.meta, path, message));
            }
        }
        Ok(Self { scoped, clients: &index.client_policies })
    }

    /// Bytes of a request that Envoy holds at most on a listener, by the policy on it or else on its Gateway.
    pub(super) fn buffer_limit(&self, gateway: &ObjectKey, listener: &str) -> Option<u32> {
        let limit = |section: Option<&str>| {
            let targets_it = |target: &PolicyTarget| {
                target.kind == "Gateway"
                    && target.name == gateway.name
                    && target.section_name.as_deref() == section
            };
            let policy = self.clients.iter().find(|policy| {
                let ClientTrafficPolicySpec { target_ref, target_refs, .. } = &policy.spec;
                policy.meta.namespace == gateway.namespace
                    && target_ref.iter().chain(target_refs).any(targets_it)
            });
            policy.and_then(|policy| policy.spec.connection.as_ref()?.buffer_limit)
        };
        limit(Some(listener)).or_else(|| limit(None))
    }

    /// The request timeout of `route` on `listener`. A policy on the route replaces one on the listener, which replaces
    /// one on the Gateway, each as a whole.
    pub(super) fn timeout(&self, route: &HttpRoute, listener: &Listener) -> Option<Duration> {
        let gateway = &listener.gateway;
        let scopes = [
            Scope::Route(route.meta.key()),
            Scope::Listener(gateway.clone(), listener.name.clone()),
            Scope::Gateway(gateway.clone()),
        ];
        scopes
            .iter()
            .find_map(|scope| self.scoped.iter().find(|(known, _)| known == scope))
            .and_then(|(_, policy)| policy.spec.request_timeout())
    }
}

fn scope(
    target: &PolicyTarget,
    policy: &BackendTrafficPolicy,
    index: &Index<'_>,
) -> Result<Scope, (&'static str, String)> {
    let PolicyTarget { group, kind, name, section_name } = target;
    if group != keys::GATEWAY_GROUP {
        return Err(("group", format!("{group:?} is not supported, only {}", keys::GATEWAY_GROUP)));
    }
    let key = ObjectKey::new(&policy.meta.namespace, name);
    match (kind.as_str(), section_name) {
        ("Gateway", section) => {
            let gateway = index
                .gateways
                .iter()
                .find(|gateway| gateway.meta.key() == key)
                .ok_or_else(|| ("name", format!("there is no Gateway {key}")))?;
            let Some(section) = section else { return Ok(Scope::Gateway(key)) };
            if !gateway.spec.listeners.iter().any(|listener| listener.name == *section) {
                return Err(("sectionName", format!("Gateway {key} has no listener {section}")));
            }
            Ok(Scope::Listener(key, section.clone()))
        }
        ("HTTPRoute", None) => {
            if !index.routes.iter().any(|route| route.meta.key() == key) {
                return Err(("name", format!("there is no HTTPRoute {key}")));
            }
            Ok(Scope::Route(key))
        }
        ("HTTPRoute", Some(section)) => {
            Err(("sectionName", format!("{section}: a policy on one rule is not supported")))
        }
        (kind, _) => Err(("kind", format!("{kind} is not supported, only Gateway and HTTPRoute"))),
    }
}
