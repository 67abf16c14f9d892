//! Marks on routes that make Envoy Gateway translate again.
//!
//! Envoy Gateway sees the spec of a route's pools, but not what else the answers of the hooks depend on: Services, models,
//! the authority, and whether the controller knew the weights of the route's backends. An annotation on the route has a
//! digest of that. Envoy Gateway translates when it changes, because its own prefix makes it a part of the translation.

use inference_api::gateway::HttpRoute;
use inference_api::object::ObjectKey;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::names;
use crate::resolve;
use crate::rules;
use crate::status;

/// Annotation with the digest.
pub const MARK: &str = "gateway.envoyproxy.io/warmpath-attachment";

/// The mark that a route should have; `None` for a route that leads to no pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub route: ObjectKey,
    pub digest: Option<String>,
}

/// The marks of all routes.
#[must_use]
pub fn marks(facts: &Facts) -> Vec<Mark> {
    facts.routes.iter().map(|route| Mark { route: route.meta.key(), digest: digest(route, facts) }).collect()
}

impl Mark {
    /// The change of the route, whose newest version is given; `None` if it has the mark.
    #[must_use]
    pub fn change(&self, newest: &Value) -> Option<Value> {
        let current = newest["metadata"]["annotations"][MARK].as_str();
        (current != self.digest.as_deref())
            .then(|| json!({ "metadata": { "annotations": { MARK: self.digest } } }))
    }
}

fn digest(route: &HttpRoute, facts: &Facts) -> Option<String> {
    if !status::is_served(route, facts) {
        return None;
    }
    let pools = facts.pools.iter().filter(|pool| status::leads_to(route, pool, facts));
    let mut attached: Vec<Value> = pools
        .filter_map(|pool| resolve::pool(pool, facts))
        .map(|attached| json!([attached.key, attached.responses, attached.picker]))
        .collect();
    if attached.is_empty() {
        return None;
    }
    let weights = rules::divided(route).map(|(backend, weight)| json!([backend.kind, backend.name, weight]));
    attached.extend(weights);
    Some(names::digest(&json!(attached).to_string()))
}
