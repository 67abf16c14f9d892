//! Fits the latency model's constants to times measured on a real GPU, step by step or request by request.
//! The model has no time for which a request waits while others are served, so callers must leave such requests out.

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::time::Duration;

use vllm_engine::latency::LatencyModel;
use vllm_engine::latency::calibration::step;
use vllm_engine::latency::presets::{self, PresetError};
use vllm_engine::step::StepPlan;

use crate::fit::determined::{Constant, Determined, TooFew, Verdict, fit_determined};
use crate::fit::{Coefficient, MeasuredAt, Observation};

/// The preset from which a fit starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    name: String,
    latency: LatencyModel,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measurement {
    Step(Step),
    /// Time from sending a request to its first token, on an idle server.
    FirstToken(Prompt, Duration),
    /// Time from the first token to the last one, on a server that does nothing else.
    Decode {
        prompt_tokens: u32,
        output_tokens: u32,
        time: Duration,
    },
}

/// One step of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number of requests that decode one token.
    pub decode_requests: u32,
    /// Tokens before each of them.
    pub decode_context: u32,
    /// New tokens of one prompt.
    pub prefill_tokens: u32,
    /// Tokens of that prompt that are already in the KV cache.
    pub prefill_context: u32,
    pub time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub tokens: u32,
    pub cached_tokens: u32,
}

/// Settings of a fit.
#[derive(Clone, Debug)]
pub struct FitOptions {
    /// Names of constants that are not fitted.
    pub keep: Vec<String>,
    /// Most prompt tokens in one step.
    pub max_num_batched_tokens: NonZeroU32,
}

/// Result of a fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibrated {
    /// One row for each sample, in the same order.
    pub rows: Vec<FitRow>,
    pub constants: Vec<Fitted>,
    /// Text of a file for `mock-vllm --latency-calibration`.
    pub file: String,
}

/// A sample, with the model's time before and after the fit.
#[derive(Clone, Debug, PartialEq)]
pub struct FitRow {
    pub what: String,
    pub measured: Duration,
    pub before: Duration,
    pub after: Duration,
}

/// A constant, with its name and unit in the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fitted {
    pub name: &'static str,
    pub before: f64,
    pub after: f64,
    /// Relative standard error, or why the constant was kept.
    pub error: Result<f64, &'static str>,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibrateError {
    #[error("no constant is called {0}; there are {names}", names = constant_names().join(", "))]
    UnknownConstant(String),
    #[error(transparent)]
    TooFew(#[from] TooFew),
}

// === impl Start ===

impl Start {
    /// Starts from a preset: `a10-doc`, or `<gpu>/<model>`.
    ///
    /// # Errors
    /// When there is no such preset; names those that there are.
    pub fn preset(name: &str) -> Result<Self, PresetError> {
        Ok(Self { name: name.to_owned(), latency: presets::named(name)? })
    }

