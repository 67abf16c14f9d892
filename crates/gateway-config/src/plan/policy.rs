//! Envoy Gateway's policies: what the most specific one that targets a route or a listener says of it.

use std::time::Duration;

use inference_api::gateway::{
    BackendTrafficPolicy, ClientTrafficPolicy, ClientTrafficPolicySpec, HttpRoute, HttpRouteRule,
    PolicyTarget,
};
use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::remark::Remark;

use crate::plan::Listener;
use crate::plan::index::Index;

/// The object that a policy targets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Gateway(ObjectKey),
    Listener(ObjectKey, String),
    Route(ObjectKey),
    /// A rule of a route, by its name.
    Rule(ObjectKey, String),
}

#[derive(Debug)]
pub(super) struct Policies<'a> {
    scoped: Vec<(Scope, &'a BackendTrafficPolicy)>,
    clients: &'a [&'a ClientTrafficPolicy],
}

impl<'a> Policies<'a> {
    /// Finds what each policy targets. A target that is not there, or that an older policy has, gets a remark, as Envoy
    /// Gateway reports it in the policy's status.
    pub(super) fn new(index: &'a Index<'a>, remarks: &mut Vec<Remark>) -> Self {
        let mut scoped: Vec<(Scope, &BackendTrafficPolicy)> = Vec::new();
        let mut policies = index.policies.clone();
        policies.sort_by_key(|policy| {
            let created = policy.meta.creation_timestamp.as_deref();
            (created.is_none(), created, policy.meta.key())
        });
        for policy in policies {
            let single = policy.spec.target_ref.is_some();
            let mut remark = |field: String, effect: String| {
                remarks.push(Remark::new("BackendTrafficPolicy", policy.meta.key(), field, effect));
            };
            if policy.spec.targets().next().is_none() {
                remark(
                    "spec.targetRefs".to_owned(),
                    "a policy without a target has no effect, as here".to_owned(),
                );
            }
            for (idx, target) in policy.spec.targets().enumerate() {
                let path = match (single, idx) {
                    (true, 0) => "spec.targetRef".to_owned(),
                    (true, _) => format!("spec.targetRefs[{}]", idx - 1),
                    (false, _) => format!("spec.targetRefs[{idx}]"),
                };
                match scope(target, policy, index) {
                    Err((field, effect)) => remark(format!("{path}.{field}"), effect),
                    Ok(scope) => match scoped.iter().find(|(known, _)| *known == scope) {
                        Some((_, other)) => {
                            let effect = format!("{}, which targets it too, wins, as here", other.meta.key());
                            remark(format!("{path}.name"), effect);
                        }
                        None => scoped.push((scope, policy)),
                    },
                }
            }
        }
        Self { scoped, clients: &index.client_policies }
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

    /// The request timeout of a rule of `route` on `listener`. A policy on the rule replaces one on the route, which
    /// replaces one on the listener, which replaces one on the Gateway, each as a whole.
    pub(super) fn timeout(
        &self,
        route: &HttpRoute,
        rule: &HttpRouteRule,
        listener: &Listener,
    ) -> Option<Duration> {
        let gateway = &listener.gateway;
        let scopes = [
            Scope::Rule(route.meta.key(), rule.name.clone().unwrap_or_default()),
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

/// The object that a policy targets, or the field that keeps it from that, with what comes of it on a cluster.
fn scope(
    target: &PolicyTarget,
    policy: &BackendTrafficPolicy,
    index: &Index<'_>,
) -> Result<Scope, (&'static str, String)> {
    let PolicyTarget { group, kind, name, section_name } = target;
    let key = ObjectKey::new(&policy.meta.namespace, name);
    let missing = || ("name", format!("it waits for {kind} {key}, which is not among the files"));
    match (group.as_str(), kind.as_str(), section_name) {
        (keys::GATEWAY_GROUP, "Gateway", section) => {
            let gateway = index.gateways.iter().find(|gateway| gateway.meta.key() == key);
            let gateway = gateway.ok_or_else(missing)?;
            let Some(section) = section else { return Ok(Scope::Gateway(key)) };
            if !gateway.spec.listeners.iter().any(|listener| listener.name == *section) {
                return Err(("sectionName", format!("it waits for listener {section} of Gateway {key}")));
            }
            Ok(Scope::Listener(key, section.clone()))
        }
        (keys::GATEWAY_GROUP, "HTTPRoute", section) => {
            let route = index.routes.iter().find(|route| route.meta.key() == key).ok_or_else(missing)?;
            let Some(section) = section else { return Ok(Scope::Route(key)) };
            if !route.spec.rules.iter().any(|rule| rule.name.as_ref() == Some(section)) {
                return Err(("sectionName", format!("it waits for rule {section} of HTTPRoute {key}")));
            }
            Ok(Scope::Rule(key, section.clone()))
        }
        (group, kind, _) => Err(("kind", format!("it applies to {kind} {key} of group {group:?}"))),
    }
}
