//! `e2e overhead`: measures what the picker adds. It sends the same small request through 8081 and 8080 in turns, on
//! one connection each, to pods whose clock runs a thousand times faster; and then streams.

mod streams;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::Args;
use lab::cluster::fault::Unavailable;
use lab::cluster::{Cluster, Options};
use lab::flags::{ClusterArgs, attachments, options};
use lab::on::{InstallArgs, OnArgs};
use lab::requests::body;
use lab::session::{Session, Stage};
use load::client::Client;
use load::ending::End;
use load::output;
use load::pacer::Beat;
use load::stats::{millis, quantile};
use load::table::new_table;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;

use self::streams::StreamOverhead;

/// Time scale that makes the engine's time negligible: a step of 120 ms takes 0.12 ms.
const TIME_SCALE: f64 = 1000.0;
/// Requests that are first sent to each path and not counted.
const WARM_UP: u32 = 50;

#[derive(Debug, Clone, Args)]
pub struct OverheadArgs {
    /// Requests on each path
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..))]
    pub requests: u32,
    /// Bytes of each request body
    #[arg(long, value_name = "BYTES", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..=1_000_000))]
    pub body_bytes: u32,
    /// Requests per second on each path [default: as fast as they are answered]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: Option<u32>,
    /// Fail if the picker adds more than this at the median
    #[arg(long, value_name = "MS")]
    pub max_added_p50_ms: Option<f64>,
    /// Fail if the picker adds more than this at the 99th percentile
    #[arg(long, value_name = "MS")]
    pub max_added_p99_ms: Option<f64>,
    /// Directory for generated files and logs
    #[arg(long, value_name = "DIR", default_value = "report")]
    pub report_dir: PathBuf,
    /// Print JSON in place of the table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub on: OnArgs,
    #[command(flatten)]
    pub install: InstallArgs,
}

/// Milliseconds from sending a request to the last byte of its answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Latency {
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Overhead {
    requests: usize,
    body_bytes: u32,
    /// Requests per second on each path; absent if each request waits for the one before.
    rate: Option<u32>,
    plain_8080: Latency,
    picker_8081: Latency,
    /// Differences of the two latencies, quantile by quantile.
    added: Latency,
    /// Streams, for each way of responses.
    streams: Vec<StreamOverhead>,
    /// Measurements that the cluster cannot have, each with the reason.
    skipped: Vec<String>,
}

pub async fn run(args: OverheadArgs) -> Result<End> {
    let session = Session::new(args.cluster.verbose)?;
    let options = prepared(&args)?;
    let Some(programs) = session.programs(&args.cluster.programs).await? else { return Ok(End::Interrupted) };
    on(&programs, options, &args, &session).await
}

/// Returns the options of the first cluster.
///
/// # Errors
/// When the tutorial's manifests cannot be written to the run's directory.
pub fn prepared(args: &OverheadArgs) -> Result<Options> {
    let mut options = options(&args.cluster, &args.report_dir.join("overhead"))?;
    options.time_scale = TIME_SCALE;
    options.engine_args = vec!["--jitter".to_owned(), "0".to_owned()];
    Ok(options)
}

/// Measures on clusters of this stage, and prints what it finds.
///
/// # Errors
/// When a cluster cannot be started, or a request fails.
pub async fn on(stage: &impl Stage, options: Options, args: &OverheadArgs, session: &Session) -> Result<End> {
    let Session { ui, interrupt } = session;
    let measuring = async |cluster: &Cluster| {
        ui.step("measuring 8081 and 8080 in turns");
        interrupt.unless(measure(cluster, args)).await
    };
    let measured = session.with(options.clone(), stage, measuring).await?.flatten();
    let Some(mut overhead) = measured.transpose()? else { return Ok(End::Interrupted) };
    let Some((streams, skipped)) = with_streams(stage, options, args, session).await? else {
        return Ok(End::Interrupted);
    };
    (overhead.streams, overhead.skipped) = (streams, skipped);
    ui.finish();
    output::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&overhead)?),
        false => table(&overhead),
    });
    let added = &overhead.added;
    let is_within = |added: f64, allowed: Option<f64>| allowed.is_none_or(|allowed| added <= allowed);
    let good =
        is_within(added.p50_ms, args.max_added_p50_ms) && is_within(added.p99_ms, args.max_added_p99_ms);
    Ok(if good { End::Good } else { End::Failed })
}

