//! The configuration that the objects ask for, checked: listeners with their routes in order of precedence, and
//! clusters.

mod backend;
mod policy;
mod index;

use std::time::Duration;

use inference_api::gateway::{
    BackendRef, Gateway, HttpRoute, HttpRouteRule, ParentRef, PathMatch, PathMatchKind,
};
use inference_api::keys;
use inference_api::kinds::Object;
use inference_api::object::ObjectKey;
use inference_api::pool::FailureMode;
use inference_api::remark::Remark;

pub use crate::plan::backend::{Backend, Names, PodPort};

use crate::error::TranslateError;
use crate::plan::index::Index;
use crate::plan::policy::Policies;

/// Host of a route that names none.
pub const ANY_HOST: &str = "*";

/// Everything that Envoy must do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Listeners in the order of the manifests.
    pub listeners: Vec<Listener>,
    /// One cluster per rule of an HTTPRoute, in the order of the manifests.
    pub clusters: Vec<Cluster>,
    /// What the objects ask for in vain, in their order.
    pub remarks: Vec<Remark>,
}

/// One port of one Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub gateway: ObjectKey,
    pub name: String,
    /// The manifest's port.
    pub port: u16,
    /// Routes in order of precedence: Envoy chooses the host first, then the first route that matches.
    pub routes: Vec<Route>,
}

impl Listener {
    /// Envoy Gateway's name of the listener and its route configuration: `<namespace>/<gateway>/<listener>`.
    #[must_use]
    pub fn xds_name(&self) -> String {
        format!("{}/{}", self.gateway, self.name)
    }
}

/// One match of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub name: String,
    pub host: String,
    pub path: PathMatch,
    /// Index into [`Plan::clusters`].
    pub cluster_idx: usize,
    /// Request timeout. None: Envoy's default of 15 s, as under Envoy Gateway. Zero: no timeout.
    pub timeout: Option<Duration>,
}

/// The backend of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Envoy Gateway's name: `httproute/<namespace>/<route>/rule/<index>`.
    pub name: String,
    pub backend: Backend,
}

/// A pool that at least one rule sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedPool<'a> {
    pub key: &'a ObjectKey,
    pub failure_mode: FailureMode,
    pub names: Names,
}

impl Plan {
    /// Plans what the Gateway API objects among `objects` ask for; other kinds are looked up or ignored.
    ///
    /// # Errors
    /// The first field that refers to a missing object or asks for something that is not translated.
    pub fn new(objects: &[Object]) -> Result<Self, TranslateError> {
        let index = Index::new(objects)?;
        let policies = Policies::new(&index)?;
        let mut plan = Self::default();
        plan.add_listeners(&index)?;
        for route in &index.routes {
            plan.add_route(route, &index, &policies)?;
        }
        for listener in &mut plan.listeners {
            listener.routes.sort_by_key(precedence);
        }
        Ok(plan)
    }

