//! Flags of `serve` about how replies are written.

use crate::http::OutputConfig;
use crate::http::keep_alive::KeepAlive;
use crate::http::shape::ToolCalling;
use clap::Args;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Replies (as vLLM)")]
pub(super) struct OutputArgs {
    /// Let the model call tools by itself (tool_choice "auto"): it does if the user's last message names one. Needs
    /// --tool-call-parser
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_auto_tool_choice: bool,
    /// Format of the model's tool calls: hermes, which is Qwen's; any other name means hermes too
    #[arg(long, value_name = "NAME")]
    tool_call_parser: Option<String>,
    /// Most log probabilities per token that a request may ask for; -1 = the whole vocabulary
    #[arg(long, value_name = "N", default_value_t = 20, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    max_logprobs: i64,
    /// Write tokens as token_id:N in log probabilities
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    return_tokens_as_token_ids: bool,
    /// Tokens per frame of a stream; the first and the last frame do not wait
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    stream_interval: u32,
    /// Seconds of virtual time after which a silent stream sends a comment; 0 = never
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    sse_keep_alive_interval: f64,
}

// === impl OutputArgs ===

impl OutputArgs {
    /// Converts the flags into the configuration of replies.
    ///
    /// # Errors
    /// Fails if flags contradict each other.
    pub(super) fn into_config(self) -> Result<OutputConfig, String> {
        let Self {
            enable_auto_tool_choice,
            tool_call_parser,
            max_logprobs,
            return_tokens_as_token_ids,
            stream_interval,
            sse_keep_alive_interval,
        } = self;
        let tool_calling = match (enable_auto_tool_choice, tool_call_parser) {
            (true, None) => return Err("--enable-auto-tool-choice requires --tool-call-parser".to_owned()),
            (true, Some(_)) => ToolCalling::On,
            // vLLM does not load the parser without the switch.
            (false, _) => ToolCalling::Off,
        };
        // In vLLM, only a positive number of seconds switches the comments on.
        let silence = Duration::try_from_secs_f64(sse_keep_alive_interval).ok();
        let keep_alive = KeepAlive(silence.filter(|silence| !silence.is_zero()));
        Ok(OutputConfig {
            tool_calling,
            max_logprobs,
            tokens_as_ids: return_tokens_as_token_ids,
            stream_interval,
            keep_alive,
        })
    }
}
