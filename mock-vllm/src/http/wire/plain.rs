//! Answers that do not stream.

use super::usage::Usage;
use super::{Api, Envelope, Finish, push, push_finish, push_raw, push_stop_reason};
use crate::structured::tools::reply::ToolCall;
use vllm_engine::vllm_version::VllmVersion;

/// One whole choice.
#[derive(Clone, Debug)]
pub(crate) struct PlainChoice {
    pub(crate) content: ChoiceContent,
    pub(crate) finish: Finish,
    /// Log probabilities, as JSON.
    pub(crate) logprobs: Option<Vec<u8>>,
    /// Token ids, with `return_token_ids`.
    pub(crate) token_ids: Option<Vec<u32>>,
    pub(crate) prompt: PlainPrompt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ChoiceContent {
    Text(String),
    /// Text and tool calls, in chats only.
    Calls {
        content: Option<String>,
        tool_calls: Vec<ToolCall>,
    },
}

/// Fields about a prompt, if the request asks for them: once in a chat, in each choice of a completion.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlainPrompt {
    /// Log probabilities, as JSON.
    pub(crate) logprobs: Option<Vec<u8>>,
    pub(crate) token_ids: Option<Vec<u32>>,
    pub(crate) text: Option<String>,
}

// === impl ChoiceContent ===

impl ChoiceContent {
    /// Puts `echo` before the content.
    pub(crate) fn after(self, echo: &str) -> Self {
        match self {
            Self::Text(text) => Self::Text(format!("{echo}{text}")),
            Self::Calls { content, tool_calls } => {
                Self::Calls { content: Some(format!("{echo}{}", content.unwrap_or_default())), tool_calls }
            }
        }
    }
}

/// Writes the whole body, with the choices in order.
pub(crate) fn body(envelope: &Envelope, choices: &[PlainChoice], usage: Usage) -> Vec<u8> {
    let Envelope { api, version, id, created, model, role, fingerprint } = envelope;
    let mut out = b"{\"id\":".to_vec();
    push(&mut out, id);
    out.extend_from_slice(match api {
        Api::Chat => b",\"object\":\"chat.completion\",\"created\":",
        Api::Completion => b",\"object\":\"text_completion\",\"created\":",
    });
    push(&mut out, created);
    out.extend_from_slice(b",\"model\":");
    push(&mut out, model);
    out.extend_from_slice(b",\"choices\":[");
    for (index, choice) in choices.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"{\"index\":" } else { b",{\"index\":" });
        push(&mut out, &index);
        match api {
            Api::Chat => chat_choice(&mut out, choice, role, *version),
            Api::Completion => completion_choice(&mut out, choice, *version),
        }
    }
    out.push(b']');
    match version {
        VllmVersion::V0_8 => {}
        VllmVersion::V0_11 => out.extend_from_slice(b",\"service_tier\":null,\"system_fingerprint\":null"),
        VllmVersion::V0_33 => {
            out.extend_from_slice(b",\"service_tier\":null,\"system_fingerprint\":");
            push(&mut out, fingerprint);
        }
    }
    out.extend_from_slice(b",\"usage\":");
    usage.push_plain(&mut out, *api, *version);
    if *api == Api::Chat {
        chat_prompt(&mut out, choices.first().map(|choice| &choice.prompt), *version);
    }
    out.extend_from_slice(match version {
        VllmVersion::V0_8 => b"}",
        VllmVersion::V0_11 => b",\"kv_transfer_params\":null}",
        VllmVersion::V0_33 => {
            b",\"kv_transfer_params\":null,\"ec_transfer_params\":null,\"metrics\":null}".as_slice()
        }
    });
    out
}

fn chat_choice(out: &mut Vec<u8>, choice: &PlainChoice, role: &str, version: VllmVersion) {
    let PlainChoice { content, finish, logprobs, token_ids, prompt: _ } = choice;
    let (content, tool_calls) = match content {
        ChoiceContent::Text(text) => (Some(text), [].as_slice()),
        ChoiceContent::Calls { content, tool_calls } => (content.as_ref(), tool_calls.as_slice()),
    };
    out.extend_from_slice(b",\"message\":{\"role\":");
    push(out, role);
    if version == VllmVersion::V0_8 {
        out.extend_from_slice(b",\"reasoning_content\":null");
    }
    out.extend_from_slice(b",\"content\":");
    push(out, &content);
    if version != VllmVersion::V0_8 {
        out.extend_from_slice(
            b",\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null",
        );
    }
    // Since 0.33 an empty list is left out.
    if version != VllmVersion::V0_33 || !tool_calls.is_empty() {
        out.extend_from_slice(b",\"tool_calls\":");
        push(out, tool_calls);
    }
    out.extend_from_slice(match version {
        VllmVersion::V0_8 => b"},\"logprobs\":",
        VllmVersion::V0_11 => b",\"reasoning_content\":null},\"logprobs\":",
        VllmVersion::V0_33 => b",\"reasoning\":null},\"logprobs\":".as_slice(),
    });
    push_raw(out, logprobs.as_deref());
    push_finish(out, Some(finish));
    push_stop_reason(out, Some(finish));
    if version != VllmVersion::V0_8 {
        out.extend_from_slice(b",\"token_ids\":");
        push(out, token_ids);
    }
    if version == VllmVersion::V0_33 {
        out.extend_from_slice(b",\"routed_experts\":null,\"weight_versions\":null");
    }
    out.push(b'}');
}

fn completion_choice(out: &mut Vec<u8>, choice: &PlainChoice, version: VllmVersion) {
    let PlainChoice { content, finish, logprobs, token_ids, prompt } = choice;
    let text = match content {
        ChoiceContent::Text(text) => text,
        ChoiceContent::Calls { .. } => "",
    };
    out.extend_from_slice(b",\"text\":");
    push(out, text);
    out.extend_from_slice(b",\"logprobs\":");
    push_raw(out, logprobs.as_deref());
    push_finish(out, Some(finish));
    push_stop_reason(out, Some(finish));
    if version != VllmVersion::V0_8 {
        out.extend_from_slice(b",\"token_ids\":");
        push(out, token_ids);
    }
    out.extend_from_slice(b",\"prompt_logprobs\":");
    push_raw(out, prompt.logprobs.as_deref());
    if version != VllmVersion::V0_8 {
        out.extend_from_slice(b",\"prompt_token_ids\":");
        push(out, &prompt.token_ids);
    }
    if version == VllmVersion::V0_33 {
        out.extend_from_slice(b",\"routed_experts\":null,\"weight_versions\":null");
    }
    out.push(b'}');
}

/// Writes the fields after `usage` of a chat.
fn chat_prompt(out: &mut Vec<u8>, prompt: Option<&PlainPrompt>, version: VllmVersion) {
    let none = PlainPrompt::default();
    let PlainPrompt { logprobs, token_ids, text } = prompt.unwrap_or(&none);
    out.extend_from_slice(b",\"prompt_logprobs\":");
    push_raw(out, logprobs.as_deref());
    if version != VllmVersion::V0_8 {
        out.extend_from_slice(b",\"prompt_token_ids\":");
        push(out, token_ids);
    }
    if version == VllmVersion::V0_33 {
        out.extend_from_slice(b",\"prompt_text\":");
        push(out, text);
    }
}
