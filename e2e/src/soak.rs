//! `e2e soak`: conversations at an even pace through 8081 while pods are killed, pickers are replaced and users hang up.
//! Some answers last longer than a picker that is replaced waits for.
//!
//! In the end some streams run that are counted: pickers and pods must agree on them, and on none when they are over.
//!
//! A request may fail only if the pod that was computing it was killed. Any other failed request had a live pod and was
//! lost. The results are reported however the run ends.

mod ledger;
mod chaos;
mod counted;
mod memory;
mod users;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use lab::cluster::{Cluster, Options};
use lab::evidence::access_log::AccessEntry;
use lab::flags::{ClusterArgs, options};
use lab::on::{InstallArgs, OnArgs};
use lab::patience::{self, Patience};
use lab::session::{Session, Stage};
use lab::ui::Ui;
use load::client::Client;
use load::clock::Stopwatch;
use load::ending::End;
use load::output;
use load::pacer::Beat;
use load::stats::as_f64;
use load::table::new_table;
use parking_lot::Mutex;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::time::{interval, sleep, timeout};
use tokio_util::task::TaskTracker;

use self::chaos::{Chaos, Death};
use self::ledger::{Ledger, Sent, Tally};
use self::memory::{Growth, Memory};
use self::users::{NextRequest, Users};

/// Default number of pickers: while one is replaced, Envoy needs another.
const PICKERS: u32 = 2;
/// Arguments of the pickers. One that is replaced waits for requests, which last milliseconds, but not for long answers.
const PICKER_ARGS: [&str; 2] = ["--grace-period", "2s"];
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// Longest wait for answers when the run was cut short.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// Time between two looks at Envoy's log, which Envoy writes a moment later.
const LOG_POLL: Duration = Duration::from_millis(500);
/// Most bytes that a picker may hold; [`MAX_GROWTH_BYTES`] is the most that any process may add in the second half of
/// its life.
const MAX_PICKER_BYTES: f64 = 150e6;
const MAX_GROWTH_BYTES: f64 = 8e6;

#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    /// Seconds for which requests are sent
    #[arg(long, value_name = "N", default_value_t = 1800, value_parser = clap::value_parser!(u32).range(10..))]
    pub seconds: u32,
    /// Requests per second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub rate: u32,
    /// Seconds between two kills of a pod
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub kill_every: u32,
    /// Number of times that a picker is replaced, evenly over the first two thirds of the run; the last pickers live long
    /// enough to show if their memory grows
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub replacements: u32,
    /// Seed that chooses the texts and the pods that die
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
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

/// Results of a run.
#[derive(Debug, Serialize)]
struct Outcome {
    seconds: f64,
    requests: Tally,
    pods_killed: usize,
    /// Seconds from the order to kill a pod until it was gone, at most. Requests that it got meanwhile are excused.
    longest_death_s: f64,
    pickers_replaced: usize,
    /// Memory by process, in bytes.
    memory: Vec<Growth>,
    /// Everything that does not hold.
    problems: Vec<String>,
}

pub async fn run(args: SoakArgs) -> Result<End> {
    let session = Session::new(args.cluster.verbose)?;
    let options = prepared(&args)?;
    let Some(programs) = session.programs(&args.cluster.programs).await? else { return Ok(End::Interrupted) };
    on(&programs, options, &args, &session).await
}

/// Returns the options of the cluster.
///
/// # Errors
/// When the tutorial's manifests cannot be written to the run's directory.
pub fn prepared(args: &SoakArgs) -> Result<Options> {
    let mut options = options(&args.cluster, &args.report_dir.join("soak"))?;
    options.pickers = args.cluster.pickers.unwrap_or(PICKERS);
    options.picker_args = PICKER_ARGS.map(str::to_owned).to_vec();
    Ok(options)
}

/// Runs the soak on a cluster of this stage, and prints what it finds.
///
/// # Errors
/// When the cluster cannot be started, or the settings make no sense on it.
pub async fn on(stage: &impl Stage, options: Options, args: &SoakArgs, session: &Session) -> Result<End> {
    let soaked = session.with(options, stage, async |cluster| soak(cluster, args, session).await).await?;
    let Session { ui, interrupt } = session;
    ui.finish();
    let Some(outcome) = soaked.transpose()? else { return Ok(End::Interrupted) };
    output::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&outcome)?),
        false => table(&outcome),
    });
    Ok(match (interrupt.is_requested(), outcome.problems.is_empty()) {
        (true, _) => End::Interrupted,
        (false, true) => End::Good,
        (false, false) => End::Failed,
    })
}

