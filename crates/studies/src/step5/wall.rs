//! Runs the same load through the real Envoy, the picker and mock servers, on empty caches each time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lab::cluster::{Cluster, Fresh};
use lab::evidence::picker::parse_decisions;
use lab::flags::ClusterArgs;
use lab::flags::options;
use lab::session::{Session, Stage};
use lab::ui::Ui;
use load::multi_round_qa::records::Summary;
use load::multi_round_qa::run::{
    self as qa, AnsweredRequest, Listener, Questions, Repeatable, RunResults, Settings,
};
use load::multi_round_qa::sharegpt::Entry;
use load::stats::as_f64;

use crate::step5::COMMAND;
use crate::step5::judge::{Figures, Timed};
use crate::step5::workload::TICK;

/// Time between two summaries, which are not shown here.
const LOG_INTERVAL: Duration = Duration::from_secs(3600);
/// Wall time between requests that are due together, longer than a request takes until its pick.
const STAGGER: Duration = Duration::from_millis(3);
/// Seconds of wall time between two lines of progress.
const PROGRESS_INTERVAL: f64 = 5.0;

/// Settings of the runs.
#[derive(Clone, Debug)]
pub struct WallSettings {
    pub cluster: ClusterArgs,
    pub n_pods: u32,
    pub latency: String,
    /// Length of the tutorial's load to run, from its start.
    pub duration: Duration,
    pub time_scale: f64,
    /// Seed of the picker: it breaks ties like the simulated picker with the same seed.
    pub picker_seed: u64,
    pub report_dir: PathBuf,
}

/// Runs both sides on a cluster of this stage and returns the figures of 8080 first; `None` if it is interrupted.
///
/// # Errors
/// When the cluster cannot be started, or a request fails.
pub async fn run(
    wall_settings: &WallSettings,
    entries: &[Entry],
    (session, stage): (&Session, &impl Stage),
) -> Result<Option<[Figures; 2]>> {
    let mut options = options(&wall_settings.cluster, &run_dir(&wall_settings.report_dir))?;
    (options.replicas, options.time_scale) = (Some(wall_settings.n_pods), wall_settings.time_scale);
    options.engine_args =
        ["--latency-preset", &wall_settings.latency, "--jitter", "0"].map(str::to_owned).to_vec();
    options.picker_args = vec!["--seed".to_owned(), wall_settings.picker_seed.to_string()];
    let Session { ui, interrupt } = session;
    let anew = Fresh {
        engine_args: options.engine_args.clone(),
        picker_args: options.picker_args.clone(),
        ..Fresh::default()
    };
    let both = async |cluster: &Cluster| {
        let plain = side(cluster, wall_settings, entries, ("http", "8080", ui)).await?;
        // Start over with empty caches, and a picker that has seen no request.
        cluster.restart(anew).await.context("empty the caches")?;
        let picked = side(cluster, wall_settings, entries, ("llm-gw", "8081", ui)).await?;
        let kept_at = run_dir(&wall_settings.report_dir).join("decisions.json");
        let picks = picks(cluster, picked.1, &kept_at).await?;
        anyhow::Ok([plain.0, Figures { picks, ..picked.0 }])
    };
    let ran = session.with(options, stage, async |cluster| interrupt.unless(both(cluster)).await).await?;
    ui.finish();
    ran.flatten().transpose()
}

/// The directory for generated files and logs.
#[must_use]
pub fn run_dir(report_dir: &Path) -> PathBuf {
    report_dir.join("step5")
}

