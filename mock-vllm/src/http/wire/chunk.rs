//! Frames of a stream. What all frames of a stream share is spelled once; a frame costs one pass over its own text.

use super::usage::Usage;
use super::{Api, Envelope, Finish, extend, push, push_finish, push_raw, push_stop_reason};
use crate::structured::tools::stream::Delta as ToolDelta;
use vllm_engine::vllm_version::VllmVersion;

#[derive(Debug)]
pub(crate) struct ChunkWriter {
    api: Api,
    version: VllmVersion,
    /// Up to the first choice.
    head: Vec<u8>,
    /// As JSON.
    role: Vec<u8>,
    /// As JSON.
    fingerprint: Vec<u8>,
    last_frame: LastFrame,
}

/// What ends a stream before `[DONE]`: it carries the fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastFrame {
    Finish,
    Usage,
}

/// What one choice has got since its last frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkChoice<'a> {
    pub(crate) index: usize,
    pub(crate) delta: Delta<'a>,
    /// JSON.
    pub(crate) logprobs: Option<&'a [u8]>,
    /// With `return_token_ids`.
    pub(crate) token_ids: Option<&'a [u32]>,
    /// Completions only, in the choice's first frame.
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
    pub(crate) finish: Option<&'a Finish>,
    /// With `continuous_usage_stats`.
    pub(crate) usage: Option<Usage>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Delta<'a> {
    Text(&'a str),
    /// Of a chat's reply that a parser reads; `None` when there is nothing in it.
    Parsed(Option<&'a ToolDelta>),
}

/// What the first frames of a chat tell of the prompt when asked to.
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

    /// The first frame of a chat's choice, which goes out with the first token; completions have none.
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

    /// What a chat with `echo` repeats of the conversation's last message.
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

    /// The last frame when usage is asked for.
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

    /// vLLM 0.33 sets the content of a delta even when there is none.
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

    /// Completions before 0.33 dump the field even when there is nothing in it.
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
