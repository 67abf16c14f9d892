//! The director's state for pages and metrics: pools, endpoints, models.

use std::sync::Arc;
use std::time::Instant;

use inference_api::pool::TargetModel;
use picking::cache_facts::Shown;
use pool_index::snapshot::{Model, ModelStatus as ModelState, Pool};
use scheduling::candidate::Load;

use super::Director;
use crate::datastore::{LiveEndpoint, LivePool};
use crate::metrics::standing::{PodStanding, PoolNaming, PoolStanding, Standing};
use crate::status::{EndpointStatus, ModelStatus, PoolStatus, ServedModel, StatusList, Target};
use ext_proc::compat::Compat;

impl Director {
    /// The current state, for `/debug/pools`.
    #[must_use]
    pub fn status(&self, now: Instant) -> StatusList {
        let datastore = self.datastore.load();
        let model = |(key, state): (&_, &ModelState)| {
            let ModelState { model_name, pool, accepted } = state;
            ModelStatus {
                object: format!("{key}"),
                model_name: model_name.clone(),
                pool: pool.to_string(),
                conditions: vec![accepted.clone()],
            }
        };
        StatusList {
            pools: datastore.pools.values().map(|live_pool| self.pool_status(live_pool, now)).collect(),
            models: datastore.models.iter().map(model).collect(),
        }
    }

    /// The current state, for the metrics page.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        let datastore = self.datastore.load();
        let (stats, blocks) = (self.picker.index().stats(), self.picker.blocks().stats());
        let now = self.moment(now);
        let pod = |endpoint: &Arc<LiveEndpoint>| {
            let load = endpoint.state.load(now, self.options.max_metrics_age);
            PodStanding {
                name: Arc::clone(&endpoint.pod),
                waiting: load.waiting,
                kv_usage: load.kv_usage,
                in_flight: load.in_flight,
                is_reachable: endpoint.state.is_reachable(),
            }
        };
        let pool = |LivePool { pool, name: _, endpoints }: &LivePool| PoolStanding {
            pool: pool.key.clone(),
            pods: endpoints.iter().map(pod).collect(),
        };
        Standing {
            naming: match self.options.compat {
                Compat::None => PoolNaming::NameAndNamespace,
                Compat::GieV04 => PoolNaming::Name,
            },
            pools: datastore.pools.values().map(pool).collect(),
            n_held_blocks: stats.n_held_blocks,
            n_evicted_blocks: stats.n_evicted_blocks,
            n_kv_blocks: blocks.n_blocks,
            n_refused_kv_blocks: blocks.n_refused,
        }
    }

    fn pool_status(&self, live_pool: &LivePool, now: Instant) -> PoolStatus {
        let LivePool { pool, name: _, endpoints } = live_pool;
        let Pool {
            key,
            strategy,
            failure_mode,
            runtime,
            prefix_source,
            problems,
            models,
            routing_policy: _,
            objectives: _,
            rewrites: _,
            endpoints: _,
        } = &**pool;
        PoolStatus {
            pool: key.to_string(),
            strategy: strategy.as_str(),
            runtime: runtime.as_str(),
            prefix_source: prefix_source.as_str(),
            failure_mode: *failure_mode,
            problems: problems.clone(),
            endpoints: endpoints.iter().map(|endpoint| self.endpoint_status(endpoint, now)).collect(),
            models: models.iter().map(|(name, model)| served(name, model)).collect(),
        }
    }

    fn endpoint_status(&self, endpoint: &LiveEndpoint, now: Instant) -> EndpointStatus {
        let Load { waiting, running, kv_usage, in_flight, uncached_bytes, age, fresh } =
            endpoint.state.load(self.moment(now), self.options.max_metrics_age);
        let Shown { kv_tokens, bytes_per_token, bound } = endpoint.state.facts.shown();
        EndpointStatus {
            endpoint: endpoint.destination.clone(),
            pod: endpoint.pod.clone(),
            reachable: endpoint.state.is_reachable(),
            fresh,
            metrics_age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            waiting,
            running,
            kv_usage,
            in_flight,
            uncached_bytes,
            believed_bytes: self.picker.index().held_bytes(endpoint.state.id()),
            max_believed_bytes: bound,
            kv_tokens,
            bytes_per_token,
        }
    }
}

fn served(model_name: &str, model: &Model) -> ServedModel {
    let Model { key, criticality, targets } = model;
    let target = |target: &TargetModel| Target { name: target.name.clone(), weight: target.weight };
    ServedModel {
        model_name: model_name.to_owned(),
        object: key.to_string(),
        criticality: criticality.as_str(),
        targets: targets.iter().map(target).collect(),
    }
}
