//! The latency model's constants from times measured on a real GPU, step by step or request by request.
//! What a request waits for while others are served is not in the model: such requests must be left out before.

use std::num::NonZeroU32;
use std::time::Duration;

use vllm_engine::latency::LatencyModel;
use vllm_engine::latency::calibration::{file, step};
use vllm_engine::latency::fit::determined::{Constant, Determined, TooFew, Verdict, fit_determined};
use vllm_engine::latency::fit::{Knob, Observation, Place};
use vllm_engine::latency::presets::{self, PresetError};
use vllm_engine::step::StepPlan;

/// The preset that a fit starts from.
#[derive(Clone, Debug, PartialEq)]
pub struct Start {
    name: String,
    latency: LatencyModel,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    Step(Step),
    /// From sending a request until its first token, on an idle server.
    FirstToken(Prompt, Duration),
    /// From the first token to the last one, on a server that has nothing else to do.
    Decode {
        prompt_tokens: u32,
        output_tokens: u32,
        time: Duration,
    },
}

/// One step of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Requests that decode one token, and the tokens that each of them has behind it.
    pub decode_requests: u32,
    pub decode_context: u32,
    /// New tokens of one prompt, and those of it that are there already.
    pub prefill_tokens: u32,
    pub prefill_context: u32,
    pub time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prompt {
    pub tokens: u32,
    pub cached_tokens: u32,
}

/// How a fit is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of constants that stay as they are.
    pub keep: Vec<String>,
    /// Prompt tokens that a step takes at most.
    pub max_num_batched_tokens: NonZeroU32,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibrated {
    /// As many as samples, in their order.
    pub rows: Vec<Row>,
    pub constants: Vec<Fitted>,
    /// For `mock-vllm --latency-calibration`.
    pub file: String,
}

/// A sample, and what the model makes of it before and after the fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub what: String,
    pub measured: Duration,
    pub before: Duration,
    pub after: Duration,
}

/// A constant, by the name and in the unit that the file has for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fitted {
    pub name: &'static str,
    pub before: f64,
    pub after: f64,
    /// Relative standard error; `Err`: why it was kept.
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
    /// `a10-doc`, or `<gpu>/<model>`.
    ///
    /// # Errors
    /// Names the presets that there are.
    pub fn preset(name: &str) -> Result<Self, PresetError> {
        Ok(Self { name: name.to_owned(), latency: presets::named(name)? })
    }

    /// The figures of a model, by the name that a server has for it, on a GPU.
    ///
    /// # Errors
    /// For a model or GPU without figures.
    pub fn on_gpu(gpu: &str, served: &str) -> Result<Self, PresetError> {
        Self::preset(&presets::name_on_gpu(gpu, served)?)
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

// === impl Sample ===

impl Sample {
    fn observation(self, max_num_batched_tokens: NonZeroU32) -> Observation {
        let (steps, place, measured) = match self {
            Self::Step(sample) => (vec![(1.0, sample.plan())], Place::Engine, sample.time),
            Self::FirstToken(prompt, time) => (prompt.steps(max_num_batched_tokens), Place::Client, time),
            Self::Decode { prompt_tokens, output_tokens, time } => {
                let n_steps = output_tokens.saturating_sub(1);
                // A step's time grows evenly with the context: the middle one stands for all.
                let plan = step([(prompt_tokens + n_steps / 2, 1, false)]);
                (vec![(f64::from(n_steps), plan)], Place::Engine, time)
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
    /// As the engine schedules a prompt that is alone: chunk by chunk, the last token always computed.
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

// === impl Row ===

impl Row {
    /// Relative errors of the model before and after the fit.
    pub fn misses(&self) -> (f64, f64) {
        let miss = |modelled: Duration| modelled.as_secs_f64() / self.measured.as_secs_f64() - 1.0;
        (miss(self.before), miss(self.after))
    }
}

/// Fits what `samples` determine, and keeps the rest of `start`. Samples must have a time above zero, and a step or a
/// token to spend it on.
///
/// # Errors
/// With too few samples, or for a constant to keep that there is not.
pub fn calibrate(start: &Start, options: &Options, samples: &[Sample]) -> Result<Calibrated, CalibrateError> {
    let keep: Vec<Knob> = options.keep.iter().map(|name| knob(name)).collect::<Result<_, _>>()?;
    let observations: Vec<Observation> =
        samples.iter().map(|sample| sample.observation(options.max_num_batched_tokens)).collect();
    let determined = fit_determined(start.latency, &keep, &observations)?;
    let rows = samples.iter().zip(&observations).map(|(sample, observation)| Row {
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

/// Names of all constants that can be fitted.
pub fn constant_names() -> [&'static str; 8] {
    Knob::ALL.map(Knob::name)
}

fn knob(name: &str) -> Result<Knob, CalibrateError> {
    let found = Knob::ALL.into_iter().find(|knob| knob.name() == name);
    found.ok_or_else(|| CalibrateError::UnknownConstant(name.to_owned()))
}

impl From<Constant> for Fitted {
    fn from(constant: Constant) -> Self {
        let Constant { knob, before, after, verdict } = constant;
        let error = match verdict {
            Verdict::Fitted { error } => Ok(error),
            Verdict::Asked => Err("--keep"),
            Verdict::Untouched => Err("no row depends on it"),
            Verdict::Undetermined => Err("the rows do not tell it from the others"),
        };
        Self { name: knob.name(), before, after, error }
    }
}
