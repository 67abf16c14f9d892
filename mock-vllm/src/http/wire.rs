//! The bytes of answers as vLLM 0.33 writes them, field for field in its order. Pure: values in, text out.

use serde::Serialize;
use serde_json::value::RawValue;
use std::fmt::Write;

pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// Which of the two APIs an answer is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Chat,
    Completion,
}

/// What all frames and bodies of one answer share.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) api: Api,
    /// With its prefix.
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) role: String,
    pub(crate) fingerprint: String,
}

/// Counts for `usage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// Only with `--enable-prompt-tokens-details`.
    pub(crate) details: Option<PromptTokensDetails>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PromptTokensDetails {
    pub(crate) cached_tokens: u32,
    pub(crate) created_cache_tokens: u32,
}

/// How a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finish {
    pub(crate) reason: &'static str,
    /// The request's stop token that ended it.
    pub(crate) stop_token: Option<u32>,
}

/// What a content frame carries besides its text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ChunkEnd {
    pub(crate) finish: Option<Finish>,
    /// Of `continuous_usage_stats`.
    pub(crate) usage: Option<Usage>,
    pub(crate) fingerprint: bool,
}

/// Writes the frames of one stream; what they share is spelled once.
#[derive(Debug)]
pub(crate) struct ChunkWriter {
    envelope: Envelope,
    head: String,
}

#[derive(Serialize)]
struct ContinuousUsage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    completion_tokens_details: (),
}

#[derive(Serialize)]
struct StreamUsage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Serialize)]
struct PlainUsage {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    prompt_tokens_details: Option<PromptTokensDetails>,
    completion_tokens_details: (),
}

// === impl ChunkWriter ===

impl ChunkWriter {
    pub(crate) fn new(envelope: Envelope) -> Self {
        let object = match envelope.api {
            Api::Chat => "chat.completion.chunk",
            Api::Completion => "text_completion",
        };
        let head = format!(
            r#"data: {{"id":{},"object":"{object}","created":{},"model":{},"choices":["#,
            json(&envelope.id),
            envelope.created,
            json(&envelope.model)
        );
        Self { envelope, head }
    }

    /// The first frame of a chat, which goes out with the first token; completions have none.
    pub(crate) fn role_frame(&self, out: &mut String, usage: Option<Usage>) {
        if self.envelope.api == Api::Completion {
            return;
        }
        out.push_str(&self.head);
        let role = json(&self.envelope.role);
        let _infallible = write!(
            out,
            r#"{{"index":0,"delta":{{"role":{role},"content":""}},"logprobs":null,"finish_reason":null}}]"#
        );
        push_continuous_usage(out, usage);
        out.push_str(",\"prompt_token_ids\":null,\"prompt_text\":null}\n\n");
    }

    pub(crate) fn content_frame(&self, out: &mut String, text: &str, end: ChunkEnd) {
        let ChunkEnd { finish, usage, fingerprint } = end;
        out.push_str(&self.head);
        let text = json(text);
        let (reason, stop) = finish_fields(finish);
        let _infallible = match (self.envelope.api, finish) {
            (Api::Chat, None) => write!(
                out,
                r#"{{"index":0,"delta":{{"content":{text}}},"logprobs":null,"finish_reason":null,"token_ids":null}}]"#
            ),
            (Api::Chat, Some(_)) => write!(
                out,
                r#"{{"index":0,"delta":{{"content":{text}}},"logprobs":null,"finish_reason":{reason},"stop_reason":{stop},"token_ids":null,"weight_versions":null}}]"#
            ),
            (Api::Completion, _) => write!(
                out,
                r#"{{"index":0,"text":{text},"logprobs":null,"finish_reason":{reason},"stop_reason":{stop},"prompt_token_ids":null,"token_ids":null,"weight_versions":null}}]"#
            ),
        };
        push_continuous_usage(out, usage);
        if fingerprint {
            let _infallible = write!(out, r#","system_fingerprint":{}"#, json(&self.envelope.fingerprint));
        }
        out.push_str(",\"kv_transfer_params\":null}\n\n");
    }

    /// The last frame but `[DONE]`, of `stream_options.include_usage`.
    pub(crate) fn usage_frame(&self, out: &mut String, usage: Usage) {
        let Usage { prompt_tokens, completion_tokens, details } = usage;
        let usage = json(&StreamUsage {
            prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details: details,
        });
        let fingerprint = json(&self.envelope.fingerprint);
        let _infallible =
            write!(out, "{}],\"usage\":{usage},\"system_fingerprint\":{fingerprint}}}\n\n", self.head);
    }
}

/// The whole answer of a request that does not stream.
pub(crate) fn plain_body(envelope: &Envelope, text: &str, finish: Finish, usage: Usage) -> String {
    let Envelope { api, id, created, model, role, fingerprint } = envelope;
    let Usage { prompt_tokens, completion_tokens, details } = usage;
    let usage = json(&PlainUsage {
        prompt_tokens,
        total_tokens: prompt_tokens + completion_tokens,
        completion_tokens,
        prompt_tokens_details: details,
        completion_tokens_details: (),
    });
    let (id, model, role, fingerprint, text) =
        (json(id), json(model), json(role), json(fingerprint), json(text));
    let (reason, stop) = finish_fields(Some(finish));
    match api {
        Api::Chat => format!(
            r#"{{"id":{id},"object":"chat.completion","created":{created},"model":{model},"choices":[{{"index":0,"message":{{"role":{role},"content":{text},"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}},"logprobs":null,"finish_reason":{reason},"stop_reason":{stop},"token_ids":null,"routed_experts":null,"weight_versions":null}}],"service_tier":null,"system_fingerprint":{fingerprint},"usage":{usage},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#
        ),
        Api::Completion => format!(
            r#"{{"id":{id},"object":"text_completion","created":{created},"model":{model},"choices":[{{"index":0,"text":{text},"logprobs":null,"finish_reason":{reason},"stop_reason":{stop},"token_ids":null,"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null,"weight_versions":null}}],"service_tier":null,"system_fingerprint":{fingerprint},"usage":{usage},"kv_transfer_params":null}}"#
        ),
    }
}

/// `finish_reason` and `stop_reason` as JSON.
fn finish_fields(finish: Option<Finish>) -> (String, String) {
    let null = || "null".to_owned();
    let Some(Finish { reason, stop_token }) = finish else { return (null(), null()) };
    (json(reason), stop_token.map_or_else(null, |token| token.to_string()))
}

fn push_continuous_usage(out: &mut String, usage: Option<Usage>) {
    let Some(Usage { prompt_tokens, completion_tokens, details: _ }) = usage else { return };
    let usage = json(&ContinuousUsage {
        prompt_tokens,
        total_tokens: prompt_tokens + completion_tokens,
        completion_tokens,
        completion_tokens_details: (),
    });
    let _infallible = write!(out, r#","usage":{usage}"#);
}

fn json(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::value::to_raw_value(value)
        .map_or_else(|_| "null".to_owned(), |raw: Box<RawValue>| raw.get().to_owned())
}
