//! Flags that say how the picker reads the engines: their metrics, their KV events, their tokens.

use std::sync::LazyLock;
use std::time::Duration;

use clap::Args;
use humantime::format_duration;
use inference_api::picker_config::Saturation;
use picking::picker::SCRAPE_INTERVAL;
use scheduling::saturation::Thresholds;

use super::values::{parse_duration, parse_ratio};
use crate::kv_events;

/// [`SCRAPE_INTERVAL`] as a user writes it.
static DEFAULT_SCRAPE_INTERVAL: LazyLock<String> =
    LazyLock::new(|| format_duration(SCRAPE_INTERVAL).to_string());

#[derive(Args, Debug)]
#[command(next_help_heading = "Engines")]
pub(super) struct EngineArgs {
    /// Time between two scrapes of an endpoint. Idle endpoints are scraped half as often if the permitted age of metrics
    /// allows it
    #[arg(long, value_name = "DURATION", default_value = DEFAULT_SCRAPE_INTERVAL.as_str(), value_parser = parse_duration)]
    pub(super) scrape_interval: Duration,
    /// Metrics older than this, and older than two scrape intervals, do not count
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "2s",
        value_parser = parse_duration,
        hide_short_help = true
    )]
    pub(super) max_metrics_age: Duration,
    /// A pod with a longer queue has no capacity for requests that are not critical
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = Thresholds::default().queue_depth,
        hide_short_help = true
    )]
    saturation_queue_depth: u32,
    /// A pod that uses more of its KV cache has no capacity for requests that are not critical
    #[arg(
        long,
        value_name = "RATIO",
        default_value_t = Thresholds::default().kv_usage,
        value_parser = parse_ratio,
        hide_short_help = true
    )]
    saturation_kv_usage: f64,
    /// A pod whose metrics are older, and older than two scrape intervals, has no capacity for requests that are not critical
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "200ms",
        value_parser = parse_duration,
        hide_short_help = true
    )]
    saturation_metrics_age: Duration,
    /// Port of each engine's KV events (ZMQ), for pools with the annotation
    /// inference.networking.x-k8s.io/prefix-cache-mode: precise; an endpoint's kvEvents overrides it
    #[arg(long, value_name = "PORT", default_value_t = 5557, hide_short_help = true)]
    kv_events_port: u16,
    /// Port where each engine repeats its KV events; an endpoint's kvReplay overrides it [default: none]
    #[arg(long, value_name = "PORT", hide_short_help = true)]
    kv_replay_port: Option<u16>,
    /// Longest time that a request of such a pool waits for its token ids from a pod's /v1/…/render or /tokenize; after
    /// that the picker estimates
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "100ms",
        value_parser = parse_duration,
        hide_short_help = true
    )]
    pub(super) tokenize_timeout: Duration,
}

impl EngineArgs {
    /// The limits above which a pod has no capacity for requests that are not critical.
    pub(super) fn saturation(&self, config: &Saturation) -> Thresholds {
        Thresholds {
            queue_depth: config.queue_depth.unwrap_or(self.saturation_queue_depth),
            kv_usage: config.kv_usage.unwrap_or(self.saturation_kv_usage),
            metrics_age: config.metrics_age.unwrap_or(self.saturation_metrics_age),
        }
    }

    /// The ports of KV events.
    pub(super) fn kv_ports(&self) -> kv_events::follow::KvPorts {
        kv_events::follow::KvPorts { events: self.kv_events_port, replay: self.kv_replay_port }
    }
}
