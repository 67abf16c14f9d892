//! The encoded parts that attach a pool.
//!
//! Parts depend on their pool alone, and most pools are as they were at the last call. So parts stay in memory with the
//! whole pool as their key: a pool that has changed in anything is another one.

use std::num::NonZeroUsize;
use std::sync::Arc;

use inference_api::pool::AppProtocol;
use lru::LruCache;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::render::cluster::{
    PROTOCOL_OPTIONS, http2, override_host, picker_at, protocol_options, thresholds, tls_to, tls_to_any,
};
use crate::render::filters::{access_log, body_reports, filters};
use crate::render::route::fraction;
use crate::render::{observer_filter, picker_cluster};
use crate::xds::parts::Parts;
use crate::xds::{Picker, Pool, Trust, mark};

/// Most pools whose parts stay in memory, with about 10 KB each.
pub(super) const MAX_POOLS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Time between two look-ups of a name. Pods and pickers come and go.
const REFRESH: &str = "1s";

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const CLUSTER_WEIGHT: &str = "envoy.config.route.v3.WeightedCluster.ClusterWeight";
const HTTP_FILTER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
/// Message of a connection manager.
pub(super) const MANAGER: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTE: &str = "envoy.config.route.v3.Route";

/// Parts of the pools that were asked for last.
#[derive(Debug)]
pub(super) struct Memo {
    pools: Mutex<LruCache<Pool, Arc<PoolParts>>>,
}

/// A pool and its parts.
#[derive(Debug)]
pub(super) struct PoolParts {
    pub(super) pool: Pool,
    /// Part of the cluster of the pool's pods: all but the name in the load assignment.
    pub(super) cluster: Vec<u8>,
    /// Part of that cluster if no policy of the user bounds its requests.
    pub(super) bounds: Vec<u8>,
    /// `None` if the pods speak HTTP/1.1: Envoy Gateway makes these clusters by itself.
    pub(super) http2: Option<Http2>,
    /// Name of the picker's cluster.
    pub(super) picker_name: String,
    /// The picker's cluster.
    pub(super) picker: Vec<u8>,
    /// The filters of a connection manager with their names, in their order.
    pub(super) filters: Vec<(String, Vec<u8>)>,
    /// Name of the picker's access log, and the part of a connection manager with it; `None` if the picker wants none.
    pub(super) access_log: Option<(String, Vec<u8>)>,
    /// `None` if all responses are reported in the same way.
    pub(super) body_reports: Option<BodyReports>,
}

/// Parts for a cluster of pods that speak HTTP/2.
#[derive(Debug)]
pub(super) struct Http2 {
    /// Part of the cluster's protocol options, if it has some.
    pub(super) options: Vec<u8>,
    /// Part of a cluster without protocol options.
    pub(super) extension: Vec<u8>,
}

/// Parts for the share of the requests of which the bodies of responses are reported.
#[derive(Debug)]
pub(super) struct BodyReports {
    /// Part of the route that this share takes.
    pub(super) share: Vec<u8>,
    /// Part of that route if all its requests go to the pool.
    pub(super) route: Vec<u8>,
    /// Part of the pool's weighted cluster if they are divided.
    pub(super) portion: Vec<u8>,
}

impl Memo {
    pub(super) fn new(max_pools: NonZeroUsize) -> Self {
        Self { pools: Mutex::new(LruCache::new(max_pools)) }
    }

    pub(super) fn parts_of(&self, pool: &Pool, parts: &Parts) -> Arc<PoolParts> {
        let mut pools = self.pools.lock();
        Arc::clone(pools.get_or_insert_ref(pool, || Arc::new(PoolParts::new(pool, parts))))
    }
}

