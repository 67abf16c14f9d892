//! Which pool has a model, and under which name the engines know it.

use inference_api::object::ObjectKey;
use pool_index::snapshot::Pool;
use rand::{Rng, RngExt};

use crate::candidates::{Roll, Roster};
use crate::refusal::Refusal;

/// The pool for a request: the configured one, the only one, or the first by name that has the model.
///
/// # Errors
/// When there is no such pool.
pub(super) fn choose_pool<'a>(
    roster: &'a Roster,
    configured: Option<&ObjectKey>,
    model: Option<&str>,
) -> Result<&'a Roll, Refusal> {
    if let Some(key) = configured {
        return roster.rolls.get(key).ok_or(Refusal::NoPool);
    }
    let mut rolls = roster.rolls.values();
    let first = rolls.next().ok_or(Refusal::NoPool)?;
    let Some(model) = model else { return Ok(first) };
    if rolls.next().is_none() {
        return Ok(first);
    }
    let names_it = |roll: &&Roll| roll.pool.models.contains_key(model);
    let takes_any = |roll: &&Roll| roll.pool.models.is_empty();
    roster
        .rolls
        .values()
        .find(names_it)
        .or_else(|| roster.rolls.values().find(takes_any))
        .ok_or_else(|| Refusal::ModelNotFound { model: model.to_owned() })
}

/// The name to ask the engine for: the InferenceModel's target, drawn by weight. A pool without any InferenceModel
/// takes every model under its own name, as pools of v1 have none.
///
/// The draw is upstream's: a number below the sum of weights, from which the weights are taken in order. Targets
/// without weights have equal chances.
///
/// # Errors
/// When the pool has InferenceModels and none is named `model`.
pub(super) fn target(pool: &Pool, model: &str, rng: &mut impl Rng) -> Result<String, Refusal> {
    if pool.models.is_empty() {
        return Ok(model.to_owned());
    }
    let Some(found) = pool.models.get(model) else {
        return Err(Refusal::ModelNotFound { model: model.to_owned() });
    };
    let total: u64 = found.targets.iter().map(|target| u64::from(target.weight.unwrap_or(1))).sum();
    if total == 0 {
        return Ok(model.to_owned());
    }
    let mut draw = rng.random_range(0..total);
    for target in &found.targets {
        let weight = u64::from(target.weight.unwrap_or(1));
        if draw < weight {
            return Ok(target.name.clone());
        }
        draw -= weight;
    }
    unreachable!("the draw is below the sum of the weights")
}
