//! The status of pools and models, with upstream's reasons.
//!
//! A pool's has an entry for each Gateway from which an HTTPRoute leads to it.

use std::collections::BTreeSet;

use inference_api::condition::Condition;
use inference_api::gateway::{HttpRoute, ParentRef};
use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::{InferenceModel, InferencePool, PoolVersion};
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::resolve::{self, PickerService};

/// The status that `pool` should have, if `current` is another one.
///
/// `current` is the `status` of the object, or null. `now` is the time in RFC 3339; a condition gets it if its status
/// changes. Entries of other controllers stay.
#[must_use]
pub fn changed_pool(pool: &InferencePool, facts: &Facts, current: &Value, now: &str) -> Option<Value> {
    let field = parents_field(pool.version);
    let written = current[field].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut parents: Vec<Value> = written.iter().filter(|parent| is_foreign(parent)).cloned().collect();
    for gateway in gateways(pool, facts) {
        let mut parent = json!({
            "parentRef": {
                "group": keys::GATEWAY_GROUP,
                "kind": "Gateway",
                "namespace": gateway.namespace,
                "name": gateway.name,
            },
        });
        if pool.version == PoolVersion::V1 {
            parent["controllerName"] = json!(keys::ENVOY_GATEWAY_CONTROLLER);
        }
        let mut ours = written.iter().filter(|known| !is_foreign(known));
        let known = ours.find(|known| known["parentRef"] == parent["parentRef"]);
        parent["conditions"] = [accepted(pool), resolved_refs(pool, facts)]
            .into_iter()
            .map(|condition| dated(condition, pool.meta.generation, known, now))
            .collect();
        parents.push(parent);
    }
    (written != parents).then(|| json!({ field: parents }))
}

/// The status that `model` should have, if `current` is another one. `accepted` is what a pool index says of it.
#[must_use]
pub fn changed_model(
    model: &InferenceModel,
    accepted: &Condition,
    current: &Value,
    now: &str,
) -> Option<Value> {
    let condition = dated(json!(accepted), model.meta.generation, Some(current), now);
    let status = json!({ "conditions": [condition] });
    (*current != status).then_some(status)
}

/// Field of the status that lists the parents.
fn parents_field(version: PoolVersion) -> &'static str {
    match version {
        PoolVersion::V1Alpha2 => "parent",
        PoolVersion::V1 => "parents",
    }
}

/// True for an entry that another controller has written. Entries without a controller's name are from before there was
/// the field, or are the API's default.
fn is_foreign(parent: &Value) -> bool {
    parent["controllerName"].as_str().is_some_and(|name| name != keys::ENVOY_GATEWAY_CONTROLLER)
}

/// Gateways of Envoy Gateway's from which a route leads to `pool`.
fn gateways(pool: &InferencePool, facts: &Facts) -> BTreeSet<ObjectKey> {
    let leads = facts.routes.iter().filter(|route| leads_to(route, pool, facts));
    let parents = leads.flat_map(|route| {
        let namespace = &route.meta.namespace;
        route.spec.parent_refs.iter().filter_map(move |parent| gateway(parent, namespace))
    });
    parents.filter(|key| is_ours(key, facts)).collect()
}

/// True if `route` has a Gateway of Envoy Gateway's as a parent.
#[must_use]
pub fn is_served(route: &HttpRoute, facts: &Facts) -> bool {
    let namespace = &route.meta.namespace;
    let mut gateways = route.spec.parent_refs.iter().filter_map(|parent| gateway(parent, namespace));
    gateways.any(|key| is_ours(&key, facts))
}

/// True if a rule of `route` leads to `pool`, and may.
#[must_use]
pub fn leads_to(route: &HttpRoute, pool: &InferencePool, facts: &Facts) -> bool {
    let (group, key) = (pool.version.group(), pool.key());
    let may = facts.allows(&route.meta.namespace, pool);
    may && route.spec.rules.iter().flat_map(|rule| &rule.backend_refs).any(|backend| {
        backend.group == group && backend.kind == "InferencePool" && backend.key(&route.meta.namespace) == key
    })
}

/// The Gateway that a route in `namespace` names as a parent; `None` if the parent is something else.
fn gateway(parent: &ParentRef, namespace: &str) -> Option<ObjectKey> {
    let is_gateway = parent.group.as_deref().is_none_or(|group| group == keys::GATEWAY_GROUP)
        && parent.kind.as_deref().is_none_or(|kind| kind == "Gateway");
    is_gateway.then(|| ObjectKey::new(parent.namespace.as_deref().unwrap_or(namespace), &parent.name))
}

/// True for a Gateway of a class that Envoy Gateway serves.
fn is_ours(key: &ObjectKey, facts: &Facts) -> bool {
    let gateway = facts.gateways.iter().find(|gateway| gateway.meta.key() == *key);
    gateway.is_some_and(|gateway| {
        facts.classes.iter().any(|class| {
            class.meta.name == gateway.spec.gateway_class_name
                && class.spec.controller_name == keys::ENVOY_GATEWAY_CONTROLLER
        })
    })
}

fn accepted(pool: &InferencePool) -> Value {
    let (status, reason, message) = match &pool.picker {
        Some(_) => ("True", "Accepted", "the Gateway routes to the pool"),
        None => ("False", "EndpointPickerRefMissing", "the pool needs an endpointPickerRef"),
    };
    json!({ "type": "Accepted", "status": status, "reason": reason, "message": message })
}

fn resolved_refs(pool: &InferencePool, facts: &Facts) -> Value {
    let (status, reason, message) = match resolve::picker(pool, facts) {
        PickerService::Managed(service) => {
            ("True", "ResolvedRefs", format!("the controller runs the picker {service}"))
        }
        PickerService::Named(service) => ("True", "ResolvedRefs", format!("Service {service} is the picker")),
        PickerService::Unnamed => ("True", "ResolvedRefs", "the pool refers to nothing".to_owned()),
        PickerService::Missing(service) => {
            ("False", "InvalidExtensionRef", format!("there is no Service {service}"))
        }
    };
    json!({ "type": "ResolvedRefs", "status": status, "reason": reason, "message": message })
}

/// The condition with its generation, and with the time of `known`'s if that has the same status.
fn dated(mut condition: Value, generation: Option<u64>, known: Option<&Value>, now: &str) -> Value {
    let conditions = known.and_then(|known| known["conditions"].as_array());
    let before = conditions.into_iter().flatten().find(|before| before["type"] == condition["type"]);
    let since = before
        .filter(|before| before["status"] == condition["status"])
        .and_then(|before| before["lastTransitionTime"].as_str());
    condition["lastTransitionTime"] = json!(since.unwrap_or(now));
    if let Some(generation) = generation {
        condition["observedGeneration"] = json!(generation);
    }
    condition
}
