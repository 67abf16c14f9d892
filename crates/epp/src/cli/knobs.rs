//! The policy's flags, one for each knob.

use clap::Args;

use crate::tuning::{Knob, Patch};

#[derive(Args, Debug)]
#[command(next_help_heading = "Policy (of pools under PREFIX_CACHE)")]
pub(super) struct KnobArgs {
    /// Share of the prompt that a pod must hold, and more, for its prefix to count [default: 0.5]
    #[arg(long, value_name = "RATIO", value_parser = |text: &str| parse(Knob::Threshold, text))]
    threshold: Option<f64>,
    /// Tokens of work that the holder of a prefix may be behind the least busy pod and still be picked [default: 128]
    #[arg(long, value_name = "TOKENS", value_parser = |text: &str| parse(Knob::SpillTokens, text))]
    spill_tokens: Option<f64>,
    /// Tokens of work that each request ahead counts as [default: 64]
    #[arg(long, value_name = "TOKENS", value_parser = |text: &str| parse(Knob::QueueTokens, text))]
    queue_tokens: Option<f64>,
    /// Share of a request's uncached tokens that each request ahead adds to them [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = |text: &str| parse(Knob::Stall, text))]
    stall: Option<f64>,
    /// Tokens of work that a full KV cache counts as [default: 1024]
    #[arg(long, value_name = "TOKENS", value_parser = |text: &str| parse(Knob::KvTokens, text))]
    kv_tokens: Option<f64>,
    /// KV-cache usage from which it counts [default: 0.9]
    #[arg(long, value_name = "RATIO", value_parser = |text: &str| parse(Knob::KvThreshold, text))]
    kv_threshold: Option<f64>,
}

impl KnobArgs {
    /// What the flags set.
    pub(super) fn patch(&self) -> Patch {
        let Self { threshold, spill_tokens, queue_tokens, stall, kv_tokens, kv_threshold } = *self;
        let flags = [
            (Knob::Threshold, threshold),
            (Knob::SpillTokens, spill_tokens),
            (Knob::QueueTokens, queue_tokens),
            (Knob::Stall, stall),
            (Knob::KvTokens, kv_tokens),
            (Knob::KvThreshold, kv_threshold),
        ];
        let given = flags.into_iter().filter_map(|(knob, value)| Some((knob, value?)));
        Patch::try_new(given.collect()).expect("the parser has checked each value")
    }
}

fn parse(knob: Knob, text: &str) -> Result<f64, String> {
    let range = knob.range();
    let expected = || format!("expected a number from {} to {}", range.start(), range.end());
    knob.check(text.parse().map_err(|_| expected())?).map_err(|_| expected())
}