    /// Pools that at least one rule sends to, each once, in the order of the manifests.
    #[must_use]
    pub fn pools(&self) -> Vec<PlannedPool<'_>> {
        let mut pools: Vec<PlannedPool<'_>> = Vec::new();
        for cluster in &self.clusters {
            if let Backend::Pool { key, failure_mode, names, .. } = &cluster.backend
                && !pools.iter().any(|pool| pool.key == key)
            {
                pools.push(PlannedPool { key, failure_mode: *failure_mode, names: *names });
            }
        }
        pools
    }

    fn add_listeners(&mut self, index: &Index<'_>) -> Result<(), TranslateError> {
        for gateway in &index.gateways {
            self.remarks.extend(class_remark(gateway, index));
            for (idx, listener) in gateway.spec.listeners.iter().enumerate() {
                let path = format!("spec.listeners[{idx}]");
                let error = |field: &str, message: String| {
                    index::error("Gateway", &gateway.meta, format!("{path}.{field}"), message)
                };
                let earlier = &gateway.spec.listeners[..idx];
                if earlier.iter().any(|other| other.name == listener.name) {
                    return Err(error("name", format!("{} is used twice", listener.name)));
                }
                if listener.protocol != "HTTP" {
                    let path = format!("{path}.protocol");
                    let what =
                        format!("the gateway listens for {}, which the lab does not", listener.protocol);
                    self.remarks.push(Remark::new("Gateway", gateway.meta.key(), path, what));
                    continue;
                }
                if earlier.iter().any(|other| other.port == listener.port) {
                    let port = listener.port;
                    return Err(error("port", format!("two listeners on port {port} are not supported")));
                }
                self.listeners.push(Listener {
                    gateway: gateway.meta.key(),
                    name: listener.name.clone(),
                    port: listener.port,
                    routes: Vec::new(),
                });
            }
        }
        Ok(())
    }

    /// Indices of the listeners that the route attaches to, in ascending order, each once. A parent that takes no route
    /// from it gets a remark.
    fn parents(&mut self, route: &HttpRoute, index: &Index<'_>) -> Vec<usize> {
        let mut found = Vec::new();
        for (idx, parent) in route.spec.parent_refs.iter().enumerate() {
            match listeners_of(parent, route, (index, &self.listeners)) {
                Ok(listeners) => found.extend(listeners),
                Err((field, why)) => {
                    let path = format!("spec.parentRefs[{idx}].{field}");
                    self.remarks.push(Remark::new("HTTPRoute", route.meta.key(), path, why));
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn add_route(
        &mut self,
        route: &HttpRoute,
        index: &Index<'_>,
        policies: &Policies<'_>,
    ) -> Result<(), TranslateError> {
        let parents = self.parents(route, index);
        for (rule_idx, rule) in route.spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{rule_idx}]");
            let name = format!("httproute/{}/rule/{rule_idx}", route.meta.key());
            let backend = backend::resolve(single_backend(route, rule, &path)?, route, &path, index)?;
            self.clusters.push(Cluster { name: name.clone(), backend });
            for &listener_idx in &parents {
                let listener = &mut self.listeners[listener_idx];
                let timeout = rule
                    .timeouts
                    .as_ref()
                    .and_then(|timeouts| timeouts.request)
                    .or_else(|| policies.timeout(route, listener));
                let cluster_idx = self.clusters.len() - 1;
                for (match_idx, path) in path_matches(rule).enumerate() {
                    for host in hosts(route) {
                        let suffix = host.replace('.', "_");
                        listener.routes.push(Route {
                            name: format!("{name}/match/{match_idx}/{suffix}"),
                            host: host.to_owned(),
                            path: path.clone(),
                            cluster_idx,
                            timeout,
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// The Gateways of every class are served, as Envoy Gateway serves its own.
fn class_remark(gateway: &Gateway, index: &Index<'_>) -> Option<Remark> {
    let name = &gateway.spec.gateway_class_name;
    let class = index.classes.iter().find(|class| class.meta.name == *name);
    let controller = match class {
        Some(class) if class.spec.controller_name == keys::ENVOY_GATEWAY_CONTROLLER => return None,
        Some(class) => format!("{} serves it, and Envoy does here", class.spec.controller_name),
        None => format!("the controller of GatewayClass {name} serves it, and Envoy does here"),
    };
    Some(Remark::new("Gateway", gateway.meta.key(), "spec.gatewayClassName", controller))
}

/// Indices of the listeners that `parent` names, or the field that names none, and why.
fn listeners_of(
    parent: &ParentRef,
    route: &HttpRoute,
    (index, listeners): (&Index<'_>, &[Listener]),
) -> Result<Vec<usize>, (&'static str, String)> {
    let ParentRef { group, kind, namespace, name, section_name, port } = parent;
    let other = |what: &str| format!("the controller of {what} follows it");
    if let Some(group) = group.as_deref().filter(|group| *group != keys::GATEWAY_GROUP) {
        return Err(("group", other(group)));
    }
    if let Some(kind) = kind.as_deref().filter(|kind| *kind != "Gateway") {
        return Err(("kind", other(kind)));
    }
    let key = ObjectKey::new(namespace.as_ref().unwrap_or(&route.meta.namespace), name);
    if !index.gateways.iter().any(|gateway| gateway.meta.key() == key) {
        return Err(("name", format!("Gateway {key}, which is not among the files, takes the route")));
    }
    let chosen = |listener: &Listener| {
        listener.gateway == key
            && section_name.as_ref().is_none_or(|section| *section == listener.name)
            && port.is_none_or(|port| port == listener.port)
    };
    let chosen: Vec<usize> =
        listeners.iter().enumerate().filter(|(_, listener)| chosen(listener)).map(|(idx, _)| idx).collect();
    match chosen.is_empty() {
        true => {
            Err(("sectionName", format!("Gateway {key} has no such listener for HTTP, and takes nothing")))
        }
        false => Ok(chosen),
    }
}

fn single_backend<'a>(
    route: &HttpRoute,
    rule: &'a HttpRouteRule,
    path: &str,
) -> Result<&'a BackendRef, TranslateError> {
    match rule.backend_refs.as_slice() {
        [backend] => Ok(backend),
        several => {
            let message = format!("exactly one backend is supported, not {}", several.len());
            Err(index::error("HTTPRoute", &route.meta, format!("{path}.backendRefs"), message))
        }
    }
}

fn path_matches(rule: &HttpRouteRule) -> impl Iterator<Item = PathMatch> {
    let everything = || PathMatch { kind: PathMatchKind::PathPrefix, value: "/".to_owned() };
    let n_matches = rule.matches.len().max(1);
    (0..n_matches).map(move |idx| {
        rule.matches.get(idx).and_then(|matcher| matcher.path.clone()).unwrap_or_else(everything)
    })
}

fn hosts(route: &HttpRoute) -> Vec<&str> {
    if route.spec.hostnames.is_empty() {
        return vec![ANY_HOST];
    }
    route.spec.hostnames.iter().map(String::as_str).collect()
}

/// Sort key of a route: exact before regular expression before prefix, then the longer value first (Gateway API,
/// HTTPRouteRule; Envoy Gateway's order for regular expressions).
fn precedence(route: &Route) -> (u8, std::cmp::Reverse<usize>) {
    let kind = match route.path.kind {
        PathMatchKind::Exact => 0,
        PathMatchKind::RegularExpression => 1,
        PathMatchKind::PathPrefix => 2,
    };
    (kind, std::cmp::Reverse(route.path.value.len()))
}
