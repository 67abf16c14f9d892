//! Frames of a stream. Their common parts are written once, so that a frame costs one pass over its own text.

use super::usage::Usage;
use super::{Api, Envelope, Finish, extend, push, push_finish, push_raw, push_stop_reason};
use crate::structured::tools::stream::ToolDelta;
use vllm_engine::vllm_version::VllmVersion;

#[derive(Debug)]
pub(crate) struct ChunkWriter {
    api: Api,
    version: VllmVersion,
    /// Beginning of a frame, up to the first choice.
    head: Vec<u8>,
    /// Role, as JSON.
    role: Vec<u8>,
    /// Fingerprint, as JSON.
    fingerprint: Vec<u8>,
    last_frame: LastFrame,
}

/// Last frame before `[DONE]`, which carries the fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastFrame {
    Finish,
    Usage,
}

/// New part of one choice since its last frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkChoice<'a> {
    pub(crate) index: usize,
    pub(crate) delta: Delta<'a>,
    /// Log probabilities, as JSON.
    pub(crate) logprobs: Option<&'a [u8]>,
    /// Token ids, with `return_token_ids`.
    pub(crate) token_ids: Option<&'a [u32]>,
    /// Token ids of the prompt, for completions only, in the choice's first frame.
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
    pub(crate) finish: Option<&'a Finish>,
    /// Usage so far, with `continuous_usage_stats`.
    pub(crate) usage: Option<Usage>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Delta<'a> {
    Text(&'a str),
    /// Part of a chat's reply that a parser reads; `None` if the parser has nothing.
    Parsed(Option<&'a ToolDelta>),
}

/// Fields about the prompt in the first frames of a chat, if the request asks for them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PromptFields<'a> {
    pub(crate) token_ids: Option<&'a [u32]>,
    pub(crate) text: Option<&'a str>,
}

// === impl ChunkWriter ===

impl ChunkWriter {
    pub(crate) fn new(envelope: &Envelope, last_frame: LastFrame) -> Self {
        let Envelope { api, version, id, created, model, role, fingerprint } = envelope;
        let object = match api {
            Api::Chat => "chat.completion.chunk",
            Api::Completion => "text_completion",
        };
        let mut head = b"data: {\"id\":".to_vec();
        push(&mut head, id);
        extend(&mut head, &[b",\"object\":\"", object.as_bytes(), b"\",\"created\":"]);
        push(&mut head, created);
        head.extend_from_slice(b",\"model\":");
        push(&mut head, model);
        head.extend_from_slice(b",\"choices\":[");
        let json = |text: &String| {
            let mut out = Vec::new();
            push(&mut out, text);
            out
        };
        Self {
            api: *api,
            version: *version,
            head,
            role: json(role),
            fingerprint: json(fingerprint),
            last_frame,
        }
    }

