//! Fits rates and host times to measurements: least squares of relative errors (Levenberg-Marquardt), in logarithms, so
//! that no value becomes negative. Values that the measurements do not determine stay the same.

pub mod determined;

use levenberg_marquardt::{LeastSquaresProblem, LevenbergMarquardt};
use nalgebra::storage::Owned;
use nalgebra::{DMatrix, DVector, Dyn};
use std::time::Duration;
use vllm_engine::latency::LatencyModel;
use vllm_engine::step::StepPlan;

/// Relative error of a measured step.
const MEASURED_SIGMA: f64 = 0.02;
/// Distance of a value from its start, as a logarithm, beyond which measurements count for less.
const PRIOR_SIGMA: f64 = 1.5;
/// Step of a numeric derivative, in logarithms, to both sides. Step times are whole nanoseconds, which would disturb a
/// smaller step.
const NUDGE: f64 = 1e-3;
/// Largest change of a value, as a logarithm: about a factor of 1,000.
const MAX_SHIFT: f64 = 7.0;
/// Start of the fit for a host time that is zero.
const LEAST_TIME: Duration = Duration::from_micros(1);

/// A coefficient of the latency model that can be fitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coefficient {
    GemmRate,
    AttentionRate,
    WeightBandwidth,
    KvBandwidth,
    PerStep,
    PerRow,
    PerPrefill,
    /// Time before the engine. Only its sum with the time after a step can be measured, so the latter stays the same.
    Before,
}

/// A measured time, and the steps in it.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Steps that followed each other, each with its number. An average step may represent several.
    pub steps: Vec<(f64, StepPlan)>,
    pub place: MeasuredAt,
    pub measured: Duration,
}

/// Place where a time was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeasuredAt {
    /// In the engine: the steps alone.
    Engine,
    /// At a client: with the times before and after the engine.
    Client,
}

/// Residuals in sigmas: of each observation, then of each coefficient from its start.
struct Problem<'a> {
    base: LatencyModel,
    coefficients: &'a [Coefficient],
    observations: &'a [Observation],
    /// Start of the coefficients, as logarithms.
    start: DVector<f64>,
    at: DVector<f64>,
}

/// Fits these coefficients of `base` to the observations.
pub fn fit(base: LatencyModel, coefficients: &[Coefficient], observations: &[Observation]) -> LatencyModel {
    if coefficients.is_empty() || observations.is_empty() {
        return base;
    }
    let problem = Problem::new(base, coefficients, observations);
    let (solved, _report) = LevenbergMarquardt::new().minimize(problem);
    solved.latency(&solved.at)
}

// === impl Observation ===

impl Observation {
    pub fn modelled(&self, latency: &LatencyModel) -> Duration {
        let steps: f64 =
            self.steps.iter().map(|(n_times, plan)| n_times * latency.step_time(plan).as_secs_f64()).sum();
        let steps = Duration::try_from_secs_f64(steps).unwrap_or(Duration::MAX);
        match self.place {
            MeasuredAt::Engine => steps,
            MeasuredAt::Client => steps.saturating_add(latency.c_pre).saturating_add(latency.c_post),
        }
    }

    /// Returns the logarithm of modelled by measured time.
    fn miss(&self, latency: &LatencyModel) -> f64 {
        (self.modelled(latency).as_secs_f64() / self.measured.as_secs_f64()).ln()
    }
}

// === impl Problem ===

impl<'a> Problem<'a> {
    fn new(base: LatencyModel, coefficients: &'a [Coefficient], observations: &'a [Observation]) -> Self {
        let start = DVector::from_iterator(
            coefficients.len(),
            coefficients.iter().map(|coefficient| coefficient.get(&base).ln()),
        );
        Self { base, coefficients, observations, at: start.clone(), start }
    }

    fn latency(&self, at: &DVector<f64>) -> LatencyModel {
        let mut latency = self.base;
        for ((coefficient, at), start) in self.coefficients.iter().zip(at).zip(&self.start) {
            coefficient.set(&mut latency, at.clamp(start - MAX_SHIFT, start + MAX_SHIFT).exp());
        }
        latency
    }

    /// Returns the misses of the observations alone, as logarithms.
    fn misses(&self, at: &DVector<f64>) -> DVector<f64> {
        let latency = self.latency(at);
        let misses = self.observations.iter().map(|observation| observation.miss(&latency));
        DVector::from_iterator(self.observations.len(), misses)
    }