/// Measures streams on a cluster for each way of responses. Returns the ways that the stage cannot have as skipped, each
/// with its reason; `None` if it is interrupted.
async fn with_streams(
    stage: &impl Stage,
    mut options: Options,
    args: &OverheadArgs,
    session: &Session,
) -> Result<Option<(Vec<StreamOverhead>, Vec<String>)>> {
    let Session { ui, interrupt } = session;
    options.time_scale = streams::TIME_SCALE;
    let (mut measured, mut skipped) = (Vec::new(), Vec::new());
    for responses in attachments(&args.cluster) {
        options.responses = responses;
        if let Err(Unavailable(reason)) = stage.can_have(&options) {
            skipped.push(format!("streams, responses {responses}: {reason}"));
            continue;
        }
        let measuring = async |cluster: &Cluster| {
            ui.step(&format!("measuring streams, responses {responses}"));
            interrupt.unless(streams::measure(cluster, responses.to_string(), args.body_bytes)).await
        };
        let streams = session.with(options.clone(), stage, measuring).await?.flatten();
        let Some(streams) = streams.transpose()? else { return Ok(None) };
        measured.push(streams);
    }
    Ok(Some((measured, skipped)))
}

async fn measure(cluster: &Cluster, args: &OverheadArgs) -> Result<Overhead> {
    let url = |listener: &str| -> Result<String> {
        Ok(format!("http://{}/v1/chat/completions", cluster.gateway(listener)?))
    };
    let paths = [(url("http")?, Client::default()), (url("llm-gw")?, Client::default())];
    let samples = match args.rate {
        None => closed_loop(&paths, args).await?,
        Some(rate) => open_loop(&paths, args, rate).await?,
    };
    let [plain, picker] = samples;
    let (plain_8080, picker_8081) = (Latency::of(&plain)?, Latency::of(&picker)?);
    let added = Latency {
        p50_ms: picker_8081.p50_ms - plain_8080.p50_ms,
        p90_ms: picker_8081.p90_ms - plain_8080.p90_ms,
        p99_ms: picker_8081.p99_ms - plain_8080.p99_ms,
    };
    let OverheadArgs { body_bytes, rate, .. } = *args;
    let (streams, skipped) = (Vec::new(), Vec::new());
    Ok(Overhead { requests: plain.len(), body_bytes, rate, plain_8080, picker_8081, added, streams, skipped })
}

/// Returns the milliseconds of requests by path; each request waits for the one before.
async fn closed_loop(paths: &[(String, Client); 2], args: &OverheadArgs) -> Result<[Vec<f64>; 2]> {
    let mut samples = [Vec::new(), Vec::new()];
    for number in 0..WARM_UP + args.requests {
        // The order alternates, so that the state in which one path leaves the machine affects both equally.
        for turn in 0..2 {
            let path = usize::from((number + turn) % 2 == 1);
            let elapsed = send(&paths[path], request(number, args.body_bytes, &one_token())).await?;
            if number >= WARM_UP {
                samples[path].push(elapsed);
            }
        }
    }
    Ok(samples)
}

/// Returns the milliseconds of requests by path; they are sent at an even pace, whether earlier ones are answered or
/// not.
async fn open_loop(paths: &[(String, Client); 2], args: &OverheadArgs, rate: u32) -> Result<[Vec<f64>; 2]> {
    let mut beat = Beat::start(Duration::from_secs(1) / (2 * rate))?;
    let mut requests = JoinSet::new();
    for number in 0..2 * (WARM_UP + args.requests) {
        beat.tick().await;
        let path = usize::from(number % 2 == 1);
        let (to, body) = (paths[path].clone(), request(number, args.body_bytes, &one_token()));
        requests.spawn(async move { (number, path, send(&to, body).await) });
    }
    let mut samples = [Vec::new(), Vec::new()];
    for (number, path, elapsed) in requests.join_all().await {
        let elapsed = elapsed?;
        if number >= 2 * WARM_UP {
            samples[path].push(elapsed);
        }
    }
    Ok(samples)
}

/// Returns the milliseconds from sending a request to the last byte of its answer.
async fn send((url, client): &(String, Client), body: Bytes) -> Result<f64> {
    let reply = client.post(url, &[], body).await?;
    ensure!(reply.status.is_success(), "{url} answered {}: {}", reply.status, reply.text());
    Ok(millis(reply.elapsed))
}

