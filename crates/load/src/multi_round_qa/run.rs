//! Runs a load: sends over HTTP what the schedule says, and keeps what came back.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::HeaderName;
use http::header::AUTHORIZATION;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::Client;
use crate::clock::{Stopwatch, utc_now};
use crate::multi_round_qa::answer::{AnswerReader, AnswerSoFar};
use crate::multi_round_qa::prompts;
use crate::multi_round_qa::records::{Record, Summary, Window, Writer};
use crate::multi_round_qa::schedule::{Ended, Plan, Schedule, ScheduleRules, Turn};
use crate::multi_round_qa::sharegpt::Entry;
use crate::pacer::Pacer;

/// Time that the original sleeps between two looks at its sessions.
const TICK: Duration = Duration::from_millis(100);
const WARM_UPS: u32 = 10;
const WARM_UP_TOKENS: u32 = 100;
/// Wait before the first retry, as in OpenAI's SDK; it doubles each time and is part of the measured time.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// Longest wait for answers after a stop.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
const USER_ID: HeaderName = HeaderName::from_static("x-user-id");

/// Everything that a run needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    pub plan: Plan,
    /// Number of words of the system text, and of a user's own text.
    pub words: (usize, usize),
    pub answer_len: u32,
    pub model: String,
    /// URL of the endpoint, up to and with `/v1`.
    pub base_url: String,
    pub api_key: String,
    /// Time for which requests are sent; `None` to send until the run is interrupted.
    pub duration: Option<Duration>,
    pub questions: Questions,
    pub output: Option<PathBuf>,
    pub log_interval: Duration,
    /// Number of times that a failed request is repeated.
    pub n_retries: u32,
    /// Timing of a repeatable run; `None` to look at the sessions and send as the original does, after each sleep of a
    /// tick.
    pub repeatable: Option<Repeatable>,
    /// Virtual seconds per second: the schedule runs this many times faster, and times are reported in virtual seconds.
    pub time_scale: f64,
}

/// Timing of runs that send the same requests at the same virtual times, whatever else the machine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repeatable {
    /// Virtual time between two looks at the sessions, which take place at its multiples.
    pub tick: Duration,
    /// Wall time between the warm-up and the window.
    pub settle: Duration,
    /// Wall time between requests that are due together, so that they arrive in their order.
    pub stagger: Duration,
}

/// The questions that sessions ask.
#[derive(Debug, Clone)]
pub enum Questions {
    /// Each question asks for a story.
    Numbered,
    /// Questions that people asked; a session's user id chooses the conversation.
    ShareGpt(Arc<[Entry]>),
}

/// Receives what a run reports while it goes on.
pub trait Listener {
    fn summary(&self, summary: &Summary);
    /// Reports how many requests were sent, answered and failed, in this order.
    fn progress(&self, elapsed: Duration, counts: (usize, usize, usize));
    fn failure(&self, user_id: u32, error: &str);
}

/// Results of a run.
#[derive(Debug, Clone)]
pub struct RunResults {
    pub summary: Summary,
    pub answered: Vec<AnsweredRequest>,
    /// User and error of each failed request.
    pub failures: Vec<(u32, String)>,
}

/// One request that was answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnsweredRequest {
    pub record: Record,
    /// Prompt tokens that came from a cache, if the endpoint reports them.
    pub cached_tokens: Option<u32>,
}

/// The conversation of one user.
#[derive(Debug, Default)]
struct Conversation {
    messages: Vec<Value>,
    n_asked: u32,
}

/// Result of one request.
struct Outcome {
    turn: Turn,
    question_id: u32,
    result: Result<(AnsweredRequest, String), String>,
}

/// The parts of the tool that every request needs.
#[derive(Clone)]
struct Sender {
    client: Client,
    url: String,
    authorization: String,
    n_retries: u32,
    time_scale: f64,
    clock: Clock,
}

/// Virtual time, and the date and time at which it began.
#[derive(Clone, Copy)]
struct Clock {
    stopwatch: Stopwatch,
    /// Start, in seconds since the Unix epoch.
    epoch: f64,
    time_scale: f64,
}

struct Run<'a, L> {
    settings: &'a Settings,
    listener: &'a L,
    sender: Sender,
    schedule: Schedule,
    conversations: BTreeMap<u32, Conversation>,
    requests: JoinSet<Outcome>,
    answered: Vec<AnsweredRequest>,
    failures: Vec<(u32, String)>,
    n_sent: usize,
    csv: Option<Writer<File>>,
}

