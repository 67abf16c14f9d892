//! A streamed answer of any OpenAI endpoint, read as leniently as OpenAI's SDK reads it for the original.

use std::time::Duration;

use serde::Deserialize;

/// Bytes of the longest line, so that a server which never ends a line cannot fill the memory. Real frames are a few
/// hundred bytes.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Collects an answer from the bytes of its body.
#[derive(Debug, Default)]
pub struct AnswerReader {
    pending: Vec<u8>,
    answer: AnswerSoFar,
}

/// The part of an answer that has arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerSoFar {
    pub content: String,
    /// Time from sending the request to the first chunk with content.
    pub first_content: Option<Duration>,
    /// Prompt tokens by the last chunk that reported them.
    pub prompt_tokens: Option<u32>,
    pub completion_tokens: Option<u32>,
    /// Prompt tokens that came from a cache, if the endpoint reports them.
    pub cached_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Option<Delta>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    /// Text of models that think first; the original counts it as content since 2026.
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u32>,
    completion_tokens: Option<u32>,
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u32>,
}

impl AnswerReader {
    /// Takes the bytes that arrived at `at`.
    ///
    /// # Errors
    /// A chunk that is not JSON or that reports an error, or a line that is too long.
    pub fn push(&mut self, bytes: &[u8], at: Duration) -> Result<(), String> {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            self.take_line(&line, at)?;
        }
        if self.pending.len() > MAX_LINE_BYTES {
            return Err(format!("a line of more than {MAX_LINE_BYTES} bytes"));
        }
        Ok(())
    }

    /// Returns the answer when its stream is over.
    ///
    /// # Errors
    /// When it has no content or no token counts.
    pub fn finish(self) -> Result<AnswerSoFar, String> {
        let AnswerSoFar { first_content, prompt_tokens, completion_tokens, .. } = &self.answer;
        if first_content.is_none() {
            return Err("the answer has no content".to_owned());
        }
        if prompt_tokens.is_none() || completion_tokens.is_none() {
            return Err("the answer does not tell its usage".to_owned());
        }
        Ok(self.answer)
    }

    fn take_line(&mut self, line: &[u8], at: Duration) -> Result<(), String> {
        let line = line.trim_ascii();
        let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { return Ok(()) };
        if data == b"[DONE]" || data.is_empty() {
            return Ok(());
        }
        let text = || String::from_utf8_lossy(data).into_owned();
        let chunk: Chunk = serde_json::from_slice(data)
            .map_err(|error| format!("a chunk that is no JSON ({error}): {}", text()))?;
        if let Some(error) = chunk.error {
            return Err(format!("an error in the stream: {error}"));
        }
        if let Some(Usage { prompt_tokens, completion_tokens, prompt_tokens_details }) = chunk.usage {
            let cached = prompt_tokens_details.and_then(|details| details.cached_tokens);
            self.answer.cached_tokens = cached.or(self.answer.cached_tokens);
            self.answer.prompt_tokens = prompt_tokens.or(self.answer.prompt_tokens);
            self.answer.completion_tokens = completion_tokens.or(self.answer.completion_tokens);
        }
        let Some(delta) = chunk.choices.into_iter().next().and_then(|choice| choice.delta) else {
            return Ok(());
        };
        let content = delta.content.unwrap_or_default();
        if !content.is_empty() || delta.reasoning_content.is_some_and(|thought| !thought.is_empty()) {
            self.answer.first_content.get_or_insert(at);
        }
        self.answer.content += &content;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{AnswerReader, AnswerSoFar};

    fn read(parts: &[&str]) -> Result<AnswerSoFar, String> {
        let mut reader = AnswerReader::default();
        for (part, seconds) in parts.iter().zip(1..) {
            reader.push(part.as_bytes(), Duration::from_secs(seconds))?;
        }
        reader.finish()
    }

    const USAGE: &str =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\r\n\r\n";

    #[test]
    fn content_counts_from_its_first_letter_and_usage_from_any_chunk() {
        let role = "event: x\ndata:{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
        let answer = read(&[
            role,
            "data: {\"choices\":[{\"delta\":{\"con",
            "tent\":\"a\"}}]}\n\n",
            USAGE,
            "data: [DONE]\n",
        ]);
        let expected = AnswerSoFar {
            content: "a".to_owned(),
            first_content: Some(Duration::from_secs(3)),
            prompt_tokens: Some(7),
            completion_tokens: Some(2),
            cached_tokens: None,
        };
        assert_eq!(answer, Ok(expected));
    }

    #[test]
    fn an_answer_without_content_usage_or_sense_is_an_error() {
        let content = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n";
        assert!(read(&[USAGE]).unwrap_err().contains("no content"));
        assert!(read(&[content]).unwrap_err().contains("usage"));
        assert!(read(&["data: nonsense\n"]).unwrap_err().contains("no JSON"));
        assert!(
            read(&["data: {\"error\":{\"message\":\"m\"}}\n"]).unwrap_err().contains("error in the stream")
        );
    }
}
