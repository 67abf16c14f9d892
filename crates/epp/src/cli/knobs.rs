//! The policy's flags, one for each knob.

use clap::Args;

use crate::tuning::{Knob, Patch};

#[derive(Args, Debug)]
#[command(next_help_heading = "Policy values (for pools under PREFIX_CACHE)")]
pub(super) struct KnobArgs {
    #[arg(long, value_name = "RATIO", help = help(Knob::Threshold), value_parser = |text: &str| parse(Knob::Threshold, text))]
    threshold: Option<f64>,
    #[arg(long, value_name = "TOKENS", help = help(Knob::SpillTokens), value_parser = |text: &str| parse(Knob::SpillTokens, text))]
    spill_tokens: Option<f64>,
    #[arg(long, value_name = "TOKENS", help = help(Knob::QueueTokens), value_parser = |text: &str| parse(Knob::QueueTokens, text), hide_short_help = true)]
    queue_tokens: Option<f64>,
    #[arg(long, value_name = "SHARE", help = help(Knob::Stall), value_parser = |text: &str| parse(Knob::Stall, text), hide_short_help = true)]
    stall: Option<f64>,
    #[arg(long, value_name = "TOKENS", help = help(Knob::KvTokens), value_parser = |text: &str| parse(Knob::KvTokens, text), hide_short_help = true)]
    kv_tokens: Option<f64>,
    #[arg(long, value_name = "RATIO", help = help(Knob::KvThreshold), value_parser = |text: &str| parse(Knob::KvThreshold, text), hide_short_help = true)]
    kv_threshold: Option<f64>,
}

impl KnobArgs {
    /// The values that the flags set.
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

/// The help text of a knob's flag, with its built-in value.
fn help(knob: Knob) -> String {
    let meaning = match knob {
        Knob::Threshold => "Share of the prompt that a pod must exceed for its prefix to count",
        Knob::SpillTokens => {
            "Tokens of work that the holder of a prefix may have more than the least busy pod and still be picked"
        }
        Knob::QueueTokens => "Tokens of work that each request ahead counts as",
        Knob::Stall => "Share of a request's uncached tokens that each request ahead adds to them",
        Knob::KvTokens => "Tokens of work that a full KV cache counts as",
        Knob::KvThreshold => "KV cache usage from which the cache counts as filling up",
    };
    format!("{meaning} [default: {}]", knob.built_in())
}

fn parse(knob: Knob, text: &str) -> Result<f64, String> {
    let range = knob.range();
    let expected = || format!("expected a number from {} to {}", range.start(), range.end());
    knob.check(text.parse().map_err(|_| expected())?).map_err(|_| expected())
}
