//! Listeners of Gateways, and the routes that may attach to them.

use std::collections::BTreeMap;

use inference_api::gateway::{self, FromNamespaces, Gateway, HttpRoute, ParentRef};
use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::remark::Remark;

use crate::error::TranslateError;
use crate::plan::ANY_HOST;
use crate::plan::index::{self, Index};
use crate::plan::route::Route;
use crate::plan::traffic::ClientTraffic;

/// One port of one Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub gateway: ObjectKey,
    /// Name of the first listener on the port.
    pub name: String,
    /// The manifest's port.
    pub port: u16,
    pub client: ClientTraffic,
    /// Routes in order of precedence: Envoy chooses the host first, then the first route that matches.
    pub routes: Vec<Route>,
    /// The Gateway's listeners on the port.
    sections: Vec<gateway::Listener>,
}

/// Indices of listeners, each with the hosts that a route has there.
pub(super) type Hosts = Vec<(usize, Vec<Host>)>;

/// A host, and the name of the Gateway's listener that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) section: String,
}

impl Listener {
    /// Envoy Gateway's name of the listener and its route configuration: `<namespace>/<gateway>/<listener>`.
    #[must_use]
    pub fn xds_name(&self) -> String {
        format!("{}/{}", self.gateway, self.name)
    }

    /// True if a route matches the model that a body names.
    #[must_use]
    pub fn reads_model(&self) -> bool {
        let mut conditions = self.routes.iter().flat_map(|route| &route.matcher.headers);
        conditions.any(|condition| condition.name.eq_ignore_ascii_case(keys::MODEL_NAME))
    }
}