/// Reason why nothing more is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    TimeIsOver,
    Stopped,
}

/// Warms up, sends until the time is over or `stop` resolves, and waits for every answer; after a stop it waits for a few
/// seconds. Returns `None` if it was stopped during the warm-up.
///
/// # Errors
/// When the warm-up fails, there is no question to ask, or the CSV cannot be written.
pub async fn run<L: Listener>(
    settings: &Settings,
    listener: &L,
    stop: impl Future<Output = ()>,
) -> Result<Option<RunResults>> {
    tokio::pin!(stop);
    let mut sender = Sender::new(settings);
    tokio::select! {
        warmed_up = sender.warm_up(settings) => warmed_up?,
        () = &mut stop => return Ok(None),
    }
    if let Some(Repeatable { settle, .. }) = settings.repeatable {
        sleep(settle).await;
    }
    // The window begins after the warm-up.
    sender.clock = Clock::start(settings.time_scale);
    let csv = settings.output.as_deref().map(create);
    let mut run = Run {
        settings,
        listener,
        sender,
        schedule: Schedule::new(settings.plan),
        conversations: BTreeMap::new(),
        requests: JoinSet::new(),
        answered: Vec::new(),
        failures: Vec::new(),
        n_sent: 0,
        csv: csv.transpose()?,
    };
    match run.send_all(stop).await? {
        Ending::TimeIsOver => run.take_all().await?,
        // Requests without an answer by then count as pending.
        Ending::Stopped => timeout(LAST_ANSWERS, run.take_all()).await.unwrap_or(Ok(()))?,
    }
    run.finish().map(Some)
}

impl Clock {
    fn start(time_scale: f64) -> Self {
        let now = utc_now();
        #[expect(
            clippy::cast_precision_loss,
            reason = "nanoseconds are rounded to the clock's own precision"
        )]
        let epoch = now.unix_timestamp_nanos() as f64 / 1e9;
        Self { stopwatch: Stopwatch::start(), epoch, time_scale }
    }

    fn now(&self) -> Duration {
        self.stopwatch.elapsed().mul_f64(self.time_scale)
    }

    fn calendar(&self, now: Duration) -> f64 {
        self.epoch + now.as_secs_f64()
    }
}

