//! The director's state for pages and metrics: pools, endpoints, models.

use std::sync::Arc;
use std::time::Instant;

use inference_api::pool::TargetModel;
use picking::cache_facts::Shown;
use pool_index::snapshot::{Model, ModelStatus as ModelState, Pool};
use scheduling::candidate::Load;

use super::Director;
use crate::candidates::{Member, Roll};
use crate::metrics::standing::{PodStanding, PoolNaming, PoolStanding, Standing};
use crate::status::{EndpointStatus, ModelStatus, PoolStatus, ServedModel, StatusList, Target};
use ext_proc::compat::Compat;

impl Director {
    /// The current state, for `/debug/pools`.
    #[must_use]
    pub fn status(&self, now: Instant) -> StatusList {
        let roster = self.roster.load();
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
            pools: roster.rolls.values().map(|roll| self.pool_status(roll, now)).collect(),
            models: roster.models.iter().map(model).collect(),
        }
    }

    /// The current state, for the metrics page.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        let roster = self.roster.load();
        let (stats, blocks) = (self.picker.index().stats(), self.picker.blocks().stats());
        let now = self.moment(now);
        let pod = |member: &Arc<Member>| {
            let load = member.endpoint.load(now, self.options.max_metrics_age);
            PodStanding {
                name: Arc::clone(&member.pod),
                waiting: load.waiting,
                kv_usage: load.kv_usage,
                in_flight: load.in_flight,
                is_reachable: member.endpoint.is_reachable(),
            }
        };
        let pool = |Roll { pool, members }: &Roll| PoolStanding {
            pool: pool.key.clone(),
            pods: members.iter().map(pod).collect(),
        };
        Standing {
            naming: match self.options.compat {
                Compat::None => PoolNaming::NameAndNamespace,
                Compat::GieV04 => PoolNaming::Name,
            },
            pools: roster.rolls.values().map(pool).collect(),
            n_held_blocks: stats.n_held_blocks,
            n_evicted_blocks: stats.n_evicted_blocks,
            n_kv_blocks: blocks.n_blocks,
            n_refused_kv_blocks: blocks.n_refused,
        }
    }

    fn pool_status(&self, roll: &Roll, now: Instant) -> PoolStatus {
        let Roll { pool, members } = roll;
        let Pool {
            key,
            strategy,
            failure_mode,
            runtime,
            prefix_source,
            problems,
            models,
            routing_policy: _,
            endpoints: _,
        } = &**pool;
        PoolStatus {
            pool: key.to_string(),
            strategy: strategy.as_str(),
            runtime: runtime.as_str(),
            prefix_source: prefix_source.as_str(),
            failure_mode: *failure_mode,
            problems: problems.clone(),
            endpoints: members.iter().map(|member| self.endpoint_status(member, now)).collect(),
            models: models.iter().map(|(name, model)| served(name, model)).collect(),
        }
    }

    fn endpoint_status(&self, member: &Member, now: Instant) -> EndpointStatus {
        let Load { waiting, running, kv_usage, in_flight, uncached_bytes, age, fresh } =
            member.endpoint.load(self.moment(now), self.options.max_metrics_age);
        let Shown { kv_tokens, bytes_per_token, bound } = member.endpoint.facts.shown();
        EndpointStatus {
            endpoint: member.destination.clone(),
            pod: member.pod.clone(),
            reachable: member.endpoint.is_reachable(),
            fresh,
            metrics_age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            waiting,
            running,
            kv_usage,
            in_flight,
            uncached_bytes,
            believed_bytes: self.picker.index().held_bytes(member.endpoint.id()),
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
