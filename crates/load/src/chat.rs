//! A streamed chat completion, checked strictly: the role first, then deltas, a finish reason, the usage, `[DONE]`, and
//! nothing after that.
//!
//! ```text
//! role ──► delta* ──► finish ──► usage ──► [DONE]
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::sse::Frame;

/// Token counts of one request as the server reports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u32,
    pub total_tokens: u32,
    pub completion_tokens: u32,
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    pub cached_tokens: Option<u32>,
}

impl Usage {
    /// Prompt tokens that came from the pod's cache; servers leave the field out when there are none.
    pub fn cached_tokens(&self) -> u32 {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0)
    }
}

/// A well-formed answer, read to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatStream {
    pub id: String,
    pub model: String,
    pub content: String,
    pub finish_reason: String,
    pub usage: Usage,
    /// Time from sending the request to the first chunk with content.
    pub ttft: Duration,
    /// Times between each two chunks with content.
    pub gaps: Vec<Duration>,
    /// Time from sending the request to `[DONE]`.
    pub done: Duration,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChatError {
    #[error("frame {0} is not a chat completion chunk: {1}")]
    NotAChunk(usize, String),
    #[error("frame {0} carries another id or model than the first")]
    Mixed(usize),
    #[error("the first chunk does not announce the role")]
    NoRole,
    #[error("frame {0} is out of order: {1}")]
    OutOfOrder(usize, &'static str),
    #[error("the stream ends without {0}")]
    Missing(&'static str),
    #[error("no chunk has content")]
    NoContent,
    #[error("usage does not add up: {0} + {1} != {2}")]
    Sum(u32, u32, u32),
}

#[derive(Deserialize)]
struct Chunk {
    id: String,
    object: String,
    model: String,
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    index: u32,
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    role: Option<String>,
    content: Option<String>,
}

/// Position in a stream. Each state owns what is known at that point.
enum State {
    Start,
    Open,
    Finished { reason: String },
    Counted { reason: String, usage: Usage },
    Done { reason: String, usage: Usage, at: Duration },
}

/// Reads the frames of one answer, in the order of their arrival.
pub fn read_chat(frames: &[Frame]) -> Result<ChatStream, ChatError> {
    let mut state = State::Start;
    let mut identity: Option<(String, String)> = None;
    let mut content = String::new();
    let mut tokens = Vec::new();
    for (idx, frame) in frames.iter().enumerate() {
        if frame.data == "[DONE]" {
            state = finish(state, idx, frame.at)?;
            continue;
        }
        let chunk = parse(idx, &frame.data)?;
        let (id, model) = identity.get_or_insert_with(|| (chunk.id.clone(), chunk.model.clone()));
        if *id != chunk.id || *model != chunk.model {
            return Err(ChatError::Mixed(idx));
        }
        if let Some(text) = chunk.choices.first().and_then(|choice| choice.delta.content.as_deref()) {
            content.push_str(text);
            if !text.is_empty() {
                tokens.push(frame.at);
            }
        }
        state = advance(state, idx, chunk)?;
    }
    let (finish_reason, usage, done) = match state {
        State::Start => return Err(ChatError::Missing("a role")),
        State::Open => return Err(ChatError::Missing("a finish reason")),
        State::Finished { .. } => return Err(ChatError::Missing("usage")),
        State::Counted { .. } => return Err(ChatError::Missing("[DONE]")),
        State::Done { reason, usage, at } => (reason, usage, at),
    };
    if usage.prompt_tokens + usage.completion_tokens != usage.total_tokens {
        return Err(ChatError::Sum(usage.prompt_tokens, usage.completion_tokens, usage.total_tokens));
    }
    let (id, model) = identity.ok_or(ChatError::NoRole)?;
    let ttft = *tokens.first().ok_or(ChatError::NoContent)?;
    let gaps = tokens.windows(2).map(|pair| pair[1] - pair[0]).collect();
    Ok(ChatStream { id, model, content, finish_reason, usage, ttft, gaps, done })
}

fn parse(idx: usize, data: &str) -> Result<Chunk, ChatError> {
    let chunk: Chunk =
        serde_json::from_str(data).map_err(|error| ChatError::NotAChunk(idx, error.to_string()))?;
    if chunk.object != "chat.completion.chunk" {
        return Err(ChatError::NotAChunk(idx, format!("object is `{}`", chunk.object)));
    }
    if chunk.choices.iter().any(|choice| choice.index != 0) || chunk.choices.len() > 1 {
        return Err(ChatError::NotAChunk(idx, "more than one choice".to_owned()));
    }
    Ok(chunk)
}

fn advance(state: State, idx: usize, chunk: Chunk) -> Result<State, ChatError> {
    let choice = chunk.choices.into_iter().next();
    match (state, choice, chunk.usage) {
        (State::Start, Some(choice), None) => match choice.delta.role.as_deref() {
            Some("assistant") => Ok(State::Open),
            Some(_) | None => Err(ChatError::NoRole),
        },
        (State::Open, Some(choice), None) => match (choice.delta.role, choice.finish_reason) {
            (Some(_), _) => Err(ChatError::OutOfOrder(idx, "a second role")),
            (None, Some(reason)) => Ok(State::Finished { reason }),
            (None, None) => Ok(State::Open),
        },
        (State::Finished { reason }, None, Some(usage)) => Ok(State::Counted { reason, usage }),
        (State::Start, ..) => Err(ChatError::NoRole),
        (State::Open, ..) => Err(ChatError::OutOfOrder(idx, "usage before a finish reason")),
        (State::Finished { .. }, ..) => Err(ChatError::OutOfOrder(idx, "a chunk after the finish reason")),
        (State::Counted { .. }, ..) => Err(ChatError::OutOfOrder(idx, "a chunk after the usage")),
        (State::Done { .. }, ..) => Err(ChatError::OutOfOrder(idx, "a chunk after [DONE]")),
    }
}

fn finish(state: State, idx: usize, at: Duration) -> Result<State, ChatError> {
    match state {
        State::Counted { reason, usage } => Ok(State::Done { reason, usage, at }),
        State::Start | State::Open => Err(ChatError::OutOfOrder(idx, "[DONE] before a finish reason")),
        State::Finished { .. } => Err(ChatError::OutOfOrder(idx, "[DONE] before the usage")),
        State::Done { .. } => Err(ChatError::OutOfOrder(idx, "a second [DONE]")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ChatError, read_chat};
    use crate::sse::Frame;

    const ROLE: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
    const TEXT: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}"#;
    const LAST: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":"!"},"finish_reason":"length"}]}"#;
    const USAGE: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"m","choices":[],"usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}}"#;
    const DONE: &str = "[DONE]";

    fn frames(data: &[&str]) -> Vec<Frame> {
        data.iter()
            .zip(1..)
            .map(|(data, millis)| Frame { data: (*data).to_owned(), at: Duration::from_millis(millis) })
            .collect()
    }

    #[test]
    fn a_well_formed_answer_is_read() {
        let chat = read_chat(&frames(&[ROLE, TEXT, LAST, USAGE, DONE])).unwrap();
        assert_eq!((chat.content.as_str(), chat.finish_reason.as_str()), ("Hi!", "length"));
        assert_eq!((chat.ttft, chat.done), (Duration::from_millis(2), Duration::from_millis(5)));
        assert_eq!(chat.gaps, [Duration::from_millis(1)], "only text is a token");
        assert_eq!((chat.usage.cached_tokens(), chat.usage.prompt_tokens), (1, 3));
    }

    #[test]
    fn every_deviation_is_named() {
        let bad_sum = USAGE.replace("\"total_tokens\":5", "\"total_tokens\":6");
        let other_id = TEXT.replace("chatcmpl-1", "chatcmpl-2");
        let cases: Vec<(Vec<&str>, ChatError)> = vec![
            (vec![TEXT, LAST, USAGE, DONE], ChatError::NoRole),
            (vec![ROLE, ROLE, LAST, USAGE, DONE], ChatError::OutOfOrder(1, "a second role")),
            (vec![ROLE, TEXT, USAGE, DONE], ChatError::OutOfOrder(2, "usage before a finish reason")),
            (
                vec![ROLE, LAST, TEXT, USAGE, DONE],
                ChatError::OutOfOrder(2, "a chunk after the finish reason"),
            ),
            (vec![ROLE, LAST, USAGE, TEXT, DONE], ChatError::OutOfOrder(3, "a chunk after the usage")),
            (vec![ROLE, LAST, USAGE, DONE, TEXT], ChatError::OutOfOrder(4, "a chunk after [DONE]")),
            (vec![ROLE, LAST, USAGE, DONE, DONE], ChatError::OutOfOrder(4, "a second [DONE]")),
            (vec![ROLE, LAST, DONE], ChatError::OutOfOrder(2, "[DONE] before the usage")),
            (vec![ROLE, TEXT], ChatError::Missing("a finish reason")),
            (vec![ROLE, LAST], ChatError::Missing("usage")),
            (vec![ROLE, LAST, USAGE], ChatError::Missing("[DONE]")),
            (vec![], ChatError::Missing("a role")),
            (vec![ROLE, &other_id], ChatError::Mixed(1)),
            (vec![ROLE, LAST, &bad_sum, DONE], ChatError::Sum(3, 2, 6)),
        ];
        for (data, expected) in cases {
            assert_eq!(read_chat(&frames(&data)), Err(expected));
        }
    }

    #[test]
    fn an_error_frame_is_not_a_chunk() {
        let error = read_chat(&frames(&[ROLE, r#"{"error":{"message":"boom"}}"#, DONE])).unwrap_err();
        assert!(matches!(error, ChatError::NotAChunk(1, _)));
    }
}
