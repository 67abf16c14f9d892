//! The tutorial's load in virtual time: the tool's schedule and texts, with the model's answers in the history.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use load::multi_round_qa::prompts;
use load::multi_round_qa::records::Record;
use load::multi_round_qa::schedule::{Ended, Plan, Schedule, Turn};
use load::multi_round_qa::sharegpt::Entry;
use sim::model::{ChatModel, DecodedReply, Message};
use sim::simulation::{Outcome, RefusedRequest, SimRequest, Workload};

/// Time between two looks at the sessions: the original sleeps 100 ms, and looking takes half a millisecond.
pub const TICK: Duration = Duration::from_micros(100_500);
const WARM_UPS: u32 = 10;
const WARM_UP_TOKENS: u32 = 100;

/// A command of the tutorial's tool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Command {
    pub plan: Plan,
    /// Number of words of the system text, and of a user's own text.
    pub words: (usize, usize),
    pub answer_len: u32,
    pub duration: Duration,
    /// Time between the warm-up and the first request.
    pub settle: Duration,
}

/// Presence of the user's id in requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserIds {
    Sent,
    Stripped,
}

/// The tool, without a clock.
#[derive(Debug)]
pub struct Tool<'a> {
    command: Command,
    entries: &'a [Entry],
    model: &'a ChatModel,
    user_ids: UserIds,
    schedule: Schedule,
    phase: Phase,
    conversations: HashMap<u32, Conversation>,
    pending: HashMap<u64, Pending>,
    next_id: u64,
    records: Vec<ServedRecord>,
    failures: Vec<Failure>,
    /// The first error; nothing is sent after it.
    failure: Option<anyhow::Error>,
}

/// A record, and what the servers know about its request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServedRecord {
    pub record: Record,
    pub cached_tokens: u32,
    pub pod_idx: usize,
}

/// A turn without an answer; its session waits for it and never continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub user_id: u32,
    pub question_id: u32,
    pub error: String,
}

/// Results of a run of the tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Played {
    pub measured: Vec<ServedRecord>,
    pub failures: Vec<Failure>,
    /// Start and end of the window, in seconds.
    pub window: (f64, f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Begin,
    WarmUp { n_left: u32 },
    Measured { since: Duration },
}

#[derive(Debug, Default)]
struct Conversation {
    messages: Vec<Message>,
    n_asked: u32,
}

#[derive(Debug)]
enum Pending {
    WarmUp,
    Turn { turn: Turn, question_id: u32, reply: DecodedReply },
}

impl<'a> Tool<'a> {
    pub fn new(command: Command, entries: &'a [Entry], model: &'a ChatModel, user_ids: UserIds) -> Self {
        Self {
            command,
            entries,
            model,
            user_ids,
            schedule: Schedule::new(command.plan),
            phase: Phase::Begin,
            conversations: HashMap::new(),
            pending: HashMap::new(),
            next_id: 0,
            records: Vec::new(),
            failures: Vec::new(),
            failure: None,
        }
    }

    /// Returns the results.
    ///
    /// # Errors
    /// The error that kept it from sending.
    pub fn finish(self) -> Result<Played> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let Phase::Measured { since } = self.phase else { anyhow::bail!("the warm-up has not ended") };
        let since = since.as_secs_f64();
        let end = self.records.iter().map(|measured| measured.record.finish_time).fold(since, f64::max);
        Ok(Played { measured: self.records, failures: self.failures, window: (since, end) })
    }

    fn request(
        &self,
        messages: &[Message],
        user: Option<u32>,
        max_tokens: u32,
    ) -> Result<(SimRequest, DecodedReply)> {
        let prompt = self.model.prompt(messages)?;
        let asked = messages.last().map_or("", |message| &message.content);
        let reply = self.model.reply(&prompt, asked, max_tokens);
        let text =
            messages.iter().map(|message| format!("{}: {}\n", message.role, message.content)).collect();
        let user = user.filter(|_| self.user_ids == UserIds::Sent);
        Ok((SimRequest { text, user, prompt, output: reply.tokens.clone() }, reply))
    }

    fn warm_up(&mut self) -> Result<Vec<(u64, SimRequest)>> {
        let mut requests = Vec::new();
        for idx in 0..WARM_UPS {
            let messages = [Message { role: "user", content: prompts::warm_up(idx) }];
            let (request, _) = self.request(&messages, None, WARM_UP_TOKENS)?;
            requests.push((self.id(Pending::WarmUp), request));
        }
        Ok(requests)
    }

    fn turn(&mut self, turn: Turn) -> Result<(u64, SimRequest)> {
        let Turn { user_id, question_idx } = turn;
        let entry = self.entries.get(usize::try_from(user_id)?);
        let entry = entry.with_context(|| format!("the data have no conversation for user {user_id}"))?;
        let question = entry.question(usize::try_from(question_idx)?, self.command.answer_len);
        let (question, max_tokens) =
            question.with_context(|| format!("conversation {user_id} has no question {question_idx}"))?;
        let mut conversation = self.conversations.remove(&user_id).unwrap_or_default();
        let content = match conversation.messages.is_empty() {
            true => prompts::first_message(user_id, self.command.words, question),
            false => question.to_owned(),
        };
        conversation.messages.push(Message { role: "user", content });
        conversation.n_asked += 1;
        let (request, reply) = self.request(&conversation.messages, Some(user_id), max_tokens)?;
        let question_id = conversation.n_asked;
        self.conversations.insert(user_id, conversation);
        Ok((self.id(Pending::Turn { turn, question_id, reply }), request))
    }

    fn id(&mut self, pending: Pending) -> u64 {
        self.next_id += 1;
        self.pending.insert(self.next_id, pending);
        self.next_id
    }

    fn try_due(&mut self, now: Duration) -> Result<Vec<(u64, SimRequest)>> {
        match self.phase {
            Phase::Begin => {
                self.phase = Phase::WarmUp { n_left: WARM_UPS };
                self.warm_up()
            }
            Phase::WarmUp { .. } => Ok(Vec::new()),
            Phase::Measured { since } => {
                let turns = self.schedule.tick(now.saturating_sub(since)).turns;
                turns.into_iter().map(|turn| self.turn(turn)).collect()
            }
        }
    }
}

