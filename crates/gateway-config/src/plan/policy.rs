//! Envoy Gateway's policies: what the most specific one that targets a route or a listener says of it.

use inference_api::gateway::{HttpRoute, HttpRouteRule};
use inference_api::keys;
use inference_api::object::{ObjectKey, ObjectMeta};
use inference_api::remark::Remark;
use inference_api::traffic::{
    BackendTrafficPolicySpec, ClientTrafficPolicySpec, LoadBalancerKind, PolicyTarget, TargetNamespaces,
    TargetNamespacesFrom, Targets,
};

use crate::plan::index::Index;
use crate::plan::traffic::{ClientTraffic, Traffic};

/// Kind of the policies for traffic to backends.
const BACKEND: &str = "BackendTrafficPolicy";
/// Kind of the policies for traffic from clients.
const CLIENT: &str = "ClientTrafficPolicy";

/// The object that a policy targets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Gateway(ObjectKey),
    Listener(ObjectKey, String),
    Route(ObjectKey),
    /// A rule of a route, by its name.
    Rule(ObjectKey, String),
}

/// A policy of either kind.
struct Policy<'a, S> {
    meta: &'a ObjectMeta,
    targets: Targets<'a>,
    spec: &'a S,
}

#[derive(Debug)]
pub(super) struct Policies<'a> {
    backends: Vec<(Scope, &'a BackendTrafficPolicySpec)>,
    clients: Vec<(Scope, &'a ClientTrafficPolicySpec)>,
}

impl<'a> Policies<'a> {
    /// Finds what each policy targets. A target that is not there, or that an older policy has, gets a remark, as Envoy
    /// Gateway reports it in the policy's status.
    pub(super) fn new(index: &Index<'a>, remarks: &mut Vec<Remark>) -> Self {
        let policies: Vec<Policy<'a, BackendTrafficPolicySpec>> = index
            .policies
            .iter()
            .map(|policy| Policy { meta: &policy.meta, targets: policy.spec.targets(), spec: &policy.spec })
            .collect();
        remarks.extend(policies.iter().filter_map(balancer_remark));
        let backends = attach(BACKEND, policies, index, remarks);
        let policies = index
            .client_policies
            .iter()
            .map(|policy| Policy { meta: &policy.meta, targets: policy.spec.targets(), spec: &policy.spec })
            .collect();
        let clients = attach(CLIENT, policies, index, remarks);
        Self { backends, clients }
    }

    /// Settings for clients of the listener `section`: a policy on it replaces one on its Gateway.
    pub(super) fn client(&self, gateway: &ObjectKey, section: &str) -> ClientTraffic {
        let scopes = [Scope::Listener(gateway.clone(), section.to_owned()), Scope::Gateway(gateway.clone())];
        first(&self.clients, &scopes).map(ClientTraffic::of).unwrap_or_default()
    }

    /// Settings for a rule of `route` on the listener `section`. A policy on the rule replaces one on the route, which
    /// replaces one on the listener, which replaces one on the Gateway, each as a whole, unless it asks to be merged.
    pub(super) fn traffic(
        &self,
        (route, rule): (&HttpRoute, &HttpRouteRule),
        (gateway, section): (&ObjectKey, &str),
    ) -> Traffic {
        let own = [
            Scope::Rule(route.meta.key(), rule.name.clone().unwrap_or_default()),
            Scope::Route(route.meta.key()),
        ];
        let parents = [Scope::Listener(gateway.clone(), section.to_owned()), Scope::Gateway(gateway.clone())];
        let parent = || first(&self.backends, &parents).map(Traffic::of).unwrap_or_default();
        match first(&self.backends, &own) {
            None => parent(),
            Some(spec) if spec.merge_type.is_some() => Traffic::of(spec).over(parent()),
            Some(spec) => Traffic::of(spec),
        }
    }
}

/// The policy of the first of `scopes` that has one.
fn first<'a, S>(attached: &[(Scope, &'a S)], scopes: &[Scope]) -> Option<&'a S> {
    let find = |scope: &Scope| attached.iter().find(|(known, _)| known == scope);
    scopes.iter().find_map(find).map(|(_, spec)| *spec)
}

