//! Rates and host times from measured steps: least squares of relative errors by Gauss-Newton steps with damping
//! (Levenberg-Marquardt), in logarithms, so that nothing comes out negative. What the measurements do not tell stays
//! where it was.

use super::{LatencyModel, StepPlan};
use std::time::Duration;

/// Relative error of a measured step.
const MEASURED_SIGMA: f64 = 0.02;
/// How far, as a logarithm, a value may be from where it was before the measurements count for less.
const PRIOR_SIGMA: f64 = 1.5;
const MAX_ROUNDS: usize = 200;
/// Enough when a round gains less, in squared sigmas.
const GAIN: f64 = 1e-9;
/// Of a numeric derivative, in logarithms.
const NUDGE: f64 = 1e-5;
/// As a logarithm: nothing is a thousand times what it was.
const MAX_SHIFT: f64 = 7.0;
/// A host time that is zero can be fitted from here on.
const LEAST_TIME: Duration = Duration::from_micros(1);

/// What can be fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Knob {
    GemmRate,
    AttentionRate,
    WeightBandwidth,
    KvBandwidth,
    PerStep,
    PerRow,
    PerPrefill,
}

pub(super) fn fit(base: LatencyModel, knobs: &[Knob], steps: &[(StepPlan, Duration)]) -> LatencyModel {
    let start: Vec<f64> = knobs.iter().map(|knob| knob.get(&base).ln()).collect();
    let mut at = start.clone();
    let residuals = |at: &[f64]| residuals(base, knobs, (at, &start), steps);
    let cost = |residuals: &[f64]| residuals.iter().map(|residual| residual * residual).sum::<f64>();
    let mut damping = 1e-3;
    let mut here = residuals(&at);
    for _ in 0..MAX_ROUNDS {
        let columns: Vec<Vec<f64>> = (0..at.len())
            .map(|knob_idx| {
                let mut nudged = at.clone();
                nudged[knob_idx] += NUDGE;
                residuals(&nudged).iter().zip(&here).map(|(there, here)| (there - here) / NUDGE).collect()
            })
            .collect();
        let next = at.iter().zip(newton_step(&columns, &here, damping)).map(|(at, step)| at + step);
        let next: Vec<f64> =
            next.zip(&start).map(|(at, start)| at.clamp(start - MAX_SHIFT, start + MAX_SHIFT)).collect();
        let there = residuals(&next);
        let gain = cost(&here) - cost(&there);
        if gain > 0.0 {
            (at, here) = (next, there);
            damping = (damping / 3.0).max(1e-12);
            if gain < GAIN {
                break;
            }
        } else {
            damping *= 10.0;
            if damping > 1e12 {
                break;
            }
        }
    }
    set_all(base, knobs, &at)
}

/// In sigmas: of each step, then of each knob from its start.
fn residuals(
    base: LatencyModel,
    knobs: &[Knob],
    (at, start): (&[f64], &[f64]),
    steps: &[(StepPlan, Duration)],
) -> Vec<f64> {
    let latency = set_all(base, knobs, at);
    let of_steps = steps.iter().map(|(plan, measured)| {
        (latency.step_time(plan).as_secs_f64() / measured.as_secs_f64()).ln() / MEASURED_SIGMA
    });
    of_steps.chain(at.iter().zip(start).map(|(at, start)| (at - start) / PRIOR_SIGMA)).collect()
}

/// `-(JᵀJ + damping·diag(JᵀJ))⁻¹ Jᵀr`, with `columns` of J.
fn newton_step(columns: &[Vec<f64>], residuals: &[f64], damping: f64) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut rows: Vec<Vec<f64>> = columns
        .iter()
        .enumerate()
        .map(|(row_idx, row)| {
            let products = columns.iter().enumerate().map(|(column_idx, column)| {
                dot(row, column) * if row_idx == column_idx { 1.0 + damping } else { 1.0 }
            });
            products.chain([-dot(row, residuals)]).collect()
        })
        .collect();
    solve(&mut rows)
}

/// Gauss-Jordan with pivots on `rows`, the last column of which is the right side. The matrix is positive definite.
fn solve(rows: &mut [Vec<f64>]) -> Vec<f64> {
    let n = rows.len();
    for pivot_idx in 0..n {
        let largest =
            (pivot_idx..n).max_by(|a, b| rows[*a][pivot_idx].abs().total_cmp(&rows[*b][pivot_idx].abs()));
        rows.swap(pivot_idx, largest.unwrap_or(pivot_idx));
        let pivot = rows[pivot_idx].clone();
        for (row_idx, row) in rows.iter_mut().enumerate() {
            if row_idx != pivot_idx {
                let factor = row[pivot_idx] / pivot[pivot_idx];
                row.iter_mut().zip(&pivot).for_each(|(value, pivot)| *value -= factor * pivot);
            }
        }
    }
    rows.iter().enumerate().map(|(row_idx, row)| row[n] / row[row_idx]).collect()
}

fn set_all(mut latency: LatencyModel, knobs: &[Knob], logarithms: &[f64]) -> LatencyModel {
    knobs.iter().zip(logarithms).for_each(|(knob, logarithm)| knob.set(&mut latency, logarithm.exp()));
    latency
}

// === impl Knob ===

impl Knob {
    fn get(self, latency: &LatencyModel) -> f64 {
        let LatencyModel { gpu, host, .. } = latency;
        match self {
            Self::GemmRate => gpu.gemm_rate,
            Self::AttentionRate => gpu.attention_rate,
            Self::WeightBandwidth => gpu.weight_bandwidth,
            Self::KvBandwidth => gpu.kv_bandwidth,
            Self::PerStep => host.per_step.max(LEAST_TIME).as_secs_f64(),
            Self::PerRow => host.per_row.max(LEAST_TIME).as_secs_f64(),
            Self::PerPrefill => host.per_prefill.max(LEAST_TIME).as_secs_f64(),
        }
    }

    fn set(self, latency: &mut LatencyModel, value: f64) {
        let LatencyModel { gpu, host, .. } = latency;
        let time = || Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX);
        match self {
            Self::GemmRate => gpu.gemm_rate = value,
            Self::AttentionRate => gpu.attention_rate = value,
            Self::WeightBandwidth => gpu.weight_bandwidth = value,
            Self::KvBandwidth => gpu.kv_bandwidth = value,
            Self::PerStep => host.per_step = time(),
            Self::PerRow => host.per_row = time(),
            Self::PerPrefill => host.per_prefill = time(),
        }
    }
}
