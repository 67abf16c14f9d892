//! Flags of the log and of spans.

use clap::Args;

use super::values::parse_ratio;
use crate::log::Filter;
use crate::spans::Otlp;

#[derive(Args, Debug)]
#[command(next_help_heading = "Log (on stderr) and spans")]
pub(super) struct LogArgs {
    /// A level, or levels by module: `debug`, `warn,epp=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    pub(super) log_level: Filter,
    /// Send a span for each request to this OTLP receiver (gRPC), such as http://localhost:4317 [default: none]
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Share of requests that get a span, among those for which the proxy has not decided
    #[arg(
        long,
        value_name = "RATIO",
        default_value_t = 1.0,
        value_parser = parse_ratio,
        hide_short_help = true
    )]
    otlp_sample_ratio: f64,
}

impl LogArgs {
    /// The receiver of spans, if there is one.
    pub(super) fn otlp(&self) -> Option<Otlp> {
        let endpoint = self.otlp_endpoint.clone()?;
        Some(Otlp { endpoint, sample_ratio: self.otlp_sample_ratio })
    }
}