impl<L: Listener> Run<'_, L> {
    async fn take_all(&mut self) -> Result<()> {
        while let Some(outcome) = self.requests.join_next().await {
            self.take(outcome?)?;
        }
        Ok(())
    }

    async fn send_all(&mut self, mut stop: impl Future<Output = ()> + Unpin) -> Result<Ending> {
        let (mut last_log, mut last_progress) = (Duration::ZERO, Duration::ZERO);
        let mut n_looks = 0;
        let stopwatch = self.sender.clock.stopwatch;
        let mut pacer = Pacer::start(stopwatch).context("start a thread")?;
        loop {
            let now = match self.settings.repeatable {
                Some(Repeatable { tick, .. }) => tick * n_looks,
                None => self.sender.clock.now(),
            };
            n_looks += 1;
            if self.settings.duration.is_some_and(|duration| now > duration) {
                return Ok(Ending::TimeIsOver);
            }
            self.look(now).await?;
            if now - last_log > self.settings.log_interval {
                self.listener.summary(&self.summary(last_log, now));
                last_log = now;
            }
            if now - last_progress > Duration::from_secs(1) {
                let counts = (self.n_sent, self.answered.len(), self.failures.len());
                self.listener.progress(now, counts);
                last_progress = now;
            }
            let pause = match (self.settings.repeatable, self.settings.plan.rules) {
                (Some(Repeatable { tick, .. }), _) => {
                    (tick * n_looks).saturating_sub(self.sender.clock.now())
                }
                (None, ScheduleRules::Original) => TICK,
                (None, ScheduleRules::Strict) => {
                    self.schedule.next_due().saturating_sub(now).clamp(Duration::from_millis(1), TICK)
                }
            };
            let until = stopwatch.elapsed() + pause.div_f64(self.settings.time_scale);
            let pause = pacer.until(until);
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut stop => return Ok(Ending::Stopped),
                    Some(outcome) = self.requests.join_next() => self.take(outcome?)?,
                    () = &mut pause => break,
                }
            }
        }
    }

    /// Sends the requests that are due.
    async fn look(&mut self, now: Duration) -> Result<()> {
        for (idx, turn) in self.schedule.tick(now).turns.into_iter().enumerate() {
            if let (Some(Repeatable { stagger, .. }), 1..) = (self.settings.repeatable, idx) {
                sleep(stagger).await;
            }
            self.send(turn)?;
        }
        Ok(())
    }

    fn send(&mut self, turn: Turn) -> Result<()> {
        let (question, max_tokens) = self.settings.question(turn)?;
        let conversation = self.conversations.entry(turn.user_id).or_default();
        conversation.n_asked += 1;
        let content = match conversation.messages.is_empty() {
            true => prompts::first_message(turn.user_id, self.settings.words, &question),
            false => question,
        };
        conversation.messages.push(json!({"role": "user", "content": content}));
        let body = request(&conversation.messages, &self.settings.model, max_tokens);
        let (sender, question_id) = (self.sender.clone(), conversation.n_asked);
        self.n_sent += 1;
        self.requests.spawn(async move {
            let result = sender.record(turn, question_id, body).await;
            Outcome { turn, question_id, result }
        });
        Ok(())
    }

    fn take(&mut self, outcome: Outcome) -> Result<()> {
        let Outcome { turn, question_id, result } = outcome;
        let user_id = turn.user_id;
        match result {
            Ok((answered, content)) => {
                if let Some(conversation) = self.conversations.get_mut(&user_id) {
                    conversation.messages.push(json!({"role": "assistant", "content": content}));
                }
                if let Some(csv) = &mut self.csv {
                    csv.write(&answered.record)?;
                }
                self.answered.push(answered);
                self.schedule.ended(user_id, Ended::Answered);
            }
            Err(error) => {
                self.listener.failure(user_id, &format!("question {question_id}: {error}"));
                self.failures.push((user_id, error));
                self.schedule.ended(user_id, Ended::Failed);
            }
        }
        Ok(())
    }

    fn summary(&self, from: Duration, until: Duration) -> Summary {
        let clock = &self.sender.clock;
        self.summary_between(clock.calendar(from), clock.calendar(until))
    }

    fn summary_between(&self, start: f64, end: f64) -> Summary {
        let window = Window {
            qps: self.settings.plan.qps,
            n_pending: self.requests.len(),
            n_failed: self.failures.len(),
            start,
            end,
            rules: self.settings.plan.rules,
        };
        let records: Vec<Record> = self.answered.iter().map(|answered| answered.record).collect();
        Summary::of(&records, window)
    }

    fn finish(mut self) -> Result<RunResults> {
        let start = self.sender.clock.calendar(Duration::ZERO);
        let end = self.answered.iter().map(|answered| answered.record.finish_time).fold(start, f64::max);
        let summary = self.summary_between(start, end);
        order(&mut self.answered, self.settings.plan.n_rounds);
        if let Some(path) = &self.settings.output {
            let mut csv = create(path)?;
            for AnsweredRequest { record, .. } in &self.answered {
                csv.write(record)?;
            }
        }
        Ok(RunResults { summary, answered: self.answered, failures: self.failures })
    }
}

fn create(path: &Path) -> Result<Writer<File>> {
    Writer::new(File::create(path).with_context(|| format!("create {}", path.display()))?)
}

/// Sorts as the original does: finished sessions first, by the time when they ended, then the others by user id.
fn order(answered: &mut [AnsweredRequest], n_rounds: u32) {
    let mut ends: BTreeMap<u32, (u32, f64)> = BTreeMap::new();
    for AnsweredRequest { record, .. } in answered.iter() {
        let (n_answered, last) = ends.entry(record.user_id).or_default();
        *n_answered += 1;
        *last = last.max(record.finish_time);
    }
    let key = |AnsweredRequest { record, .. }: &AnsweredRequest| {
        let (n_answered, last) = ends[&record.user_id];
        let ended = if n_answered >= n_rounds { last } else { f64::INFINITY };
        (ended, record.user_id, record.question_id)
    };
    answered.sort_by(|left, right| {
        let (left, right) = (key(left), key(right));
        left.0.total_cmp(&right.0).then((left.1, left.2).cmp(&(right.1, right.2)))
    });
}

impl Settings {
    fn question(&self, turn: Turn) -> Result<(String, u32)> {
        let Turn { user_id, question_idx } = turn;
        let entries = match &self.questions {
            Questions::Numbered => return Ok((prompts::numbered_question(question_idx), self.answer_len)),
            Questions::ShareGpt(entries) => entries,
        };
        let entry = entries.get(usize::try_from(user_id)?);
        let entry = entry.with_context(|| {
            let n = entries.len();
            format!("the ShareGPT file has {n} conversations of more than {} turns, and user {user_id} needs one more", 2 * self.plan.n_rounds)
        })?;
        let question = entry.question(usize::try_from(question_idx)?, self.answer_len);
        let (text, n_tokens) = question.with_context(|| {
            format!(
                "conversation {user_id} of the ShareGPT file has no question {question_idx} with an answer"
            )
        })?;
        Ok((text.to_owned(), n_tokens))
    }
}

