//! Fits only what the measurements determine: each constant is either fitted, with its error, or kept, with the reason.

use super::{Knob, Observation, Problem, fit};
use nalgebra::{DMatrix, DVector};
use vllm_engine::latency::LatencyModel;

/// Smallest relative change (about) of a measured time, if a constant is doubled, for which the constant counts as
/// used.
const TOUCHED: f64 = 0.01;
/// Largest standard error of a determined constant, as a logarithm.
const MAX_ERROR: f64 = 0.25;
/// Bounds of the measurements' scatter. A smaller scatter is not believed; a larger one, if the model misses the
/// measurements by far, would only make every constant look undetermined.
const SIGMA: std::ops::RangeInclusive<f64> = 0.002..=0.1;
/// Share of the largest singular value below which a value counts as zero.
const SMALLEST: f64 = 1e-9;

/// A model, and the result for each constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Determined {
    pub latency: LatencyModel,
    pub constants: Vec<Constant>,
}

/// A constant with its values in the unit of the knob's name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constant {
    pub knob: Knob,
    pub before: f64,
    pub after: f64,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Fitted, with its relative standard error.
    Fitted { error: f64 },
    /// Kept because the caller asked for it.
    Asked,
    /// Kept because no measured time depends on it.
    Untouched,
    /// Kept because other constants explain the measured times as well.
    Undetermined,
}

/// Error of a fit with fewer measurements than constants that they depend on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "measured times: {n_measured}, fewer than the constants that they depend on ({}): at least {} are needed",
    .free.join(", "),
    .free.len()
)]
pub struct TooFew {
    pub n_measured: usize,
    pub free: Vec<&'static str>,
}

/// Fits all constants except `keep`, and keeps those that `observations` do not determine.
///
/// # Errors
/// Fails for fewer observations than constants that they depend on.
pub fn fit_determined(
    base: LatencyModel,
    keep: &[Knob],
    observations: &[Observation],
) -> Result<Determined, TooFew> {
    let mut verdicts: Vec<(Knob, Verdict)> = keep.iter().map(|knob| (*knob, Verdict::Asked)).collect();
    let mut free: Vec<Knob> = Knob::ALL.into_iter().filter(|knob| !keep.contains(knob)).collect();
    let mut latency = fit(base, &free, observations);
    let (touched, _) = sensitivities(latency, &free, observations);
    let is_touched = |knob_idx: usize| touched.column(knob_idx).amax() > TOUCHED;
    let (some, none): (Vec<_>, Vec<_>) = free.iter().enumerate().partition(|(idx, _)| is_touched(*idx));
    verdicts.extend(none.into_iter().map(|(_, knob)| (*knob, Verdict::Untouched)));
    free = some.into_iter().map(|(_, knob)| *knob).collect();
    if observations.len() < free.len() {
        let free = free.into_iter().map(Knob::name).collect();
        return Err(TooFew { n_measured: observations.len(), free });
    }
    loop {
        latency = fit(base, &free, observations);
        let (sensitivities, misses) = sensitivities(latency, &free, observations);
        let errors = errors(&sensitivities, &misses);
        let worst = (0..free.len()).max_by(|a, b| errors[*a].total_cmp(&errors[*b]));
        match worst.filter(|worst| errors[*worst] > MAX_ERROR) {
            Some(worst) => verdicts.push((free.remove(worst), Verdict::Undetermined)),
            None => {
                let fitted = free.iter().zip(errors).map(|(knob, error)| (*knob, Verdict::Fitted { error }));
                verdicts.extend(fitted);
                break;
            }
        }
    }
    let constant = |(knob, verdict): (Knob, Verdict)| {
        let (before, after) = (knob.value(&base), knob.value(&latency));
        Constant { knob, before, after, verdict }
    };
    let mut constants: Vec<Constant> = verdicts.into_iter().map(constant).collect();
    constants.sort_by_key(|constant| Knob::ALL.iter().position(|knob| *knob == constant.knob));
    Ok(Determined { latency, constants })
}

/// Returns the sensitivities at `latency`, by observation and knob, and the misses.
fn sensitivities(
    latency: LatencyModel,
    knobs: &[Knob],
    observations: &[Observation],
) -> (DMatrix<f64>, DVector<f64>) {
    if knobs.is_empty() {
        return (DMatrix::zeros(observations.len(), 0), DVector::zeros(observations.len()));
    }
    let problem = Problem::new(latency, knobs, observations);
    (problem.sensitivities(), problem.misses(&problem.at))
}

/// Returns the standard errors of the knobs' logarithms, from the measurements alone.
fn errors(sensitivities: &DMatrix<f64>, misses: &DVector<f64>) -> Vec<f64> {
    let n_knobs = sensitivities.ncols();
    if n_knobs == 0 {
        return Vec::new();
    }
    let n_spare = f64::from(u32::try_from(misses.len().saturating_sub(n_knobs).max(1)).unwrap_or(u32::MAX));
    let sigma = (misses.norm_squared() / n_spare).sqrt().clamp(*SIGMA.start(), *SIGMA.end());
    let decomposed = sensitivities.clone().svd(false, true);
    let (values, Some(directions)) = (decomposed.singular_values, decomposed.v_t) else { return Vec::new() };
    let smallest = (values.amax() * SMALLEST).max(f64::MIN_POSITIVE);
    let error = |knob_idx: usize| {
        let direction = directions.column(knob_idx);
        let parts = values.iter().zip(&direction);
        sigma * parts.map(|(value, part)| (part / value.max(smallest)).powi(2)).sum::<f64>().sqrt()
    };
    (0..n_knobs).map(error).collect()
}
