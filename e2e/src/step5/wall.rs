//! The same load through the real Envoy, the picker and mock servers, on empty caches each time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cli::Step5Args;
use crate::cluster::programs::Programs;
use crate::cluster::{Cluster, Fresh};
use crate::multi_round_qa::records::Summary;
use crate::multi_round_qa::run::{self as qa, Answered, Listener, Measured, Questions, Settings};
use crate::multi_round_qa::sharegpt::Entry;
use crate::run::{interrupted, options};
use crate::stats::as_f64;
use crate::step5::judge::Figures;
use crate::step5::{COLD_TOKENS, COMMAND};
use crate::ui::Ui;

/// Above this, what the machine itself takes for a request counts like a warm step.
const MAX_TIME_SCALE: f64 = 10.0;
/// Between two summaries; nobody reads them here.
const LOG_INTERVAL: Duration = Duration::from_secs(3600);

/// Both sides, 8080 first; `None` when interrupted.
///
/// # Errors
/// When the cluster cannot be started, or a request fails.
pub async fn run(args: &Step5Args, entries: &[Entry]) -> Result<Option<(Figures, Figures)>> {
    let time_scale = args.cluster.time_scale;
    ensure!(
        time_scale <= MAX_TIME_SCALE,
        "--time-scale {time_scale}: at most {MAX_TIME_SCALE} through the real Envoy; without --wall, time is virtual"
    );
    let ui = Ui::new(args.cluster.verbose);
    let mut options = options(&args.cluster, &args.report_dir.join("step5"));
    options.replicas = Some(args.replicas());
    let programs = Programs::resolve(&args.cluster.programs, &ui.progress()).await?;
    ui.step("starting pods, picker and Envoy");
    let cluster = Cluster::start(options, programs, ui.progress()).await?;
    let sides = async {
        let plain = side(&cluster, args, entries, ("http", "8080", &ui)).await?;
        let picked = side(&cluster, args, entries, ("llm-gw", "8081", &ui)).await?;
        anyhow::Ok((plain, picked))
    };
    let sides = tokio::select! {
        sides = sides => Some(sides),
        () = interrupted() => None,
    };
    ui.step("ending every process");
    cluster.stop().await?;
    ui.finish();
    sides.transpose()
}

async fn side(
    cluster: &Cluster,
    args: &Step5Args,
    entries: &[Entry],
    (listener, name, ui): (&str, &str, &Ui),
) -> Result<Figures> {
    cluster.restart(Fresh::default()).await.context("empty the caches")?;
    let settings = Settings {
        plan: COMMAND.plan,
        words: COMMAND.words,
        answer_len: COMMAND.answer_len,
        model: "/model/qwen".to_owned(),
        base_url: format!("http://{}/v1", cluster.gateway(listener)?),
        api_key: "EMPTY".to_owned(),
        duration: Some(COMMAND.duration),
        questions: Questions::ShareGpt(Arc::from(entries)),
        output: Some(csv(&args.report_dir, name)),
        log_interval: LOG_INTERVAL,
        n_retries: 0,
        time_scale: args.cluster.time_scale,
    };
    let Measured { summary, answered, failures } =
        qa::run(&settings, &Progress { ui, name }, std::future::pending()).await?;
    ensure!(failures.is_empty(), "{} requests failed on {name}: {:?}", failures.len(), failures.first());
    let cached = |answered: &Answered| answered.cached_tokens.unwrap_or(0);
    let sum = |of: &dyn Fn(&Answered) -> u32| answered.iter().map(|one| u64::from(of(one))).sum::<u64>();
    let share = |part: u64, whole: u64| {
        as_f64(usize::try_from(part).unwrap_or(usize::MAX))
            / as_f64(usize::try_from(whole).unwrap_or(usize::MAX))
    };
    let input_tokens = sum(&|one| one.record.prompt_tokens);
    let users: std::collections::BTreeSet<u32> = answered.iter().map(|one| one.record.user_id).collect();
    Ok(Figures {
        summary,
        sessions: users.len(),
        input_tokens,
        output_tokens: sum(&|one| one.record.generation_tokens),
        cold: answered.iter().filter(|one| cached(one) < COLD_TOKENS).count(),
        hit_ratio: share(sum(&cached), input_tokens),
        busiest_share: None,
    })
}

fn csv(report_dir: &Path, name: &str) -> std::path::PathBuf {
    report_dir.join("step5").join(format!("{name}.csv"))
}

struct Progress<'a> {
    ui: &'a Ui,
    name: &'a str,
}

impl Listener for Progress<'_> {
    fn summary(&self, _summary: &Summary) {}

    fn progress(&self, elapsed: Duration, (sent, answered, failed): (usize, usize, usize)) {
        if elapsed.as_secs().is_multiple_of(60) {
            let (name, seconds) = (self.name, elapsed.as_secs());
            self.ui.step(&format!(
                "{name}: {seconds} of 600 s: {sent} sent, {answered} answered, {failed} failed"
            ));
        }
    }

    fn failure(&self, user_id: u32, error: &str) {
        self.ui.note(&format!("{}: user {user_id}, {error}", self.name));
    }
}
