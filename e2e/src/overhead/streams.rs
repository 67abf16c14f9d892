//! Streams: the time between the tokens that a client receives through 8081 and through 8080, and the picker's CPU time.
//! 8080 is measured twice, which shows how much of a difference is noise.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use lab::cluster::Cluster;
use load::client::{Client, Reply};
use load::clock::Stopwatch;
use load::stats::{as_f64, millis, quantile};
use load::table::new_table;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{one_token, request};

/// Time scale of the engine: a token of each stream every 6 to 10 ms, so that a busy machine still reads each by itself.
pub(super) const TIME_SCALE: f64 = 4.0;
/// Streams that run at the same time.
const STREAMS: u32 = 16;
/// Tokens of a long stream.
const TOKENS: u32 = 100;
/// Batches of whole answers in a round: the system counts CPU time in steps of 10 ms.
const WHOLE_BATCHES: u32 = 10;
/// Rounds, of which the first one is not counted.
const ROUNDS: usize = 11;
/// Time after the last answer in which the picker learns that it has ended.
const SETTLE: Duration = Duration::from_millis(100);

/// Streams that are sent in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Series {
    /// Through 8080.
    Plain,
    /// Through 8080 as well.
    PlainAgain,
    /// Through 8081.
    Picker,
    /// Through 8081, whole answers of one token.
    PickerWhole,
}

/// Results of a series.
#[derive(Clone, Debug, Default)]
struct Run {
    n_streams: usize,
    /// Milliseconds between two tokens of a stream.
    gaps: Vec<f64>,
    /// CPU time of all pickers in seconds.
    cpu_s: f64,
    wall_s: f64,
}

/// Milliseconds between two tokens of a stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Gaps {
    p50_ms: f64,
    p99_ms: f64,
}

/// Cost of the picker for streams.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct StreamOverhead {
    /// Way of the responses.
    responses: String,
    streams: usize,
    tokens: u32,
    time_scale: f64,
    plain_8080: Gaps,
    plain_8080_again: Gaps,
    picker_8081: Gaps,
    /// CPU time of the picker for a whole answer, without that of an idle picker.
    picker_cpu_ms_per_whole_answer: f64,
    /// CPU time of the picker for a stream of so many tokens.
    picker_cpu_ms_per_stream: f64,
    /// CPU time of the picker for a token of a stream.
    picker_cpu_us_per_token: f64,
}

impl Series {
    const ALL: [Self; 4] = [Self::Plain, Self::PlainAgain, Self::Picker, Self::PickerWhole];

    fn listener(self) -> &'static str {
        match self {
            Self::Plain | Self::PlainAgain => "http",
            Self::Picker | Self::PickerWhole => "llm-gw",
        }
    }
}

/// Runs every series in turns.
///
/// # Errors
/// When a request fails, or a page cannot be read.
pub(super) async fn measure(cluster: &Cluster, responses: String, body_bytes: u32) -> Result<StreamOverhead> {
    let client = Client::default();
    let mut runs = Series::ALL.map(|_| Run::default());
    let mut number = 0;
    for round in 0..ROUNDS {
        // The order rotates, so that the state in which a series leaves the machine affects all of them.
        for turn in 0..Series::ALL.len() {
            let idx = (round + turn) % Series::ALL.len();
            let run = run(cluster, &client, Series::ALL[idx], (&mut number, body_bytes)).await?;
            if round > 0 {
                runs[idx].add(run);
            }
        }
    }
    let [plain, again, picker, whole] = &runs;
    let [per_stream, per_whole] = cpu(&[plain, again], [picker, whole]);
    Ok(StreamOverhead {
        responses,
        streams: picker.n_streams,
        tokens: TOKENS,
        time_scale: TIME_SCALE,
        plain_8080: Gaps::of(&plain.gaps)?,
        plain_8080_again: Gaps::of(&again.gaps)?,
        picker_8081: Gaps::of(&picker.gaps)?,
        picker_cpu_ms_per_whole_answer: per_whole * 1e3,
        picker_cpu_ms_per_stream: per_stream * 1e3,
        picker_cpu_us_per_token: (per_stream - per_whole) / f64::from(TOKENS) * 1e6,
    })
}