async fn side(
    cluster: &Cluster,
    wall_settings: &WallSettings,
    entries: &[Entry],
    (listener, name, ui): (&str, &'static str, &Ui),
) -> Result<(Figures, Vec<AnsweredRequest>)> {
    let settings = Settings {
        plan: COMMAND.plan,
        words: COMMAND.words,
        answer_len: COMMAND.answer_len,
        model: "/model/qwen".to_owned(),
        base_url: format!("http://{}/v1", cluster.gateway(listener)?),
        api_key: "EMPTY".to_owned(),
        duration: Some(wall_settings.duration),
        questions: Questions::ShareGpt(Arc::from(entries)),
        output: Some(csv(&wall_settings.report_dir, name)),
        log_interval: LOG_INTERVAL,
        n_retries: 0,
        repeatable: Some(Repeatable { tick: TICK, settle: COMMAND.settle, stagger: STAGGER }),
        time_scale: wall_settings.time_scale,
    };
    let progress = Progress { ui, name, wall_settings };
    let measured = qa::run(&settings, &progress, std::future::pending()).await?;
    let RunResults { summary, mut answered, failures } = measured.context("nothing stops it")?;
    if let Some((user_id, error)) = failures.first() {
        bail!("{} requests failed on {name}; the first is of user {user_id}: {error}", failures.len());
    }
    answered.sort_by_key(|one| (one.record.user_id, one.record.question_id));
    Ok((figures(summary, &answered), answered))
}

/// Returns all figures except the picks; the answered requests are sorted by user and question.
fn figures(summary: Summary, answered: &[AnsweredRequest]) -> Figures {
    let cached = |answered: &AnsweredRequest| answered.cached_tokens.unwrap_or(0);
    let sum =
        |of: &dyn Fn(&AnsweredRequest) -> u32| answered.iter().map(|one| u64::from(of(one))).sum::<u64>();
    let share = |part: u64, whole: u64| {
        as_f64(usize::try_from(part).unwrap_or(usize::MAX))
            / as_f64(usize::try_from(whole).unwrap_or(usize::MAX))
    };
    let input_tokens = sum(&|one| one.record.prompt_tokens);
    let users: BTreeSet<u32> = answered.iter().map(|one| one.record.user_id).collect();
    Figures {
        summary,
        sessions: users.len(),
        input_tokens,
        output_tokens: sum(&|one| one.record.generation_tokens),
        requests: answered
            .iter()
            .map(|one| Timed { ttft: one.record.ttft, cached_tokens: cached(one) })
            .collect(),
        hit_ratio: share(sum(&cached), input_tokens),
        picks: Vec::new(),
        first_failure: None,
    }
}

/// Returns where the picker sent the requests, sorted by user and question, without the earlier ones of the warm-up.
/// Keeps all that the picker reports in a file.
async fn picks(cluster: &Cluster, mut answered: Vec<AnsweredRequest>, kept_at: &Path) -> Result<Vec<usize>> {
    let pages = cluster.picker_pages("/debug/decisions?after=0").await?;
    let page = pages.first().context("no picker runs")?;
    std::fs::write(kept_at, page).with_context(|| format!("write {}", kept_at.display()))?;
    let mut decisions =
        parse_decisions(page.as_bytes()).with_context(|| format!("read the picker's decisions: {page}"))?;
    decisions.sort_by_key(|decision| decision.seq);
    let n_before =
        decisions.len().checked_sub(answered.len()).context("the picker has forgotten decisions")?;
    answered.sort_by(|one, other| one.record.launch_time.total_cmp(&other.record.launch_time));
    let mut numbers = BTreeMap::new();
    let mut picks = BTreeMap::new();
    for (AnsweredRequest { record, .. }, decision) in
        answered.iter().zip(decisions.into_iter().skip(n_before))
    {
        let endpoint = decision.endpoint.context("a request had no endpoint")?;
        let n_known = numbers.len();
        let number = *numbers.entry(endpoint).or_insert(n_known);
        picks.insert((record.user_id, record.question_id), number);
    }
    Ok(picks.into_values().collect())
}

fn csv(report_dir: &Path, name: &str) -> PathBuf {
    run_dir(report_dir).join(format!("{name}.csv"))
}

struct Progress<'a> {
    ui: &'a Ui,
    name: &'a str,
    wall_settings: &'a WallSettings,
}

impl Listener for Progress<'_> {
    fn summary(&self, _summary: &Summary) {}

    fn progress(&self, elapsed: Duration, (sent, answered, failed): (usize, usize, usize)) {
        let Self { ui, name, wall_settings } = self;
        let interval = (PROGRESS_INTERVAL * wall_settings.time_scale).round().max(1.0);
        if (elapsed.as_secs_f64() % interval) < 1.0 {
            let (seconds, all) = (elapsed.as_secs(), wall_settings.duration.as_secs());
            ui.step(&format!(
                "{name}: {seconds} of {all} s: {sent} sent, {answered} answered, {failed} failed"
            ));
        }
    }

    fn failure(&self, user_id: u32, error: &str) {
        self.ui.note(&format!("{}: user {user_id}, {error}", self.name));
    }
}
