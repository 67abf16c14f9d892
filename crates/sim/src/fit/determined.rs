//! Fits only what the measurements determine: each constant is either fitted, with its error, or kept, with the reason.

use super::{Coefficient, Observation, Problem, fit};
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

/// A constant with its values in the unit of the coefficient's name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constant {
    pub coefficient: Coefficient,
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
    keep: &[Coefficient],
    observations: &[Observation],
) -> Result<Determined, TooFew> {
    let mut verdicts: Vec<(Coefficient, Verdict)> =
        keep.iter().map(|coefficient| (*coefficient, Verdict::Asked)).collect();
    let mut free: Vec<Coefficient> =
        Coefficient::ALL.into_iter().filter(|coefficient| !keep.contains(coefficient)).collect();
    let mut latency = fit(base, &free, observations);
    let (touched, _) = sensitivities(latency, &free, observations);
    let is_touched = |coefficient_idx: usize| touched.column(coefficient_idx).amax() > TOUCHED;
    let (some, none): (Vec<_>, Vec<_>) = free.iter().enumerate().partition(|(idx, _)| is_touched(*idx));
    verdicts.extend(none.into_iter().map(|(_, coefficient)| (*coefficient, Verdict::Untouched)));
    free = some.into_iter().map(|(_, coefficient)| *coefficient).collect();
    if observations.len() < free.len() {
        let free = free.into_iter().map(Coefficient::name).collect();
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
                let fitted = free
                    .iter()
                    .zip(errors)
                    .map(|(coefficient, error)| (*coefficient, Verdict::Fitted { error }));
                verdicts.extend(fitted);
                break;
            }
        }
    }
    let constant = |(coefficient, verdict): (Coefficient, Verdict)| {
        let (before, after) = (coefficient.value(&base), coefficient.value(&latency));
        Constant { coefficient, before, after, verdict }
    };
    let mut constants: Vec<Constant> = verdicts.into_iter().map(constant).collect();
    constants.sort_by_key(|constant| {
        Coefficient::ALL.iter().position(|coefficient| *coefficient == constant.coefficient)
    });
    Ok(Determined { latency, constants })
}

/// Returns the sensitivities at `latency`, by observation and coefficient, and the misses.
fn sensitivities(
    latency: LatencyModel,
    coefficients: &[Coefficient],
    observations: &[Observation],
) -> (DMatrix<f64>, DVector<f64>) {
    if coefficients.is_empty() {
        return (DMatrix::zeros(observations.len(), 0), DVector::zeros(observations.len()));
    }
    let problem = Problem::new(latency, coefficients, observations);
    (problem.sensitivities(), problem.misses(&problem.at))
}

/// Returns the standard errors of the coefficients' logarithms, from the measurements alone.
fn errors(sensitivities: &DMatrix<f64>, misses: &DVector<f64>) -> Vec<f64> {
    let n_coefficients = sensitivities.ncols();
    if n_coefficients == 0 {
        return Vec::new();
    }
    let n_spare =
        f64::from(u32::try_from(misses.len().saturating_sub(n_coefficients).max(1)).unwrap_or(u32::MAX));
    let sigma = (misses.norm_squared() / n_spare).sqrt().clamp(*SIGMA.start(), *SIGMA.end());
    let decomposed = sensitivities.clone().svd(false, true);
    let (values, Some(directions)) = (decomposed.singular_values, decomposed.v_t) else { return Vec::new() };
    let smallest = (values.amax() * SMALLEST).max(f64::MIN_POSITIVE);
    let error = |coefficient_idx: usize| {
        let direction = directions.column(coefficient_idx);
        let parts = values.iter().zip(&direction);
        sigma * parts.map(|(value, part)| (part / value.max(smallest)).powi(2)).sum::<f64>().sqrt()
    };
    (0..n_coefficients).map(error).collect()
}