/// The policies by target. Of several with one target the oldest wins.
fn attach<'a, S>(
    kind: &'static str,
    mut policies: Vec<Policy<'a, S>>,
    index: &Index<'_>,
    remarks: &mut Vec<Remark>,
) -> Vec<(Scope, &'a S)> {
    policies.sort_by_key(|policy| {
        let created = policy.meta.creation_timestamp.as_deref();
        (created.is_none(), created, policy.meta.key())
    });
    let mut attached: Vec<(Scope, &S)> = Vec::new();
    let mut owners: Vec<ObjectKey> = Vec::new();
    for Policy { meta, targets, spec } in policies {
        let mut remark = |field: String, effect: String| {
            remarks.push(Remark::new(kind, meta.key(), field, effect));
        };
        if targets.refs.is_empty() && targets.selectors.is_empty() {
            remark(targets.field.to_owned(), "a policy without a target has no effect, as here".to_owned());
        }
        for (field, scope) in scopes((kind, meta), targets, index) {
            let taken = |scope: &Scope| attached.iter().position(|(known, _)| known == scope);
            match scope {
                Err(effect) => remark(field, effect),
                Ok(scope) => match taken(&scope).map(|idx| &owners[idx]) {
                    Some(owner) if *owner == meta.key() => {}
                    Some(owner) => {
                        remark(field, format!("{owner}, which targets it too, wins, as here"));
                    }
                    None => {
                        attached.push((scope, spec));
                        owners.push(meta.key());
                    }
                },
            }
        }
    }
    attached
}

/// The objects that a policy targets, each with the field that says so; or what comes of the field on a cluster, if it
/// names none.
fn scopes(
    (policy_kind, meta): (&str, &ObjectMeta),
    targets: Targets<'_>,
    index: &Index<'_>,
) -> Vec<(String, Result<Scope, String>)> {
    let Targets { field, refs, selectors } = targets;
    let mut found = Vec::new();
    for (idx, selector) in selectors.iter().enumerate() {
        let path = format!("spec.targetSelectors[{idx}]");
        let reaches = |target: &ObjectMeta| {
            let TargetNamespaces { from, selector: namespaces } = &selector.namespaces;
            let is_own = target.namespace == meta.namespace;
            let is_meant = match from {
                TargetNamespacesFrom::Same => is_own,
                TargetNamespacesFrom::All => true,
                TargetNamespacesFrom::Selector => index.is_selected(&target.namespace, namespaces.as_ref()),
            };
            let policy = [keys::ENVOY_GATEWAY_GROUP, policy_kind, meta.namespace.as_str()];
            let is_granted = || index.is_granted(policy, (&selector.group, &selector.kind, &target.key()));
            is_meant && (is_own || is_granted())
        };
        let selected = |target: &&ObjectMeta| selector.matches(&target.labels) && reaches(target);
        let scopes: Vec<Scope> = match (selector.group.as_str(), selector.kind.as_str()) {
            (keys::GATEWAY_GROUP, "Gateway") => {
                let gateways = index.gateways.iter().map(|gateway| &gateway.meta);
                gateways.filter(selected).map(|meta| Scope::Gateway(meta.key())).collect()
            }
            (keys::GATEWAY_GROUP, "HTTPRoute") if policy_kind == BACKEND => {
                let routes = index.routes.iter().map(|route| &route.meta);
                routes.filter(selected).map(|meta| Scope::Route(meta.key())).collect()
            }
            (_, _) => Vec::new(),
        };
        if scopes.is_empty() {
            let effect = format!("it waits for a {} that it selects, or that lets it", selector.kind);
            found.push((path, Err(effect)));
        } else {
            found.extend(scopes.into_iter().map(|scope| (path.clone(), Ok(scope))));
        }
    }
    for (idx, target) in refs.iter().enumerate() {
        let path = if field.ends_with("Refs") { format!("{field}[{idx}]") } else { field.to_owned() };
        found.push(match scope(target, (policy_kind, &meta.namespace), index) {
            Ok(scope) => (format!("{path}.name"), Ok(scope)),
            Err((field, effect)) => (format!("{path}.{field}"), Err(effect)),
        });
    }
    found
}

/// The object that a reference of a policy names, or the field that keeps it from that, with what comes of it on a
/// cluster.
fn scope(
    target: &PolicyTarget,
    (policy_kind, namespace): (&str, &str),
    index: &Index<'_>,
) -> Result<Scope, (&'static str, String)> {
    let PolicyTarget { group, kind, name, section_name } = target;
    let key = ObjectKey::new(namespace, name);
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
        (keys::GATEWAY_GROUP, "HTTPRoute", section) if policy_kind == BACKEND => {
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

/// A remark on a load balancer that needs what only a cluster has.
fn balancer_remark(policy: &Policy<'_, BackendTrafficPolicySpec>) -> Option<Remark> {
    let kind = policy.spec.load_balancer.as_ref()?.kind;
    let what = match kind {
        LoadBalancerKind::BackendUtilization => "Envoy balances by the utilization that endpoints report",
        LoadBalancerKind::DynamicModule => "Envoy balances by a module that it loads",
        LoadBalancerKind::ConsistentHash
        | LoadBalancerKind::LeastRequest
        | LoadBalancerKind::Random
        | LoadBalancerKind::RoundRobin => return None,
    };
    let effect = format!("{what}, and here by least request");
    Some(Remark::new(BACKEND, policy.meta.key(), "spec.loadBalancer.type", effect))
}