/// Refuses settings with which a part of the run could never happen.
fn check(cluster: &Cluster, args: &SoakArgs) -> Result<()> {
    let status = cluster.status();
    ensure!(
        args.replacements == 0 || !status.pickers.is_empty(),
        "no picker runs that could be replaced: the manifests have no InferencePool (--replacements 0 does without)"
    );
    let n_pods = status.pods.len();
    ensure!(
        n_pods > 1 || args.seconds <= args.kill_every,
        "{n_pods} pods run, and one is killed only if another one is left: --replicas 2"
    );
    Ok(())
}

async fn soak(cluster: &Cluster, args: &SoakArgs, session: &Session) -> Result<Outcome> {
    let Session { ui, interrupt } = session;
    check(cluster, args)?;
    let started = Stopwatch::start();
    let url = format!("http://{}/v1/chat/completions", cluster.gateway("llm-gw")?);
    let duration = Duration::from_secs(args.seconds.into());
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let chaos = Chaos::new(cluster, started, ChaCha8Rng::seed_from_u64(rng.random()));
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let memory = Memory::new(cluster, started);
    ui.note(&format!(
        "{} requests per second for {} s; a pod dies every {} s, a picker is replaced {} times",
        args.rate, args.seconds, args.kill_every, args.replacements
    ));
    let waiting = TaskTracker::new();
    let talking = Conversing {
        url: url.clone(),
        client: Client::default(),
        started,
        ledger: Arc::clone(&ledger),
        waiting: waiting.clone(),
    };
    let parts = async {
        tokio::try_join!(
            talking.run(duration, args.rate, Users::new(rng.random())),
            chaos.kill_pods(duration, Duration::from_secs(args.kill_every.into())),
            chaos.replace_pickers(duration * 2 / 3, args.replacements),
            memory.watch(duration),
        )
    };
    let cut = tokio::select! {
        ended = interrupt.unless(parts) => match ended {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(format!("the run was cut short: {error:#}")),
            None => Some("the run was interrupted".to_owned()),
        },
        never = progress(duration, &ledger, ui) => match never {},
    };
    waiting.close();
    // Requests that are not answered by then count as lost.
    match cut {
        None => interrupt.unless(waiting.wait()).await.unwrap_or(()),
        Some(_) => timeout(LAST_ANSWERS, waiting.wait()).await.unwrap_or(()),
    }
    let (log, unread) = match complete_log(cluster, &ledger).await {
        Ok(log) => (log, None),
        Err(error) => (Vec::new(), Some(format!("no failure is excused: {error:#}"))),
    };
    let (deaths, pickers_replaced) = chaos.done();
    let requests = ledger.lock().judge(&log, &deaths);
    let uncounted = match &cut {
        None => interrupt.unless(counted::problems(cluster, &url)).await.transpose(),
        Some(_) => Ok(None),
    };
    let uncounted = uncounted.map(Option::unwrap_or_default);
    let uncounted = uncounted.unwrap_or_else(|error| vec![format!("nothing in flight is known: {error:#}")]);
    let growth = memory.growth();
    let problems = problems(&requests, &growth, (deaths.len(), args));
    Ok(Outcome {
        seconds: started.elapsed().as_secs_f64(),
        requests,
        pods_killed: deaths.len(),
        longest_death_s: deaths.iter().map(Death::duration).max().unwrap_or_default().as_secs_f64(),
        pickers_replaced,
        problems: cut.into_iter().chain(unread).chain(uncounted).chain(problems).collect(),
        memory: growth,
    })
}

/// Reads Envoy's log when it has every failed request, or when nothing is added to it any more.
async fn complete_log(cluster: &Cluster, ledger: &Mutex<Ledger>) -> Result<Vec<AccessEntry>> {
    let mut patience = Patience::start(patience::LOGS);
    loop {
        let log = cluster.access_log()?;
        if ledger.lock().failures_are_in(&log) || !patience.lasts(log.len()) {
            return Ok(log);
        }
        sleep(LOG_POLL).await;
    }
}

/// The part of the run that sends requests.
struct Conversing {
    url: String,
    client: Client,
    started: Stopwatch,
    ledger: Arc<Mutex<Ledger>>,
    /// One task for each request without an answer.
    waiting: TaskTracker,
}