impl Sender {
    fn new(settings: &Settings) -> Self {
        let Settings { base_url, api_key, n_retries, time_scale, .. } = settings;
        Self {
            client: Client::patient(),
            url: format!("{}/chat/completions", base_url.trim_end_matches('/')),
            authorization: format!("Bearer {api_key}"),
            n_retries: *n_retries,
            time_scale: *time_scale,
            clock: Clock::start(*time_scale),
        }
    }

    /// Sends ten requests at the same time, which are not counted.
    async fn warm_up(&self, settings: &Settings) -> Result<()> {
        let requests = (0..WARM_UPS).map(|idx| {
            let messages = [json!({"role": "user", "content": prompts::warm_up(idx)})];
            self.answer(None, request(&messages, &settings.model, WARM_UP_TOKENS))
        });
        let outcomes = futures::future::join_all(requests).await;
        let mut errors: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
        // All ten usually fail for the same reason.
        errors.dedup();
        ensure!(errors.is_empty(), "warm up at {}: {}", self.url, errors.join("; "));
        Ok(())
    }

    async fn record(
        &self,
        turn: Turn,
        question_id: u32,
        body: Bytes,
    ) -> Result<(AnsweredRequest, String), String> {
        let launched = self.clock.now();
        let (answer, before_last_try) = self.answer(Some(turn.user_id), body).await?;
        let finished = self.clock.now();
        let AnswerSoFar { content, first_content, prompt_tokens, completion_tokens, cached_tokens } = answer;
        let ttft = before_last_try + first_content.unwrap_or_default().mul_f64(self.time_scale);
        let record = Record {
            prompt_tokens: prompt_tokens.unwrap_or_default(),
            generation_tokens: completion_tokens.unwrap_or_default(),
            ttft: ttft.as_secs_f64(),
            generation_time: (finished.saturating_sub(launched + ttft)).as_secs_f64(),
            user_id: turn.user_id,
            question_id,
            launch_time: self.clock.calendar(launched),
            finish_time: self.clock.calendar(finished),
        };
        Ok((AnsweredRequest { record, cached_tokens }, content))
    }

    /// Returns the answer, and the virtual time that earlier tries took.
    async fn answer(&self, user_id: Option<u32>, body: Bytes) -> Result<(AnswerSoFar, Duration), String> {
        let started = self.clock.now();
        let mut backoff = FIRST_BACKOFF;
        for n_left in (0..=self.n_retries).rev() {
            let before = self.clock.now().saturating_sub(started);
            let (is_final, error) = match self.attempt(user_id, body.clone()).await {
                Ok(answer) => return Ok((answer, before)),
                Err(failure) => failure,
            };
            if is_final || n_left == 0 {
                return Err(error);
            }
            sleep(backoff.div_f64(self.time_scale)).await;
            backoff *= 2;
        }
        Err("no try was made".to_owned())
    }

    /// Sends the request once. An error says, as its first part, whether a retry is useless.
    async fn attempt(&self, user_id: Option<u32>, body: Bytes) -> Result<AnswerSoFar, (bool, String)> {
        let id = user_id.map(|id| id.to_string());
        let mut headers = vec![(AUTHORIZATION, self.authorization.as_str())];
        headers.extend(id.as_deref().map(|id| (USER_ID, id)));
        let mut reader = AnswerReader::default();
        let posted =
            self.client.post_and_read(&self.url, &headers, body, |bytes, at| reader.push(bytes, at)).await;
        let (status, text) = posted.map_err(|error| (false, format!("{error:#}")))?;
        if !status.is_success() {
            let is_final = !(matches!(status.as_u16(), 408 | 409 | 429) || status.is_server_error());
            return Err((is_final, format!("{status}: {text}")));
        }
        reader.finish().map_err(|error| (true, error))
    }
}

/// Builds the body; its keys are in the original's order.
fn request(messages: &[Value], model: &str, max_tokens: u32) -> Bytes {
    let request = json!({
        "messages": messages,
        "model": model,
        "max_tokens": max_tokens,
        "stream": true,
        "stream_options": {"include_usage": true},
        "temperature": 0,
    });
    request.to_string().into()
}
