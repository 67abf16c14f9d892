//! Flags of `serve` about how replies are written.

use crate::http::OutputConfig;
use crate::http::shape::ToolCalling;
use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Replies (as vLLM)")]
pub(super) struct OutputArgs {
    /// Let the model call tools by itself (tool_choice "auto"): it does when the user's last message names one.
    /// Needs --tool-call-parser
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_auto_tool_choice: bool,
    /// How the model writes its calls: hermes is Qwen's way, any other name is taken for it too
    #[arg(long, value_name = "NAME")]
    tool_call_parser: Option<String>,
    /// Most log probabilities per token that a request may ask for; -1 = the whole vocabulary
    #[arg(long, value_name = "N", default_value_t = 20, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    max_logprobs: i64,
    /// Write token_id:N for tokens in log probabilities
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    return_tokens_as_token_ids: bool,
}

// === impl OutputArgs ===

impl OutputArgs {
    /// # Errors
    /// For flags that contradict each other.
    pub(super) fn into_config(self) -> Result<OutputConfig, String> {
        let Self { enable_auto_tool_choice, tool_call_parser, max_logprobs, return_tokens_as_token_ids } =
            self;
        let tool_calling = match (enable_auto_tool_choice, tool_call_parser) {
            (true, None) => return Err("--enable-auto-tool-choice requires --tool-call-parser".to_owned()),
            (true, Some(_)) => ToolCalling::On,
            // vLLM: without the switch the parser is not loaded.
            (false, _) => ToolCalling::Off,
        };
        Ok(OutputConfig { tool_calling, max_logprobs, tokens_as_ids: return_tokens_as_token_ids })
    }
}