impl Conversing {
    /// Sends requests at an even pace, and returns when the last one is sent.
    async fn run(&self, duration: Duration, rate: u32, users: Users) -> Result<()> {
        let users = Arc::new(Mutex::new(users));
        let mut beat = Beat::start(Duration::from_secs(1) / rate)?;
        let mut number = 0_u64;
        while self.started.elapsed() < duration {
            beat.tick().await;
            let turn = users.lock().next();
            let url = format!("{}?soak={number}", self.url);
            let (client, users) = (self.client.clone(), Arc::clone(&users));
            let (ledger, started) = (Arc::clone(&self.ledger), self.started);
            let sent_at = started.elapsed();
            ledger.lock().n_sent += 1;
            self.waiting.spawn(async move {
                let NextRequest { user, body, length, hangs_up_after } = turn;
                let patience = hangs_up_after.unwrap_or(Duration::MAX);
                let Ok(reply) = timeout(patience, client.post(&url, &[], body)).await else {
                    users.lock().answered(user, None);
                    return ledger.lock().note_hung_up();
                };
                let sent = Sent { number, length, sent_at, ended_at: started.elapsed() };
                let answer = reply.map_err(|error| format!("{error:#}")).and_then(|reply| {
                    reply.chat().map_err(|error| format!("{}: {error}", reply.status.as_u16()))
                });
                users.lock().answered(user, answer.as_ref().ok().map(|chat| chat.content.as_str()));
                ledger.lock().note(sent, answer.map(|chat| chat.usage));
            });
            number += 1;
        }
        Ok(())
    }
}

async fn progress(duration: Duration, ledger: &Mutex<Ledger>, ui: &Ui) -> Infallible {
    let started = Stopwatch::start();
    let mut ticks = interval(PROGRESS);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let (n_sent, n_answered, n_failed) = ledger.lock().counts();
        let seconds = started.elapsed().as_secs();
        ui.step(&format!(
            "{seconds} of {} s: {n_sent} sent, {n_answered} answered, {n_failed} failed",
            duration.as_secs()
        ));
    }
}

fn problems(requests: &Tally, memory: &[Growth], (n_killed, args): (usize, &SoakArgs)) -> Vec<String> {
    let mut problems = Vec::new();
    if requests.answered == 0 {
        problems.push("no request was answered".to_owned());
    }
    if !requests.lost.is_empty() {
        problems.push(format!("{} requests with a live pod were lost", requests.lost.len()));
    }
    if requests.cut > 0 {
        problems.push(format!("{} answers of live pods were cut", requests.cut));
    }
    if requests.answered > 0 && requests.long == 0 {
        problems.push("no long answer came".to_owned());
    }
    if n_killed == 0 && args.seconds > args.kill_every {
        problems.push("no pod was killed".to_owned());
    }
    for growth in memory.iter().filter(|growth| growth.is_picker) {
        if growth.most > MAX_PICKER_BYTES {
            let most = growth.most / 1e6;
            problems.push(format!(
                "{} holds {most:.0} MB, more than {}",
                growth.process,
                MAX_PICKER_BYTES / 1e6
            ));
        }
    }
    for growth in memory.iter().filter(|growth| growth.grown > MAX_GROWTH_BYTES) {
        let grown = growth.grown / 1e6;
        problems.push(format!("{} grew by {grown:.1} MB in the second half of its life", growth.process));
    }
    problems
}

fn table(outcome: &Outcome) -> String {
    let Outcome { seconds, requests, pods_killed, longest_death_s, pickers_replaced, memory, problems } =
        outcome;
    let mut table = new_table(&["process", "half way", "at the end", "most"], 1);
    for Growth { process, half_way, grown, most, .. } in memory {
        let row = [*half_way, half_way + grown, *most].map(|bytes| format!("{:.1} MB", bytes / 1e6));
        table.add_row(std::iter::once(process.clone()).chain(row));
    }
    let Tally { sent, answered, long, hung_up, excused, lost, cut, cached_share } = requests;
    let mut text = format!(
        "{table}\n{sent} requests in {seconds:.0} s ({:.1} per second): {answered} answered ({long} of them long), \
         {hung_up} hung up, {excused} failed with their pod, {} lost ({cut} of them cut); {:.0} % of prompt tokens cached\n{pods_killed} pods killed, each within {longest_death_s:.2} s, {pickers_replaced} pickers replaced\n",
        as_f64(*sent) / seconds,
        lost.len(),
        cached_share * 100.0
    );
    for line in lost.iter().take(20) {
        text += &format!("lost: {line}\n");
    }
    for problem in problems {
        text += &format!("FAILED {problem}\n");
    }
    if problems.is_empty() {
        text += "no request that had a live pod was lost, pickers and pods agree on those in flight, and memory is flat\n";
    }
    text
}