    /// Returns how much each miss changes with each coefficient, both as logarithms: a row per observation, a column per
    /// coefficient.
    fn sensitivities(&self) -> DMatrix<f64> {
        let columns: Vec<DVector<f64>> = (0..self.coefficients.len())
            .map(|coefficient_idx| {
                let (mut above, mut below) = (self.at.clone(), self.at.clone());
                above[coefficient_idx] += NUDGE;
                below[coefficient_idx] -= NUDGE;
                (self.misses(&above) - self.misses(&below)) / (2.0 * NUDGE)
            })
            .collect();
        DMatrix::from_columns(&columns)
    }
}

impl LeastSquaresProblem<f64, Dyn, Dyn> for Problem<'_> {
    type ResidualStorage = Owned<f64, Dyn>;
    type JacobianStorage = Owned<f64, Dyn, Dyn>;
    type ParameterStorage = Owned<f64, Dyn>;

    fn set_params(&mut self, at: &DVector<f64>) {
        self.at.copy_from(at);
    }

    fn params(&self) -> DVector<f64> {
        self.at.clone()
    }

    fn residuals(&self) -> Option<DVector<f64>> {
        let misses = self.misses(&self.at) / MEASURED_SIGMA;
        let shifts = (&self.at - &self.start) / PRIOR_SIGMA;
        let n_residuals = misses.len() + shifts.len();
        Some(DVector::from_iterator(n_residuals, misses.iter().chain(&shifts).copied()))
    }

    fn jacobian(&self) -> Option<DMatrix<f64>> {
        let (n_observations, n_coefficients) = (self.observations.len(), self.coefficients.len());
        let mut jacobian = DMatrix::zeros(n_observations + n_coefficients, n_coefficients);
        jacobian.rows_mut(0, n_observations).copy_from(&(self.sensitivities() / MEASURED_SIGMA));
        jacobian.rows_mut(n_observations, n_coefficients).fill_diagonal(PRIOR_SIGMA.recip());
        Some(jacobian)
    }
}

// === impl Coefficient ===

impl Coefficient {
    pub const ALL: [Self; 8] = [
        Self::GemmRate,
        Self::AttentionRate,
        Self::WeightBandwidth,
        Self::KvBandwidth,
        Self::PerStep,
        Self::PerRow,
        Self::PerPrefill,
        Self::Before,
    ];

    /// Returns section and key in a calibration file, like `gpu.gemm_tflops`.
    pub fn name(self) -> &'static str {
        self.name_and_unit().0
    }

    /// Returns the value in the unit of its key.
    pub fn value(self, latency: &LatencyModel) -> f64 {
        self.get(latency) / self.name_and_unit().1
    }

    fn name_and_unit(self) -> (&'static str, f64) {
        match self {
            Self::GemmRate => ("gpu.gemm_tflops", 1e12),
            Self::AttentionRate => ("gpu.attention_tflops", 1e12),
            Self::WeightBandwidth => ("gpu.weight_gb_per_s", 1e9),
            Self::KvBandwidth => ("gpu.kv_gb_per_s", 1e9),
            Self::PerStep => ("host.step_ms", 1e-3),
            Self::PerRow => ("host.row_ms", 1e-3),
            Self::PerPrefill => ("host.prefill_ms", 1e-3),
            Self::Before => ("host.before_ms", 1e-3),
        }
    }

    fn get(self, latency: &LatencyModel) -> f64 {
        let LatencyModel { gpu, host, c_pre, .. } = latency;
        match self {
            Self::GemmRate => gpu.gemm_rate,
            Self::AttentionRate => gpu.attention_rate,
            Self::WeightBandwidth => gpu.weight_bandwidth,
            Self::KvBandwidth => gpu.kv_bandwidth,
            Self::PerStep => host.per_step.max(LEAST_TIME).as_secs_f64(),
            Self::PerRow => host.per_row.max(LEAST_TIME).as_secs_f64(),
            Self::PerPrefill => host.per_prefill.max(LEAST_TIME).as_secs_f64(),
            Self::Before => c_pre.max(&LEAST_TIME).as_secs_f64(),
        }
    }

    fn set(self, latency: &mut LatencyModel, value: f64) {
        let LatencyModel { gpu, host, c_pre, .. } = latency;
        let time = || Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX);
        match self {
            Self::GemmRate => gpu.gemm_rate = value,
            Self::AttentionRate => gpu.attention_rate = value,
            Self::WeightBandwidth => gpu.weight_bandwidth = value,
            Self::KvBandwidth => gpu.kv_bandwidth = value,
            Self::PerStep => host.per_step = time(),
            Self::PerRow => host.per_row = time(),
            Self::PerPrefill => host.per_prefill = time(),
            Self::Before => *c_pre = time(),
        }
    }
}
