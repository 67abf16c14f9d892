//! An answer as server-sent events: writes frames as the choices' pieces arrive.

use super::answer::{AnswerPlan, ReplyMode};
use super::choices::{Choice, Choices, Event, Piece};
use super::request::StreamUsageMode;
use super::shape::{Delivered, finish_reason};
use super::wire::chunk::{ChunkChoice, ChunkWriter, Delta, LastFrame, PromptFields};
use super::wire::{Api, DONE, Envelope, Finish};
use crate::structured::tools::reply::ToolReply;
use crate::structured::tools::stream::ToolCallStream;
use bytes::Bytes;
use futures::Stream;
use std::convert::Infallible;
use std::task::{Context, Poll};
use vllm_engine::vllm_version::VllmVersion;

#[derive(Debug)]
struct AnswerStream {
    answer: AnswerPlan,
    choices: Choices,
    writer: ChunkWriter,
    usage: StreamUsageMode,
    stage: Stage,
    /// Parsers of the choices that call tools, by choice.
    tool_streams: Vec<Option<ToolCallStream>>,
    /// Characters that the tokens so far take, by choice, for completions with log probabilities.
    text_offsets: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// State before the first frame.
    Waiting,
    Running,
    Ended,
}

/// Makes the body. Each of its chunks has one frame or more.
pub(super) fn frames(
    answer: AnswerPlan,
    choices: Choices,
    usage: StreamUsageMode,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + Unpin + 'static {
    let last_frame = match usage {
        StreamUsageMode::None => LastFrame::Finish,
        StreamUsageMode::AtEnd | StreamUsageMode::Continuous => LastFrame::Usage,
    };
    let writer = ChunkWriter::new(&answer.envelope, last_frame);
    let tool_streams = answer.calls.iter().map(|calls| calls.clone().map(ToolCallStream::new)).collect();
    let text_offsets = vec![0; answer.calls.len()];
    let stage = Stage::Waiting;
    let mut stream = AnswerStream { answer, choices, writer, usage, stage, tool_streams, text_offsets };
    futures::stream::poll_fn(move |ctx| stream.poll_frames(ctx).map(|frames| frames.map(Ok)))
}

// === impl AnswerStream ===

impl AnswerStream {
    /// Writes the frames of everything that has arrived; `None` after the end.
    fn poll_frames(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut frames = Vec::new();
        while self.stage != Stage::Ended
            && let Poll::Ready(event) = self.choices.poll_next(ctx)
        {
            self.write(&mut frames, event);
        }
        match (frames.is_empty(), self.stage) {
            (false, _) => Poll::Ready(Some(frames.into())),
            (true, Stage::Ended) => Poll::Ready(None),
            (true, Stage::Waiting | Stage::Running) => Poll::Pending,
        }
    }

    fn write(&mut self, out: &mut Vec<u8>, event: Event) {
        match event {
            Event::Piece(piece) => {
                if self.stage == Stage::Waiting {
                    self.stage = Stage::Running;
                    self.write_opening(out);
                }
                self.write_piece(out, &piece);
            }
            Event::End => {
                if self.usage != StreamUsageMode::None {
                    self.writer.usage_frame(out, self.answer.stream_usage(self.choices.as_slice()));
                }
                out.extend_from_slice(DONE);
                self.stage = Stage::Ended;
            }
            Event::Failed(error) => {
                out.extend_from_slice(error.to_frame(&self.answer.envelope).as_bytes());
                out.extend_from_slice(DONE);
                self.stage = Stage::Ended;
            }
        }
    }

    /// Writes a role for every choice of a chat, with the first token of any choice.
    fn write_opening(&self, out: &mut Vec<u8>) {
        if self.answer.envelope.api == Api::Completion {
            return;
        }
        let Some(prompt) = self.answer.prompts.first() else { return };
        let usage = (self.usage == StreamUsageMode::Continuous).then(|| self.answer.prompt_usage(0));
        let told = PromptFields {
            token_ids: self.answer.token_ids.then_some(&*prompt.ids),
            text: prompt.text.as_deref(),
        };
        let indices = 0..self.choices.as_slice().len();
        indices.clone().for_each(|index| self.writer.role_frame(out, index, told, usage));
        if let Some(echo) = &prompt.echo {
            indices.for_each(|index| self.writer.echo_frame(out, index, echo, usage));
        }
    }

    fn write_piece(&mut self, out: &mut Vec<u8>, piece: &Piece) {
        let Piece { choice_idx, tokens, text, finish } = piece;
        let parsed = self.tool_streams[*choice_idx].as_mut().map(|stream| stream.push(text));
        let choice = &self.choices.as_slice()[*choice_idx];
        let is_first = tokens.start == 0;
        let echoed = self.echoed(choice, is_first, text);
        let delta = match &parsed {
            Some(delta) => Delta::Parsed(delta.as_ref()),
            None if self.answer.is_parsed && text.is_empty() => Delta::Parsed(None),
            None => Delta::Text(echoed.as_deref().unwrap_or(text)),
        };
        let text_offset = &mut self.text_offsets[*choice_idx];
        let offset_before = *text_offset;
        let logprobs = self.answer.choice_logprobs(choice, tokens.clone(), text_offset);
        if self.answer.envelope.version != VllmVersion::V0_33 {
            // Older versions count the text that was sent, without the echo.
            *text_offset = offset_before + text.chars().count();
        }
        let is_told = finish.is_some() || self.answer.token_ids || logprobs.is_some();
        if matches!(delta, Delta::Parsed(None)) && !is_told {
            return;
        }
        let finish = finish.clone().map(|finish| self.after_parser(*choice_idx, finish));
        let chunk = ChunkChoice {
            index: *choice_idx,
            delta,
            logprobs: logprobs.as_deref(),
            token_ids: self.answer.token_ids.then(|| &choice.generated()[tokens.clone()]),
            prompt_token_ids: self.tells_prompt(is_first).then(|| &*self.answer.prompt(choice).ids),
            finish: finish.as_ref(),
            usage: (self.usage == StreamUsageMode::Continuous).then(|| self.answer.choice_usage(choice)),
        };
        self.writer.choice_frame(out, &chunk);
    }

    fn after_parser(&self, choice_idx: usize, finish: Finish) -> Finish {
        let stream = self.tool_streams[choice_idx].as_ref().filter(|stream| stream.has_calls());
        let choice = stream.and(self.answer.calls[choice_idx].as_deref()).map(ToolReply::choice);
        let version = self.answer.envelope.version;
        Finish { reason: finish_reason(version, Delivered::InPieces, choice, finish.reason), ..finish }
    }

    /// Returns the text of a completion's first frame if it repeats the prompt.
    fn echoed(&self, choice: &Choice, is_first: bool, text: &str) -> Option<String> {
        let echo = self.answer.prompt(choice).echo.as_deref();
        let echo = echo.filter(|_| is_first && self.answer.envelope.api == Api::Completion)?;
        Some(match self.answer.reply {
            ReplyMode::Shown => format!("{echo}{text}"),
            ReplyMode::Hidden => echo.to_owned(),
        })
    }

    /// Returns whether a frame has the prompt's token ids, which vLLM 0.11 gives with completions unasked.
    fn tells_prompt(&self, is_first: bool) -> bool {
        let Envelope { api, version, .. } = &self.answer.envelope;
        let unasked = (*api, *version) == (Api::Completion, VllmVersion::V0_11);
        is_first && (self.answer.token_ids || unasked)
    }
}
