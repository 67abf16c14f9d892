//! Finds the pool that has a model, and the name of the model in the engines.

use inference_api::object::ObjectKey;
use inference_api::pool::{Criticality, TargetModel};
use pool_index::snapshot::{Model, Pool};
use rand::{Rng, RngExt};

use crate::datastore::{Datastore, LivePool};
use ext_proc::refusal::Refusal;

/// The pool for a request: the wanted one, the only one, or the first by name that has the model.
///
/// # Errors
/// If there is no such pool.
pub(super) fn choose_pool<'a>(
    datastore: &'a Datastore,
    wanted: Option<&ObjectKey>,
    model: Option<&str>,
) -> Result<&'a LivePool, Refusal> {
    if let Some(key) = wanted {
        return datastore.pools.get(key).ok_or_else(|| Refusal::UnknownPool { pool: key.clone() });
    }
    let mut pools = datastore.pools.values();
    let first = pools.next().ok_or(Refusal::NoPool)?;
    if pools.next().is_none() {
        return Ok(first);
    }
    let takes_any = |live_pool: &&LivePool| live_pool.pool.models.is_empty();
    let Some(model) = model else { return Ok(datastore.pools.values().find(takes_any).unwrap_or(first)) };
    let names_it = |live_pool: &&LivePool| names(&live_pool.pool, model);
    datastore
        .pools
        .values()
        .find(names_it)
        .or_else(|| datastore.pools.values().find(takes_any))
        .ok_or_else(|| Refusal::ModelNotFound { model: model.to_owned() })
}

/// True if an object of the pool names the model.
pub(super) fn names(pool: &Pool, model: &str) -> bool {
    pool.models.contains_key(model) || pool.rewrites.by_model.contains_key(model)
}

/// A pool's answer for a model.
pub(super) struct ModelChoice {
    /// The name of the model in the engine; `None` if the request leaves it to the engine.
    pub(super) target_model: Option<String>,
    /// `None` in a pool without InferenceModels, which knows no criticality: nothing is shed.
    pub(super) criticality: Option<Criticality>,
}

/// The InferenceModel of `model`; `None` in a pool without any InferenceModel, which takes every model.
///
/// # Errors
/// If the pool has InferenceModels and none is named `model`.
pub(super) fn find<'a>(pool: &'a Pool, model: &str) -> Result<Option<&'a Model>, Refusal> {
    if pool.models.is_empty() {
        return Ok(None);
    }
    pool.models.get(model).map(Some).ok_or_else(|| Refusal::ModelNotFound { model: model.to_owned() })
}

/// The target of the InferenceModel, drawn by weight. A pool without any InferenceModel takes every model under its own
/// name, because pools of v1 have none. A rewrite comes first: the InferenceModel is that of its target.
///
/// The draw is upstream's: a number below the sum of weights, from which the weights are subtracted in order. Targets
/// without weights have equal chances.
///
/// # Errors
/// If the pool has InferenceModels and none is named `model`.
pub(super) fn choose(pool: &Pool, model: &str, rng: &mut impl Rng) -> Result<ModelChoice, Refusal> {
    let model = draw(pool.rewrites.targets(model), rng).unwrap_or(model);
    let Some(found) = find(pool, model)? else {
        return Ok(ModelChoice { target_model: Some(model.to_owned()), criticality: None });
    };
    let target_model = draw(&found.targets, rng).unwrap_or(model).to_owned();
    Ok(ModelChoice { target_model: Some(target_model), criticality: Some(found.criticality) })
}

/// Draws one of the targets; `None` if there are none. A single target needs no draw.
fn draw<'a>(targets: &'a [TargetModel], rng: &mut impl Rng) -> Option<&'a str> {
    let weight = |target: &TargetModel| u64::from(target.weight.unwrap_or(1));
    let total: u64 = targets.iter().map(weight).sum();
    if total == 0 {
        return None;
    }
    if let [only] = targets {
        return Some(&only.name);
    }
    let mut draw = rng.random_range(0..total);
    for target in targets {
        if draw < weight(target) {
            return Some(&target.name);
        }
        draw -= weight(target);
    }
    unreachable!("the draw is below the sum of the weights")
}
