//! Gauges that are computed when they are read: pools, pods and indexes at one moment.
//!
//! Each page is made from its own set: a reader never sees another one's half-filled set, and nothing outlives its
//! pool.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use inference_api::object::ObjectKey;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

/// Labels of a pool. Upstream has only `name`, because it serves one pool.
type Labels = Vec<(&'static str, String)>;

/// Labels of the gauges of pools and pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolNaming {
    NameAndNamespace,
    Name,
}

/// The state at one moment.
#[derive(Debug)]
pub struct Standing {
    pub naming: PoolNaming,
    pub pools: Vec<PoolStanding>,
    /// Sum over all endpoints of the prefix-index blocks that each holds.
    pub n_held_blocks: u64,
    /// Blocks that endpoints lost because of the index's bound, since the start.
    pub n_evicted_blocks: u64,
    /// Distinct blocks that engines hold, or will hold, according to their KV events.
    pub n_kv_blocks: u64,
    /// Blocks of engines for which the index had no room, since the start.
    pub n_refused_kv_blocks: u64,
}

#[derive(Debug)]
pub struct PoolStanding {
    pub pool: ObjectKey,
    pub pods: Vec<PodStanding>,
}

#[derive(Debug)]
pub struct PodStanding {
    pub name: Arc<str>,
    pub waiting: u32,
    /// KV-cache usage in 0..=1.
    pub kv_usage: f64,
    pub in_flight: u32,
    pub is_reachable: bool,
}

impl Standing {
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        self.register_pools(&mut registry);
        self.register_pods(&mut registry);
        let mut register = |name, help, value: u64| {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            registry.register(name, help, gauge);
        };
        register(
            "inference_extension_prefix_indexer_size",
            "[ALPHA] Size of the prefix indexer, in blocks counted once for each endpoint that holds them",
            self.n_held_blocks,
        );
        register(
            "epp_prefix_indexer_evicted_blocks",
            "Blocks that endpoints lost to the index's bound since the start",
            self.n_evicted_blocks,
        );
        register(
            "epp_kv_index_blocks",
            "Distinct blocks that engines say they hold, or will",
            self.n_kv_blocks,
        );
        register(
            "epp_kv_index_refused_blocks",
            "Blocks of engines for which the index had no room, since the start",
            self.n_refused_kv_blocks,
        );
        registry
    }

    fn register_pools(&self, registry: &mut Registry) {
        let kv_usage = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        let queue_size = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        let ready = Family::<Labels, Gauge>::default();
        for PoolStanding { pool, pods } in &self.pools {
            let labels = self.labels(pool);
            kv_usage.get_or_create(&labels).set(mean(pods, |pod| pod.kv_usage));
            queue_size.get_or_create(&labels).set(mean(pods, |pod| pod.waiting.into()));
            let n_ready = pods.iter().filter(|pod| pod.is_reachable).count();
            ready.get_or_create(&labels).set(i64::try_from(n_ready).unwrap_or(i64::MAX));
        }
        registry.register(
            "inference_pool_average_kv_cache_utilization",
            "[ALPHA] The average kv cache utilization for an inference server pool",
            kv_usage,
        );
        registry.register(
            "inference_pool_average_queue_size",
            "[ALPHA] The average number of requests pending in the model server queue",
            queue_size,
        );
        registry.register(
            "inference_pool_ready_pods",
            "[ALPHA] The number of ready pods in the inference server pool",
            ready,
        );
    }

    fn register_pods(&self, registry: &mut Registry) {
        registry.register(
            "inference_pool_per_pod_queue_size",
            "[ALPHA] The total number of requests pending in the model server queue for each underlying pod",
            self.by_pod(|pod| pod.waiting),
        );
        registry.register(
            "epp_pod_in_flight_requests",
            "Requests sent to the pod whose stream has not ended",
            self.by_pod(|pod| pod.in_flight),
        );
    }

    fn by_pod(&self, value: impl Fn(&PodStanding) -> u32) -> impl Metric {
        let family = Family::<Labels, Gauge>::default();
        for PoolStanding { pool, pods } in &self.pools {
            for pod in pods {
                let mut labels = self.labels(pool);
                labels.push(("model_server_pod", pod.name.to_string()));
                family.get_or_create(&labels).set(value(pod).into());
            }
        }
        family
    }

    fn labels(&self, pool: &ObjectKey) -> Labels {
        let mut labels = vec![("name", pool.name.clone())];
        match self.naming {
            PoolNaming::NameAndNamespace => labels.push(("namespace", pool.namespace.clone())),
            PoolNaming::Name => {}
        }
        labels
    }
}

/// Mean over the pods; 0 without pods.
fn mean(pods: &[PodStanding], value: impl Fn(&PodStanding) -> f64) -> f64 {
    let n_pods = f64::from(u32::try_from(pods.len().max(1)).unwrap_or(u32::MAX));
    pods.iter().map(value).sum::<f64>() / n_pods
}