    /// Writes the first frame of a chat's choice, which is sent with the first token; completions have none.
    pub(crate) fn role_frame(
        &self,
        out: &mut Vec<u8>,
        index: usize,
        prompt: PromptFields<'_>,
        usage: Option<Usage>,
    ) {
        self.begin(out, index);
        extend(out, &[b",\"delta\":{\"role\":", &self.role, b",\"content\":\"\"}"]);
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":null}]");
        self.push_usage(out, usage);
        let PromptFields { token_ids, text } = prompt;
        match self.version {
            VllmVersion::V0_8 => {}
            VllmVersion::V0_11 | VllmVersion::V0_33 => {
                out.extend_from_slice(b",\"prompt_token_ids\":");
                push(out, &token_ids);
            }
        }
        if self.version == VllmVersion::V0_33 {
            out.extend_from_slice(b",\"prompt_text\":");
            push(out, &text);
        }
        out.extend_from_slice(b"}\n\n");
    }

    /// Writes the end of the conversation's last message, which a chat with `echo` repeats.
    pub(crate) fn echo_frame(&self, out: &mut Vec<u8>, index: usize, text: &str, usage: Option<Usage>) {
        self.begin(out, index);
        out.extend_from_slice(b",\"delta\":{\"content\":");
        push(out, text);
        out.extend_from_slice(b"},\"logprobs\":null,\"finish_reason\":null}]");
        self.push_usage(out, usage);
        out.extend_from_slice(b"}\n\n");
    }

    pub(crate) fn choice_frame(&self, out: &mut Vec<u8>, choice: &ChunkChoice<'_>) {
        self.begin(out, choice.index);
        match self.api {
            Api::Chat => self.chat_choice(out, choice),
            Api::Completion => self.completion_choice(out, choice),
        }
        self.push_usage(out, choice.usage);
        if self.version == VllmVersion::V0_33 {
            if self.last_frame == LastFrame::Finish && choice.finish.is_some() {
                extend(out, &[b",\"system_fingerprint\":", &self.fingerprint]);
            }
            out.extend_from_slice(b",\"kv_transfer_params\":null");
        }
        out.extend_from_slice(b"}\n\n");
    }

    /// Writes the last frame, if the request asks for usage.
    pub(crate) fn usage_frame(&self, out: &mut Vec<u8>, usage: Usage) {
        extend(out, &[&self.head, b"],\"usage\":"]);
        usage.push_last(out, self.api, self.version);
        if self.version == VllmVersion::V0_33 {
            extend(out, &[b",\"system_fingerprint\":", &self.fingerprint]);
        }
        out.extend_from_slice(b"}\n\n");
    }

    fn chat_choice(&self, out: &mut Vec<u8>, choice: &ChunkChoice<'_>) {
        let ChunkChoice { index: _, delta, logprobs, token_ids, prompt_token_ids: _, finish, usage: _ } =
            choice;
        match delta {
            Delta::Text(text) => {
                out.extend_from_slice(b",\"delta\":{\"content\":");
                push(out, text);
                out.push(b'}');
            }
            Delta::Parsed(None) => out.extend_from_slice(b",\"delta\":{}"),
            Delta::Parsed(Some(parsed)) => self.push_parsed(out, parsed),
        }
        out.extend_from_slice(b",\"logprobs\":");
        push_raw(out, *logprobs);
        push_finish(out, *finish);
        if finish.is_some() {
            push_stop_reason(out, *finish);
        }
        if self.version != VllmVersion::V0_8 {
            out.extend_from_slice(b",\"token_ids\":");
            push(out, token_ids);
        }
        if self.version == VllmVersion::V0_33 && finish.is_some() {
            out.extend_from_slice(b",\"weight_versions\":null");
        }
        out.extend_from_slice(b"}]");
    }

    fn completion_choice(&self, out: &mut Vec<u8>, choice: &ChunkChoice<'_>) {
        let ChunkChoice { index: _, delta, logprobs, token_ids, prompt_token_ids, finish, usage: _ } = choice;
        let text = match delta {
            Delta::Text(text) => text,
            Delta::Parsed(_) => "",
        };
        out.extend_from_slice(b",\"text\":");
        push(out, text);
        out.extend_from_slice(b",\"logprobs\":");
        push_raw(out, *logprobs);
        push_finish(out, *finish);
        push_stop_reason(out, *finish);
        if self.version != VllmVersion::V0_8 {
            out.extend_from_slice(b",\"prompt_token_ids\":");
            push(out, prompt_token_ids);
            out.extend_from_slice(b",\"token_ids\":");
            push(out, token_ids);
        }
        if self.version == VllmVersion::V0_33 {
            out.extend_from_slice(b",\"weight_versions\":null");
        }
        out.extend_from_slice(b"}]");
    }

    /// Writes a delta. vLLM 0.33 sets its content even if there is none.
    fn push_parsed(&self, out: &mut Vec<u8>, delta: &ToolDelta) {
        out.extend_from_slice(b",\"delta\":");
        if self.version != VllmVersion::V0_33 {
            return push(out, delta);
        }
        let ToolDelta { content, tool_calls } = delta;
        out.extend_from_slice(b"{\"content\":");
        push(out, content);
        if !tool_calls.is_empty() {
            out.extend_from_slice(b",\"tool_calls\":");
            push(out, tool_calls);
        }
        out.push(b'}');
    }

    fn begin(&self, out: &mut Vec<u8>, index: usize) {
        extend(out, &[&self.head, b"{\"index\":"]);
        push(out, &index);
    }

    /// Writes usage. Completions before 0.33 have the field even without a value.
    fn push_usage(&self, out: &mut Vec<u8>, usage: Option<Usage>) {
        let is_dumped = self.api == Api::Completion && self.version != VllmVersion::V0_33;
        match usage {
            Some(usage) => {
                out.extend_from_slice(b",\"usage\":");
                usage.push_continuous(out, self.api, self.version);
            }
            None if is_dumped => out.extend_from_slice(b",\"usage\":null"),
            None => {}
        }
    }
}