impl PoolParts {
    fn new(pool: &Pool, parts: &Parts) -> Self {
        let attachment = pool.attachment();
        let cluster = json!({
            "type": "STRICT_DNS",
            "dns_refresh_rate": REFRESH,
            "load_assignment": { "endpoints": resolved(&pool.pods, &pool.ports) },
            "load_balancing_policy": override_host(),
            "metadata": mark::render(mark::POOL, &json!(json!(pool).to_string())),
        });
        let rendered = filters(attachment);
        let filter = |filter: &Value| {
            let name = filter["name"].as_str().unwrap_or_default().to_owned();
            (name, parts.encode(HTTP_FILTER, filter))
        };
        let log = |log: Value| {
            let name = log["name"].as_str().unwrap_or_default().to_owned();
            (name, parts.encode(MANAGER, &json!({ "access_log": [log] })))
        };
        Self {
            pool: pool.clone(),
            cluster: parts.encode(CLUSTER, &cluster),
            bounds: parts.encode(CLUSTER, &json!({ "circuit_breakers": { "thresholds": [thresholds()] } })),
            http2: Http2::new(pool.app_protocol, parts),
            picker_name: picker_cluster(&pool.key),
            picker: picker(pool, parts),
            filters: rendered.iter().map(filter).collect(),
            access_log: access_log(&attachment).map(log),
            body_reports: body_reports(&attachment).map(|(share, reports)| {
                let share = json!({
                    "match": { "runtime_fraction": fraction(share) },
                    "metadata": mark::render_made(),
                });
                let reports = json!({ "typed_per_filter_config": { observer_filter(&pool.key): reports } });
                BodyReports {
                    share: parts.encode(ROUTE, &share),
                    route: parts.encode(ROUTE, &reports),
                    portion: parts.encode(CLUSTER_WEIGHT, &reports),
                }
            }),
        }
    }
}

impl Http2 {
    fn new(app_protocol: AppProtocol, parts: &Parts) -> Option<Self> {
        match app_protocol {
            AppProtocol::Http => None,
            AppProtocol::H2c => {
                let options = http2(json!({}));
                let encoded = parts.encode(PROTOCOL_OPTIONS, &options);
                let extension = json!({ "typed_extension_protocol_options": protocol_options(options) });
                Some(Self { options: encoded, extension: parts.encode(CLUSTER, &extension) })
            }
        }
    }
}

/// The cluster of a pool's picker.
fn picker(pool: &Pool, parts: &Parts) -> Vec<u8> {
    let Picker { address, port, trust } = &pool.picker;
    let name = picker_cluster(&pool.key);
    let assignment = json!({ "cluster_name": name, "endpoints": resolved(address, &[*port]) });
    let mut value = picker_at(&name, "STRICT_DNS", assignment, pool.attachment().maker);
    value["dns_refresh_rate"] = json!(REFRESH);
    // A picker whose name is gone is gone, even if it answered a health check a moment ago.
    value["ignore_health_on_host_removal"] = json!(true);
    value["transport_socket"] = match trust {
        Trust::Authority { host, certificates } => tls_to(host, json!({ "inline_string": certificates })),
        Trust::Any(_) => tls_to_any(),
    };
    parts.encode(CLUSTER, &value)
}

/// The endpoints of a name that DNS resolves to all addresses behind it.
fn resolved(host: &str, ports: &[u16]) -> Value {
    let endpoint = |port: &u16| json!({ "endpoint": { "address": { "socket_address": { "address": host, "port_value": port } } } });
    let endpoints: Vec<Value> = ports.iter().map(endpoint).collect();
    json!([{ "lb_endpoints": endpoints }])
}

#[cfg(test)]
mod tests {
    use inference_api::object::ObjectKey;
    use inference_api::pool::{BodyMode, FailureMode};

    use super::*;
    use crate::attachment::{Responses, Share};

    fn pool(name: &str) -> Pool {
        Pool {
            key: ObjectKey::new("default", name),
            failure_mode: FailureMode::FailClose,
            responses: Responses::Observed(Share::TWENTIETH),
            app_protocol: AppProtocol::Http,
            pods: "pods".to_owned(),
            ports: vec![8000],
            picker: Picker {
                address: "picker".to_owned(),
                port: 9002,
                trust: Trust::Any(BodyMode::default()),
            },
        }
    }

    #[test]
    fn parts_stay_while_their_pool_is_among_the_last() {
        let parts = Parts::new();
        let memo = Memo::new(NonZeroUsize::new(2).unwrap());
        let parts_of = |name: &str| memo.parts_of(&pool(name), &parts);
        let first = parts_of("first");
        parts_of("second");
        assert!(Arc::ptr_eq(&first, &parts_of("first")));
        parts_of("third");
        assert!(Arc::ptr_eq(&first, &parts_of("first")), "the second one was asked for before");
        parts_of("second");
        parts_of("third");
        assert_eq!(memo.pools.lock().len(), 2);
        assert!(!Arc::ptr_eq(&first, &parts_of("first")), "forgotten");
    }
}
