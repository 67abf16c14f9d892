//! The rules of HTTPRoutes, as Envoy Gateway names them in its messages.
//!
//! Envoy Gateway shows a hook all pools of a rule, but neither their weights nor the backends beside them.

use gateway_config::xds::{Division, Portion};
use inference_api::gateway::{BackendRef, HttpRoute, HttpRouteRule};
use inference_api::object::ObjectKey;
use inference_api::pool::InferencePool;

use crate::facts::Facts;
use crate::resolve;

/// The backends of the rule to which the route or cluster `name` of Envoy Gateway's belongs, with those of `pools` that
/// it names; `None` if the rule is not known.
#[must_use]
pub fn division(name: &str, pools: &[InferencePool], facts: &Facts) -> Option<Division> {
    let (cluster, key, rule_idx) = parse(name)?;
    let route = facts.routes.iter().find(|route| route.meta.key() == key)?;
    let rule = route.spec.rules.get(rule_idx)?;
    let mut division = Division { rule: cluster.to_owned(), pools: Vec::new(), others: 0 };
    for (backend_idx, backend) in rule.backend_refs.iter().enumerate() {
        let weight = weight(backend);
        let named = pools.iter().find(|pool| names(backend, pool, &key.namespace));
        match named {
            _ if weight == 0 => {}
            // Envoy Gateway answers for a pool that does not exist.
            None if backend.kind == "InferencePool" => {}
            None => division.others = division.others.saturating_add(weight),
            Some(pool) => {
                let cluster = format!("{cluster}/backend/{backend_idx}");
                division.pools.push(Portion { cluster, weight, pool: resolve::pool(pool, facts) });
            }
        }
    }
    (!division.pools.is_empty()).then_some(division)
}

/// The backends among which rules of `route` divide their requests, with their weights.
pub fn divided(route: &HttpRoute) -> impl Iterator<Item = (&BackendRef, u32)> {
    let divides = |rule: &&HttpRouteRule| rule.backend_refs.len() > 1;
    let rules = route.spec.rules.iter().filter(divides);
    rules.flat_map(|rule| &rule.backend_refs).map(|backend| (backend, weight(backend)))
}

/// True if `backend`, in a route of `namespace`, is `pool`.
fn names(backend: &BackendRef, pool: &InferencePool, namespace: &str) -> bool {
    backend.kind == "InferencePool"
        && backend.group == pool.version.group()
        && backend.key(namespace) == pool.key()
}

/// The API's default is 1.
fn weight(backend: &BackendRef) -> u32 {
    backend.weight.unwrap_or(1)
}

/// The name of a rule's cluster, the route's key and the rule's position in it. Routes have more after that, as have
/// clusters of single backends: `httproute/NAMESPACE/NAME/rule/0/match/0/HOST`.
fn parse(name: &str) -> Option<(&str, ObjectKey, usize)> {
    let mut parts = name.splitn(6, '/');
    let ("httproute", namespace, route, "rule", idx) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?)
    else {
        return None;
    };
    let rest = parts.next().map_or(0, |rest| rest.len() + 1);
    let cluster = name.get(..name.len() - rest)?;
    Some((cluster, ObjectKey::new(namespace, route), idx.parse().ok()?))
}