/// Fields of a request for one token without streaming.
fn one_token() -> Value {
    serde_json::json!({"max_tokens": 1})
}

/// Makes a request of exactly `bytes` bytes with these fields. No two requests share a prefix.
fn request(number: u32, bytes: u32, fields: &Value) -> Bytes {
    let with = |padding: &str| {
        let content = format!("{number:08} {padding}");
        let mut request = fields.clone();
        request["model"] = "/model/qwen".into();
        request["messages"] = serde_json::json!([{"role": "user", "content": content}]);
        body(&request)
    };
    let envelope = with("").len();
    let padding = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(envelope);
    with(&"hi ".chars().cycle().take(padding).collect::<String>())
}

impl Latency {
    fn of(sample: &[f64]) -> Result<Self> {
        let at = |q: f64| quantile(sample, q).context("nothing was measured");
        Ok(Self { p50_ms: at(0.5)?, p90_ms: at(0.9)?, p99_ms: at(0.99)? })
    }
}

fn table(overhead: &Overhead) -> String {
    let Overhead { requests, body_bytes, rate, plain_8080, picker_8081, added, streams, skipped } = overhead;
    let mut table = new_table(&["", "p50", "p90", "p99"], 1);
    for (name, latency) in
        [("8080, least request", plain_8080), ("8081, picker", picker_8081), ("added", added)]
    {
        let Latency { p50_ms, p90_ms, p99_ms } = latency;
        let row = [*p50_ms, *p90_ms, *p99_ms].map(|ms| format!("{ms:.2} ms"));
        table.add_row(std::iter::once(name.to_owned()).chain(row));
    }
    let pace =
        rate.map_or_else(|| "each after the last".to_owned(), |rate| format!("{rate} per second on each"));
    let streams: String = streams.iter().map(|streams| format!("\n{}", streams.table())).collect();
    let skipped: String = skipped.iter().map(|skipped| format!("skipped: {skipped}\n")).collect();
    format!(
        "{table}\n{requests} requests of {body_bytes} bytes per path, in turns, {pace}; wall time\n{streams}{skipped}"
    )
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use clap::Parser as _;
    use lab::cluster::fault::Unavailable;
    use lab::cluster::provider::Answer;
    use lab::cluster::{Cluster, Options, Progress};
    use lab::session::{Session, Stage};
    use load::interrupt::Interrupt;

    use super::{OverheadArgs, StreamOverhead, one_token, request, with_streams};

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: OverheadArgs,
    }

    /// A stage that starts no cluster, and can have no way of responses but one.
    struct Empty {
        way: &'static str,
    }

    impl Stage for Empty {
        fn can_have(&self, options: &Options) -> Result<(), Unavailable> {
            let is_had = options.responses.to_string() == self.way;
            is_had.then_some(()).ok_or_else(|| Unavailable("it has another way".to_owned()))
        }

        fn start<'a>(&'a self, _: Options, _: Progress, _: &'a Interrupt) -> Answer<'a, Option<Cluster>> {
            Box::pin(async { Err(Unavailable("no pod starts".to_owned()).into()) })
        }
    }

    async fn streams_on(way: &'static str) -> Result<Option<(Vec<StreamOverhead>, Vec<String>)>> {
        let args = Line::parse_from(["overhead"]).args;
        let options = Options::new("manifests", "run");
        with_streams(&Empty { way }, options, &args, &Session::new(false)?).await
    }

    /// The control is a stage that can have one of the ways, and starts no cluster all the same.
    #[tokio::test]
    async fn only_a_way_of_responses_that_is_refused_is_skipped() {
        let (measured, skipped) = streams_on("none").await.unwrap().unwrap();
        assert!(measured.is_empty());
        let skip = |way| format!("streams, responses {way}: it has another way");
        assert_eq!(skipped, [skip("through"), skip("observed=0.05")]);
        for way in ["through", "observed=0.05"] {
            assert_eq!(streams_on(way).await.unwrap_err().to_string(), "no pod starts");
        }
    }

    #[test]
    fn bodies_have_the_asked_size_and_differ_early() {
        let (one, two) = (request(1, 2048, &one_token()), request(2, 2048, &one_token()));
        assert_eq!((one.len(), two.len()), (2048, 2048));
        assert_ne!(one, two);
        assert!(serde_json::from_slice::<serde_json::Value>(&one).is_ok());
    }
}
