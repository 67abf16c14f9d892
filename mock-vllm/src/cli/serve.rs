//! The flags of `serve`, and the pod that they describe. Each group of flags has a file of its own.

mod api;
mod chat;
mod engine;
pub(super) mod latency;
mod listen;
mod lora;
mod mock;
mod output;
mod values;

use crate::http::{OptionalEndpoints, OtherNames, PodConfig};
use crate::server::PodSettings;
use api::ApiArgs;
use chat::ChatArgs;
use clap::Args;
use engine::{EngineArgs, tokenizer_source};
use latency::LatencyArgs;
use listen::ListenArgs;
use lora::LoraArgs;
use mock::{MockArgs, OwnArgs};
use output::OutputArgs;
use vllm_engine::config::EngineConfig;

#[derive(Debug, Args)]
#[command(after_help = DIALECT)]
pub(super) struct ServeArgs {
    /// Model name or path; /v1/models shows it as root, and it is the served name if no other is given
    #[arg(value_name = "MODEL")]
    model_tag: Option<String>,
    /// Model name or path, like MODEL, which wins
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// YAML file with flags, by their names without dashes; those of the command line win
    #[arg(long = "config", value_name = "FILE")]
    _config: Option<std::path::PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    chat: ChatArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    lora: LoraArgs,
    #[command(flatten)]
    latency: LatencyArgs,
    #[command(flatten)]
    mock: MockArgs,
    #[command(flatten)]
    pub(super) listen: ListenArgs,
    /// Filter of the log on stderr: a level, or `target=level` pairs
    #[arg(long, value_name = "FILTER", env = "MOCK_VLLM_LOG", default_value = "info")]
    pub(super) log_filter: String,
}

const DIALECT: &str = "\
vLLM's dialect: --flag_x is --flag-x, --no-x is --x=false and --x is --x=true, the last of a repeated flag wins, and
the beginning of a flag is the flag if no other begins so.
Flags of vLLM that have no meaning here (--dtype, --enforce-eager, --load-format, ...) are accepted and logged.
Any other flag is an error that names it.";

// === impl ServeArgs ===

impl ServeArgs {
    /// Converts the flags into the settings of a pod.
    ///
    /// # Errors
    /// Fails if values contradict each other.
    pub(super) fn into_settings(self) -> Result<PodSettings, String> {
        let Self {
            model_tag,
            model,
            _config: _,
            api,
            output,
            chat,
            engine,
            lora,
            latency,
            mock,
            listen,
            log_filter: _,
        } = self;
        let model = model_tag.or(model).ok_or("which model? give its name: mock-vllm serve MODEL")?;
        let MockArgs {
            time_scale,
            scripted_replies,
            request_log,
            cache_log,
            fault,
            vllm_version,
            own: OwnArgs { mock_metrics, mock_endpoints },
            model_server_runtime,
            any_model,
            grow_kv_cache,
            pod_name,
        } = mock;
        let (jitter, latency) = (latency.jitter, latency.choose(&model, engine.tensor_parallel_size)?);
        let lora = lora.settings()?;
        let (kv_events, kv_event_format) = (engine.kv_events()?, engine.kv_event_format(vllm_version));
        let engine_config = EngineConfig {
            kv_events: kv_events.is_on(),
            ..engine.config(&latency, grow_kv_cache, vllm_version, lora.max_loras)?
        };
        let (queue_limits, hidden_metrics) =
            (engine.queue_limits(), engine.shows_hidden_metrics(vllm_version));
        let (block_size, cache_flags) = (engine.block_size(), engine.cache_flags());
        let EngineArgs { seed, tokenizer, .. } = engine;
        let tokenizer = tokenizer_source(tokenizer.as_deref(), &model)?;
        let endpoints = OptionalEndpoints { mock: mock_endpoints, ..api.endpoints(lora.updates) };
        let http = PodConfig {
            endpoints,
            output: output.into_config()?,
            other_names: if any_model { OtherNames::Answered } else { OtherNames::NotFound },
            ..api.into_config(model, (pod_name, vllm_version), &engine_config, block_size)
        };
        Ok(PodSettings {
            http,
            engine: engine_config,
            latency,
            jitter,
            seed,
            time_scale,
            tokenizer,
            chat: chat.config()?,
            scripted_replies,
            request_log,
            cache_log,
            faults: fault,
            cache_flags,
            kv_events,
            kv_event_format,
            runtime: model_server_runtime.0,
            hidden_metrics,
            mock_metrics,
            rank: listen.rank(),
            queue_limits,
            lora_modules: lora.modules,
        })
    }
}
