//! Flags of the pick and of its answer.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use inference_api::picker_config::PickerConfig;
use picking::picker::INDEX_CAPACITY;
use tracing::warn;

use ext_proc::compat::Compat;

#[derive(Args, Debug)]
#[command(next_help_heading = "Picking")]
pub(super) struct PickArgs {
    /// YAML file with policy values, read again when it changes. It overrides the flags below, and a pool's annotation
    /// inference.networking.x-k8s.io/routing-policy overrides it
    #[arg(long, value_name = "FILE")]
    pub(super) policy_file: Option<PathBuf>,
    /// Upstream's EndpointPickerConfig: the weights and thresholds of prefix cache, queue and KV cache are taken, and the log
    /// lists the rest. The flags below and the policy file override it, except for the saturation's
    #[arg(long, value_name = "FILE", conflicts_with = "config_text", hide_short_help = true)]
    config_file: Option<PathBuf>,
    /// The text of such a configuration
    #[arg(long, value_name = "YAML", hide_short_help = true)]
    config_text: Option<String>,
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
    /// Upstream's configuration; an empty one without a flag that names it.
    ///
    /// # Errors
    /// If it cannot be read or is not valid.
    pub(super) fn config(&self) -> anyhow::Result<PickerConfig> {
        let (name, text) = match (&self.config_file, &self.config_text) {
            (Some(path), _) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                (path.display().to_string(), text)
            }
            (None, Some(text)) => ("--config-text".to_owned(), text.clone()),
            (None, None) => return Ok(PickerConfig::default()),
        };
        let config = PickerConfig::parse(&text).with_context(|| format!("read {name}"))?;
        if !config.left_out.is_empty() {
            warn!(
                config = name,
                fields = config.left_out.join(", "),
                "Leaving out what the picker does not have"
            );
        }
        Ok(config)
    }

    pub(super) fn compat(&self) -> Compat {
        self.compat.0
    }
}
