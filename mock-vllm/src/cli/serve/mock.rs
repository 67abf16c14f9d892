//! Flags of `serve` that vLLM does not have: time, replies, logs.

use crate::clock::TimeScale;
use crate::faults::Rule;
use crate::metrics::Runtime;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use vllm_engine::vllm_version::VllmVersion;

#[derive(Debug, Args)]
#[command(next_help_heading = "Mock")]
pub(super) struct MockArgs {
    /// Virtual seconds per second of yours: 10 makes everything ten times faster
    #[arg(long, value_name = "F", default_value_t = TimeScale::default())]
    pub(super) time_scale: TimeScale,
    /// Scripted replies, a YAML list of {last_user_text: [..], reply: ..}; default: the tutorial's
    #[arg(long, value_name = "FILE")]
    pub(super) scripted_replies: Option<PathBuf>,
    /// File to append one JSON line to for each request that ended
    #[arg(long, value_name = "FILE")]
    pub(super) request_log: Option<PathBuf>,
    /// File to append the changes of the prefix cache to, for `mock-vllm oracle`; pods may share the file
    #[arg(long, value_name = "FILE")]
    pub(super) cache_log: Option<PathBuf>,
    /// Fault to inject, like status:code=429,rate=0.3; may be repeated; `mock-vllm faults` lists them
    #[arg(long, value_name = "FAULT", action = clap::ArgAction::Append)]
    pub(super) fault: Vec<Rule>,
    /// Version of vLLM to imitate: metric names, error bodies, fields of chunks, KV events
    #[arg(long, value_name = "VERSION", value_parser = vllm_version(), default_value = VllmVersion::default().name())]
    pub(super) vllm_version: VllmVersion,
    #[command(flatten)]
    pub(super) own: OwnArgs,
    /// Engine whose metrics /metrics shows; the picker reads them by the pool's annotation
    /// inference.networking.x-k8s.io/model-server-runtime
    #[arg(long, value_name = "RUNTIME", value_enum, default_value_t = RuntimeName(Runtime::Vllm))]
    pub(super) model_server_runtime: RuntimeName,
    /// Answer requests for any model's name, and below any path; for pods that stand in for a server that is not vLLM
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    pub(super) any_model: bool,
    /// Have as many KV blocks as a request of --max-model-len needs, if the memory holds fewer; for pods whose real GPU
    /// is not known
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    pub(super) grow_kv_cache: bool,
    /// Name of the pod in the request log
    #[arg(long, value_name = "NAME", env = "POD_NAME", default_value = "mock-vllm")]
    pub(super) pod_name: String,
}

/// Things that the mock tells and vLLM does not.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mock")]
pub(super) struct OwnArgs {
    /// Show the mock's own metrics, mock_vllm:*, in /metrics: how late its tokens are
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    pub(super) mock_metrics: bool,
    /// Have the mock's own endpoints and headers, /debug/* and x-mock-vllm-*; without them it answers as vLLM alone
    #[arg(long, value_name = "BOOL", require_equals = true, env = "MOCK_VLLM_ENDPOINTS", default_value = "true", value_parser = super::values::flag, action = clap::ArgAction::Set)]
    pub(super) mock_endpoints: bool,
}

/// A runtime, as the flag names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RuntimeName(pub(super) Runtime);

impl ValueEnum for RuntimeName {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(Runtime::Vllm), Self(Runtime::Sglang)]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self.0 {
            Runtime::Vllm => "vllm",
            Runtime::Sglang => "sglang",
        }))
    }
}

fn vllm_version() -> impl TypedValueParser<Value = VllmVersion> {
    let value = |version: VllmVersion| match version {
        VllmVersion::V0_8 => PossibleValue::new(version.name()).help("0.8.5, of the tutorial's time"),
        VllmVersion::V0_11 | VllmVersion::V0_33 => PossibleValue::new(version.name()),
    };
    PossibleValuesParser::new(VllmVersion::ALL.map(value)).map(|name| {
        let named = VllmVersion::ALL.into_iter().find(|version| version.name() == name);
        named.expect("the possible values are the names")
    })
}