/// Runs a series of one round. No two requests share a prefix: each has a `number` of its own.
async fn run(
    cluster: &Cluster,
    client: &Client,
    series: Series,
    (number, body_bytes): (&mut u32, u32),
) -> Result<Run> {
    let url = format!("http://{}/v1/chat/completions", cluster.gateway(series.listener())?);
    let (n_batches, fields) = match series {
        Series::Plain | Series::PlainAgain | Series::Picker => (1, stream()),
        Series::PickerWhole => (WHOLE_BATCHES, one_token()),
    };
    let (before, stopwatch) = (picker_cpu(cluster).await?, Stopwatch::start());
    let mut run = Run::default();
    for _ in 0..n_batches {
        let mut streams = JoinSet::new();
        for number in *number..*number + STREAMS {
            let (client, url) = (client.clone(), url.clone());
            let body = request(number, body_bytes, &fields);
            streams.spawn(async move { client.post(&url, &[], body).await });
        }
        *number += STREAMS;
        for reply in streams.join_all().await {
            run.gaps.extend(gaps(series, &reply?)?);
            run.n_streams += 1;
        }
    }
    sleep(SETTLE).await;
    Ok(Run { cpu_s: picker_cpu(cluster).await? - before, wall_s: stopwatch.elapsed().as_secs_f64(), ..run })
}

/// Fields of a request for a stream.
fn stream() -> Value {
    serde_json::json!({
        "stream": true,
        "stream_options": {"include_usage": true},
        "max_tokens": TOKENS,
        "min_tokens": TOKENS,
    })
}

/// Returns the milliseconds between the tokens of an answer; a whole answer has none.
fn gaps(series: Series, reply: &Reply) -> Result<Vec<f64>> {
    let answer = || format!("{} {}", reply.status, reply.text());
    ensure!(reply.status.is_success(), "no answer: {}", answer());
    match series {
        Series::Plain | Series::PlainAgain | Series::Picker => {
            let chat = reply.chat().map_err(|error| anyhow!("a broken stream: {error}"))?;
            Ok(chat.gaps.into_iter().map(millis).collect())
        }
        Series::PickerWhole => Ok(Vec::new()),
    }
}

/// Returns the CPU time of all pickers in seconds.
async fn picker_cpu(cluster: &Cluster) -> Result<f64> {
    const SERIES: &str = "process_cpu_seconds_total ";
    let pages = cluster.picker_pages("/metrics").await?;
    let seconds = |page: &String| {
        let value = page.lines().find_map(|line| line.strip_prefix(SERIES)?.parse::<f64>().ok());
        value.context("a picker does not report its CPU time")
    };
    pages.iter().map(seconds).sum()
}

/// Returns the seconds of CPU time for an answer of each run. A picker that nobody uses reads the pods' metrics all the
/// same: that cost is seen while streams go through 8080.
fn cpu<const N: usize>(idle: &[&Run], runs: [&Run; N]) -> [f64; N] {
    let sum = |of: fn(&Run) -> f64| idle.iter().map(|run| of(run)).sum::<f64>();
    let idle = sum(|run| run.cpu_s) / sum(|run| run.wall_s);
    runs.map(|run| (run.cpu_s - idle * run.wall_s) / as_f64(run.n_streams))
}

impl Run {
    fn add(&mut self, other: Self) {
        let Self { n_streams, gaps, cpu_s, wall_s } = other;
        self.n_streams += n_streams;
        self.gaps.extend(gaps);
        self.cpu_s += cpu_s;
        self.wall_s += wall_s;
    }
}

impl Gaps {
    fn of(sample: &[f64]) -> Result<Self> {
        let at = |q: f64| quantile(sample, q).context("no stream has two tokens");
        Ok(Self { p50_ms: at(0.5)?, p99_ms: at(0.99)? })
    }
}

impl StreamOverhead {
    pub(super) fn table(&self) -> String {
        let mut table = new_table(&["between tokens", "p50", "p99"], 1);
        for (name, gaps) in [
            ("8080, least request", &self.plain_8080),
            ("8080 again", &self.plain_8080_again),
            ("8081, picker", &self.picker_8081),
        ] {
            let row = [gaps.p50_ms, gaps.p99_ms].map(|ms| format!("{ms:.2} ms"));
            table.add_row(std::iter::once(name.to_owned()).chain(row));
        }
        format!(
            "{table}\n{} streams of {} tokens per path, {STREAMS} at a time, responses {}; wall time at time scale {}\n\
             CPU time of the picker: {:.2} ms for a whole answer, {:.2} ms for a stream, {:.1} µs of it for each token\n",
            self.streams,
            self.tokens,
            self.responses,
            self.time_scale,
            self.picker_cpu_ms_per_whole_answer,
            self.picker_cpu_ms_per_stream,
            self.picker_cpu_us_per_token
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Run, cpu};

    #[test]
    fn the_cost_of_scrapes_is_nobodys() {
        let run = |cpu_s: f64, wall_s: f64| Run { n_streams: 10, gaps: Vec::new(), cpu_s, wall_s };
        // 10 ms for an answer, and 50 ms in each second.
        let [long, short] = cpu(&[&run(0.5, 10.0); 2], [&run(0.1 + 0.2, 4.0), &run(0.1 + 0.05, 1.0)]);
        assert!((long - 0.01).abs() < 1e-9 && (short - 0.01).abs() < 1e-9, "{long} {short}");
    }
}