    /// Starts from the figures of a model on a GPU; `served` is the model's name on a server.
    ///
    /// # Errors
    /// When the model or the GPU has no figures.
    pub fn on_gpu(gpu: &str, served: &str) -> Result<Self, PresetError> {
        Self::preset(&presets::name_on_gpu(gpu, served)?)
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

// === impl Measurement ===

impl Measurement {
    fn observation(self, max_num_batched_tokens: NonZeroU32) -> Observation {
        let (steps, place, measured) = match self {
            Self::Step(sample) => (vec![(1.0, sample.plan())], MeasuredAt::Engine, sample.time),
            Self::FirstToken(prompt, time) => {
                (prompt.steps(max_num_batched_tokens), MeasuredAt::Client, time)
            }
            Self::Decode { prompt_tokens, output_tokens, time } => {
                let n_steps = output_tokens.saturating_sub(1);
                // The time of a step grows evenly with the context, so the middle step represents all of them.
                let plan = step([(prompt_tokens + n_steps / 2, 1, false)]);
                (vec![(f64::from(n_steps), plan)], MeasuredAt::Engine, time)
            }
        };
        Observation { steps, place, measured }
    }

    fn what(self) -> String {
        match self {
            Self::Step(step) => step.what(),
            Self::FirstToken(Prompt { tokens, cached_tokens }, _) => {
                format!("first token, {} new after {cached_tokens}", tokens.saturating_sub(cached_tokens))
            }
            Self::Decode { prompt_tokens, output_tokens, time: _ } => {
                format!("{} more after {prompt_tokens}", output_tokens.saturating_sub(1))
            }
        }
    }
}

// === impl Step ===

impl Step {
    fn plan(self) -> StepPlan {
        let Self { decode_requests, decode_context, prefill_tokens, prefill_context, time: _ } = self;
        let decodes = (0..decode_requests).map(|_| (decode_context, 1, false));
        let prefill = (prefill_tokens > 0).then_some((prefill_context, prefill_tokens, true));
        step(decodes.chain(prefill))
    }

    fn what(self) -> String {
        let Self { decode_requests, decode_context, prefill_tokens, prefill_context, time: _ } = self;
        let decodes = format!("{decode_requests} decode at {decode_context}");
        let prefill = format!("{prefill_tokens} new after {prefill_context}");
        match (decode_requests, prefill_tokens) {
            (0, _) => prefill,
            (_, 0) => decodes,
            (_, _) => format!("{decodes}, {prefill}"),
        }
    }
}

// === impl Prompt ===

impl Prompt {
    /// Returns the steps for a prompt that is alone: the engine computes it chunk by chunk, and always its last token.
    fn steps(self, max_num_batched_tokens: NonZeroU32) -> Vec<(f64, StepPlan)> {
        let mut n_computed = self.cached_tokens.min(self.tokens.saturating_sub(1));
        let mut steps = Vec::new();
        while n_computed < self.tokens {
            let n_new = max_num_batched_tokens.get().min(self.tokens - n_computed);
            steps.push((1.0, step([(n_computed, n_new, true)])));
            n_computed += n_new;
        }
        steps
    }
}

// === impl FitRow ===

impl FitRow {
    /// Returns the relative errors of the model before and after the fit.
    pub fn misses(&self) -> (f64, f64) {
        let miss = |modelled: Duration| modelled.as_secs_f64() / self.measured.as_secs_f64() - 1.0;
        (miss(self.before), miss(self.after))
    }
}

/// Fits the constants that `samples` determine, and keeps the others of `start`. Samples must have a time above zero,
/// and a step or a token that takes it.
///
/// # Errors
/// When there are too few samples, or a constant to keep does not exist.
pub fn calibrate(
    start: &Start,
    options: &FitOptions,
    samples: &[Measurement],
) -> Result<Calibrated, CalibrateError> {
    let keep: Vec<Coefficient> =
        options.keep.iter().map(|name| coefficient(name)).collect::<Result<_, _>>()?;
    let observations: Vec<Observation> =
        samples.iter().map(|sample| sample.observation(options.max_num_batched_tokens)).collect();
    let determined = fit_determined(start.latency, &keep, &observations)?;
    let rows = samples.iter().zip(&observations).map(|(sample, observation)| FitRow {
        what: sample.what(),
        measured: observation.measured,
        before: observation.modelled(&start.latency),
        after: observation.modelled(&determined.latency),
    });
    let rows = rows.collect();
    let file = file(&start.name, &determined);
    let Determined { constants, latency: _ } = determined;
    Ok(Calibrated { rows, constants: constants.into_iter().map(Fitted::from).collect(), file })
}

/// Returns the names of all constants that can be fitted.
pub fn constant_names() -> [&'static str; 8] {
    Coefficient::ALL.map(Coefficient::name)
}

/// Writes the file that turns `base` into the fitted model: the fitted constants, with their errors and old values as
/// comments.
fn file(base: &str, determined: &Determined) -> String {
    let mut text = format!("base: {base}\n");
    let mut last_section = "";
    for constant in &determined.constants {
        let Verdict::Fitted { error } = constant.verdict else { continue };
        let (section, key) = constant.coefficient.name().split_once('.').unwrap_or_default();
        if section != last_section {
            let _infallible = writeln!(text, "{section}:");
            last_section = section;
        }
        let (after, before) = (significant(constant.after), significant(constant.before));
        let error = 100.0 * error;
        let _infallible = writeln!(text, "  {key}: {after}  # ± {error:.1} %; {base} has {before}");
    }
    text
}

/// Rounds to six digits, more than anyone can measure.
fn significant(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

fn coefficient(name: &str) -> Result<Coefficient, CalibrateError> {
    let found = Coefficient::ALL.into_iter().find(|coefficient| coefficient.name() == name);
    found.ok_or_else(|| CalibrateError::UnknownConstant(name.to_owned()))
}

impl From<Constant> for Fitted {
    fn from(constant: Constant) -> Self {
        let Constant { coefficient, before, after, verdict } = constant;
        let error = match verdict {
            Verdict::Fitted { error } => Ok(error),
            Verdict::Asked => Err("--keep"),
            Verdict::Untouched => Err("no row depends on it"),
            Verdict::Undetermined => Err("the rows do not tell it from the others"),
        };
        Self { name: coefficient.name(), before, after, error }
    }
}