pub(super) fn listeners(
    index: &Index<'_>,
    remarks: &mut Vec<Remark>,
) -> Result<Vec<Listener>, TranslateError> {
    let mut planned: Vec<Listener> = Vec::new();
    for gateway in &index.gateways {
        remarks.extend(class_remark(gateway, index));
        let key = gateway.meta.key();
        for (idx, listener) in gateway.spec.listeners.iter().enumerate() {
            let path = format!("spec.listeners[{idx}]");
            if gateway.spec.listeners[..idx].iter().any(|other| other.name == listener.name) {
                let message = format!("{} is used twice", listener.name);
                return Err(index::error("Gateway", &gateway.meta, format!("{path}.name"), message));
            }
            let is_same = |other: &&gateway::Listener| {
                (other.port, &other.hostname) == (listener.port, &listener.hostname)
            };
            if let Some(other) = gateway.spec.listeners[..idx].iter().find(is_same) {
                let message =
                    format!("listener {} has port {} for the same hosts", other.name, listener.port);
                return Err(index::error("Gateway", &gateway.meta, format!("{path}.port"), message));
            }
            if listener.protocol != "HTTP" {
                let what = format!("the gateway listens for {}, which the lab does not", listener.protocol);
                remarks.push(Remark::new("Gateway", key.clone(), format!("{path}.protocol"), what));
                continue;
            }
            match planned.iter_mut().find(|known| known.gateway == key && known.port == listener.port) {
                Some(known) => known.sections.push(listener.clone()),
                None => planned.push(Listener {
                    gateway: key.clone(),
                    name: listener.name.clone(),
                    port: listener.port,
                    client: ClientTraffic::default(),
                    routes: Vec::new(),
                    sections: vec![listener.clone()],
                }),
            }
        }
    }
    Ok(planned)
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

/// Indices of the listeners that the route attaches to, in ascending order, each once with the hosts that it has there.
/// A parent that takes no route from it gets a remark.
pub(super) fn parents(
    route: &HttpRoute,
    (index, listeners): (&Index<'_>, &[Listener]),
    remarks: &mut Vec<Remark>,
) -> Hosts {
    let mut found: BTreeMap<usize, Vec<Host>> = BTreeMap::new();
    for (idx, parent) in route.spec.parent_refs.iter().enumerate() {
        match attachments(parent, route, (index, listeners)) {
            Ok(attachments) => {
                for (listener_idx, hosts) in attachments {
                    let known = found.entry(listener_idx).or_default();
                    for host in hosts {
                        if !known.iter().any(|known| known.name == host.name) {
                            known.push(host);
                        }
                    }
                }
            }
            Err((field, why)) => {
                let path = format!("spec.parentRefs[{idx}].{field}");
                remarks.push(Remark::new(route.kind.as_str(), route.meta.key(), path, why));
            }
        }
    }
    found.into_iter().collect()
}

/// Listeners that `parent` names, with the route's hosts there, or the field that names none, and why.
fn attachments(
    parent: &ParentRef,
    route: &HttpRoute,
    (index, listeners): (&Index<'_>, &[Listener]),
) -> Result<Hosts, (&'static str, String)> {
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
    let named: Vec<(usize, &gateway::Listener)> = listeners
        .iter()
        .enumerate()
        .filter(|(_, listener)| listener.gateway == key && port.is_none_or(|port| port == listener.port))
        .flat_map(|(idx, listener)| listener.sections.iter().map(move |section| (idx, section)))
        .filter(|(_, section)| section_name.as_ref().is_none_or(|name| *name == section.name))
        .collect();
    if named.is_empty() {
        let why = format!("Gateway {key} has no such listener for HTTP, and takes nothing");
        return Err(("sectionName", why));
    }
    let allowed: Vec<_> =
        named.into_iter().filter(|(_, section)| allows(section, &key, (route, index))).collect();
    if allowed.is_empty() {
        let namespace = &route.meta.namespace;
        return Err(("namespace", format!("Gateway {key} takes no HTTPRoute of namespace {namespace}")));
    }
    let with_hosts = allowed.into_iter().map(|(idx, section)| (idx, hosts(route, section)));
    let attached: Vec<_> = with_hosts.filter(|(_, hosts)| !hosts.is_empty()).collect();
    match attached.is_empty() {
        true => Err(("name", format!("no listener of Gateway {key} serves a host of the route"))),
        false => Ok(attached),
    }
}

/// True if the listener's `allowedRoutes` admit the route.
fn allows(
    section: &gateway::Listener,
    gateway: &ObjectKey,
    (route, index): (&HttpRoute, &Index<'_>),
) -> bool {
    let gateway::AllowedRoutes { namespaces, kinds } = &section.allowed_routes;
    let is_kind = kinds.is_empty() || kinds.iter().any(|allowed| allowed.kind == "HTTPRoute");
    let own = &route.meta.namespace;
    is_kind
        && match namespaces.from {
            FromNamespaces::All => true,
            FromNamespaces::Same => *own == gateway.namespace,
            FromNamespaces::None => false,
            FromNamespaces::Selector => index.is_selected(own, namespaces.selector.as_ref()),
        }
}

/// Hosts that the listener and the route have in common.
fn hosts(route: &HttpRoute, section: &gateway::Listener) -> Vec<Host> {
    let listener = section.hostname.as_deref().unwrap_or(ANY_HOST);
    let host = |name: &str| Host { name: name.to_owned(), section: section.name.clone() };
    if route.spec.hostnames.is_empty() {
        return vec![host(listener)];
    }
    let common = |name: &String| {
        if is_among(name, listener) {
            Some(host(name))
        } else {
            is_among(listener, name).then(|| host(listener))
        }
    };
    route.spec.hostnames.iter().filter_map(common).collect()
}

/// True if every host of `inner` is one of `outer`; both may begin with a wildcard.
fn is_among(inner: &str, outer: &str) -> bool {
    match outer.strip_prefix('*') {
        Some(suffix) => inner.len() > suffix.len() && inner.ends_with(suffix),
        None => inner == outer,
    }
}

#[cfg(test)]
mod tests {
    use super::is_among;

    #[test]
    fn a_wildcard_is_at_least_one_label() {
        for (inner, outer, expected) in [
            ("a.com", "*", true),
            ("*", "*", true),
            ("a.com", "a.com", true),
            ("b.a.com", "*.a.com", true),
            ("*.a.com", "*.a.com", true),
            ("*.b.a.com", "*.a.com", true),
            ("a.com", "*.a.com", false),
            ("xa.com", "*.a.com", false),
            ("*.a.com", "b.a.com", false),
        ] {
            assert_eq!(is_among(inner, outer), expected, "{inner} {outer}");
        }
    }
}