/// Returns the first tick that is later than `moment`; the original compares strictly.
fn tick_after(moment: Duration) -> Duration {
    let n_ticks = moment.as_nanos() / TICK.as_nanos() + 1;
    TICK * u32::try_from(n_ticks).unwrap_or(u32::MAX)
}

impl Workload for Tool<'_> {
    fn next_due(&mut self, now: Duration) -> Option<Duration> {
        if self.failure.is_some() {
            return None;
        }
        match self.phase {
            Phase::Begin => Some(now),
            Phase::WarmUp { .. } => None,
            Phase::Measured { since } => {
                let due = self.schedule.next_due();
                // The first tick looks at once.
                let tick = if due.is_zero() && now <= since { Duration::ZERO } else { tick_after(due) };
                let tick = tick.max(tick_after(now.saturating_sub(since)).saturating_sub(TICK));
                (tick <= self.command.duration).then(|| since + tick)
            }
        }
    }

    fn due(&mut self, now: Duration) -> Vec<(u64, SimRequest)> {
        match self.try_due(now) {
            Ok(requests) => requests,
            Err(error) => {
                self.failure = Some(error);
                Vec::new()
            }
        }
    }

    fn ended(&mut self, outcome: &Outcome) {
        match self.pending.remove(&outcome.id) {
            None => {}
            Some(Pending::WarmUp) => {
                if let Phase::WarmUp { n_left } = &mut self.phase {
                    *n_left -= 1;
                    if *n_left == 0 {
                        self.phase = Phase::Measured { since: outcome.ended_at + self.command.settle };
                    }
                }
            }
            Some(Pending::Turn { turn, question_id, reply }) => {
                let record = Record {
                    prompt_tokens: outcome.prompt_tokens,
                    generation_tokens: outcome.output_tokens,
                    ttft: (outcome.first_token_at - outcome.sent_at).as_secs_f64(),
                    generation_time: (outcome.ended_at - outcome.first_token_at).as_secs_f64(),
                    user_id: turn.user_id,
                    question_id,
                    launch_time: outcome.sent_at.as_secs_f64(),
                    finish_time: outcome.ended_at.as_secs_f64(),
                };
                let Outcome { cached_tokens, pod_idx, .. } = *outcome;
                self.records.push(ServedRecord { record, cached_tokens, pod_idx });
                if let Some(conversation) = self.conversations.get_mut(&turn.user_id) {
                    conversation.messages.push(Message { role: "assistant", content: reply.text });
                }
                self.schedule.ended(turn.user_id, Ended::Answered);
            }
        }
    }

    fn refused(&mut self, refusal: RefusedRequest) {
        let RefusedRequest { id, pod_idx: _, error } = refusal;
        match self.pending.remove(&id) {
            None => {}
            Some(Pending::WarmUp) => self.failure = Some(anyhow!(error).context("warm up")),
            Some(Pending::Turn { turn: Turn { user_id, .. }, question_id, reply: _ }) => {
                self.failures.push(Failure { user_id, question_id, error: error.to_string() });
                self.schedule.ended(user_id, Ended::Failed);
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { user_id, question_id, error } = self;
        write!(f, "user {user_id}, question {question_id}: {error}")
    }
}
