//! Flags of the pick and of its answer.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use picking::picker::INDEX_CAPACITY;

use ext_proc::compat::Compat;

#[derive(Args, Debug)]
#[command(next_help_heading = "Picking")]
pub(super) struct PickArgs {
    /// YAML file with policy values, read again when it changes. It overrides the flags below, and a pool's annotation
    /// inference.networking.x-k8s.io/routing-policy overrides it
    #[arg(long, value_name = "FILE")]
    pub(super) policy_file: Option<PathBuf>,
    /// Answer clients that send `x-warmpath-explain: true` with the decision in the header x-warmpath-decision. It has pod
    /// names and addresses, so allow it only if every client may know them
    #[arg(long)]
    pub(super) explain_to_clients: bool,
    /// Bound of the prefix index, in blocks per endpoint; a prompt of 128 KB has about 580
    #[arg(long, value_name = "BLOCKS", default_value_t = INDEX_CAPACITY, hide_short_help = true)]
    pub(super) index_capacity: NonZeroU32,
    /// Number of endpoints that the proxy gets for a request: the picked one, then fallbacks in order
    #[arg(long, value_name = "COUNT", default_value = "1", hide_short_help = true)]
    pub(super) endpoints_per_pick: NonZeroUsize,
    /// Give the replies of another picker: its headers, its error texts and its error codes in metrics
    #[arg(long, value_enum, value_name = "PICKER", default_value_t = Style(Compat::None), hide_short_help = true)]
    compat: Style,
    /// Number of decisions that /debug/decisions keeps
    #[arg(long, value_name = "COUNT", default_value_t = 1000, hide_short_help = true)]
    pub(super) decisions: usize,
    /// Make ties, weighted models and request ids repeatable [default: random]
    #[arg(long, value_name = "NUMBER", hide_short_help = true)]
    pub(super) seed: Option<u64>,
}

/// A style of replies, as the flag names it.
#[derive(Clone, Copy, Debug)]
struct Style(Compat);

impl ValueEnum for Style {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(Compat::None), Self(Compat::GieV04)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self.0 {
            Compat::None => ("none", "The picker's own"),
            Compat::GieV04 => ("gie-v0.4", "The style of Gateway API Inference Extension v0.4"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

impl PickArgs {
    pub(super) fn compat(&self) -> Compat {
        self.compat.0
    }
}
