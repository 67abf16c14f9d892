//! The commands on a Kubernetes cluster.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use lab::cluster::programs::ProgramOptions;
use lab::doc;
use lab::engine::Engine;
use lab::flags;
use lab::on::{InstallArgs, OnArgs, Provider};
use lab::report::Outcome;
use lab::session::Session;
use lab_kube::api::Access;
use lab_kube::settle::{self, Listener};
use lab_kube::stage::{self, Asked, Left, made_for};
use lab_kube::stand::{self, Target};
use lab_kube::tutorial::{self, Shell};
use lab_kube::{images, pods};
use load::ending::End;
use load::interrupt::Interrupt;
use load::output;

use crate::commands::{DownArgs, LogsArgs, StatusArgs, UpArgs, state_dir};
use crate::on::{ImagesArgs, TutorialArgs};
use crate::overhead::{self, OverheadArgs};
use crate::run::{self, Checks, RunArgs};
use crate::soak::{self, SoakArgs};

const VERSION: &str = env!("PROGRAM_VERSION");

/// The tutorial's Gateway, of which the user's shell asks the address.
const GATEWAY_IP: &str = "export GATEWAY_IP=$(kubectl get gateway/qwen-inference-gateway -o jsonpath='{.status.addresses[0].value}')";

fn asked<'a>(on: &'a OnArgs, install: &'a InstallArgs, programs: &'a ProgramOptions) -> Asked<'a> {
    Asked { on, install, programs, version: VERSION }
}

/// `e2e images`.
pub async fn images(args: ImagesArgs) -> Result<End> {
    let session = Session::new(false)?;
    let progress = session.ui.progress();
    let context = args.context_dir;
    let built = images::build(&args.programs, VERSION, &context, &progress);
    let built = session.interrupt.unless(built).await.transpose()?;
    session.ui.finish();
    let Some(references) = built else { return Ok(End::Interrupted) };
    output::print(&references.iter().map(|reference| format!("{reference}\n")).collect::<String>());
    Ok(End::Good)
}

/// `e2e --on …`.
pub async fn run(args: RunArgs) -> Result<End> {
    let session = Session::new(args.cluster.verbose)?;
    if args.install.engine == Engine::Vllm && args.cluster.time_scale.is_some() {
        bail!("--time-scale is for mock-vllm: real engines have no other time than yours");
    }
    let mut options = run::prepared(&args)?;
    options.engine = args.install.engine;
    let run_dir = options.run_dir.clone();
    let mut checks = Checks::new(&args, &options, &session)?;
    let asked = asked(&args.on, &args.install, &args.cluster.programs);
    let outcome = asked.stage(&session, &run_dir, async |stage| {
        checks.restart_clock();
        session.with(options, stage, async |cluster| checks.run(cluster).await).await?.transpose()
    });
    let outcome = outcome.await?.unwrap_or(Outcome::Interrupted);
    checks.report(outcome)
}

/// `e2e soak --on …`.
pub async fn soak(args: SoakArgs) -> Result<End> {
    let session = Session::new(args.cluster.verbose)?;
    let options = soak::prepared(&args)?;
    let run_dir = options.run_dir.clone();
    let asked = asked(&args.on, &args.install, &args.cluster.programs).with_mocks()?;
    let ended = asked
        .stage(&session, &run_dir, async |stage| soak::on(stage, options, &args, &session).await.map(Some));
    Ok(ended.await?.unwrap_or(End::Interrupted))
}

/// `e2e overhead --on …`.
pub async fn overhead(args: OverheadArgs) -> Result<End> {
    let session = Session::new(args.cluster.verbose)?;
    let options = overhead::prepared(&args)?;
    let run_dir = options.run_dir.clone();
    let asked = asked(&args.on, &args.install, &args.cluster.programs).with_mocks()?;
    let ended = asked.stage(&session, &run_dir, async |stage| {
        overhead::on(stage, options, &args, &session).await.map(Some)
    });
    Ok(ended.await?.unwrap_or(End::Interrupted))
}

/// `e2e up --on …`.
pub async fn up(args: UpArgs) -> Result<End> {
    let UpArgs { state, picker: _, cluster, on, install } = args;
    let session = Session::new(cluster.verbose)?;
    let run_dir = state_dir(&state)?.join("kubernetes");
    let manifests = flags::sources(&cluster.manifests, &run_dir)?;
    let requests = doc::directory(&run_dir)?.join("requests/quoted");
    let asked = asked(&on, &install, &cluster.programs);
    let plan = asked.plan(stage::target(&on, None)?, run_dir);
    let stand = async {
        let progress = session.ui.progress();
        let standing = stand::components(&plan, &progress).await?;
        stand::objects(&standing, &manifests, &progress).await?;
        settle::listeners(&standing.access).await
    };
    let stood = made_for(&session, &plan.target, Left::IfDone, async || {
        session.interrupt.unless(stand).await.transpose()
    });
    let Some(listeners) = stood.await? else { return Ok(End::Interrupted) };
    output::print(&instructions(&listeners, &requests, &on));
    Ok(End::Good)
}

/// Step 4 of the tutorial, ready to paste.
fn instructions(listeners: &[Listener], requests: &Path, on: &OnArgs) -> String {
    let curl = |round: u32| {
        format!(
            "curl -X POST ${{GATEWAY_IP}}:8081/v1/chat/completions -H 'Content-Type: application/json' -d @{}/round{round}.txt\n",
            requests.display()
        )
    };
    let addresses: Vec<String> = listeners
        .iter()
        .map(|Listener { name, address, port, .. }| format!("{name} on {address}:{port}"))
        .collect();
    let down = match on.on {
        Some(Provider::Kind) | None => "cargo e2e down --on kind",
        Some(Provider::Cluster) => "cargo e2e down --on cluster",
    };
    format!(
        "\nThe tutorial's objects serve. Step 4:\n\n{GATEWAY_IP}\n{}{}\
         kubectl logs deploy/epp-default-inference-gateway-ext-proc -n envoy-gateway-system|grep \"Do prefix\"\n\n\
         Listeners: {}.\n`{down}` removes everything.\n",
        curl(1),
        curl(2),
        addresses.join(", ")
    )
}

/// `e2e down --on …`.
pub async fn down(args: DownArgs) -> Result<End> {
    let DownArgs { state, on } = args;
    let session = Session::new(false)?;
    let target = stage::target(&on, None)?;
    stand::check(&target).await?;
    let was_up = match &target {
        Target::Kind(kind) => {
            let is_there = kind.is_there().await?;
            if is_there {
                session.ui.step(&format!("deleting the cluster {}", kind.name));
                kind.delete().await?;
            }
            is_there
        }
        Target::Existing(context) => {
            let run_dir = state_dir(&state)?.join("kubernetes");
            let access = Access::new(None, context.as_deref()).await?;
            let manifests = doc::directory(&run_dir)?;
            stand::remove(&access, &run_dir, &manifests, &session.ui.progress()).await?;
            true
        }
    };
    session.ui.finish();
    output::print(if was_up { "everything has ended\n" } else { "nothing was up\n" });
    Ok(End::Good)
}

/// Access to a cluster that is up; `None` if there is none.
async fn access(on: &OnArgs) -> Result<Option<Access>> {
    let target = stage::target(on, None)?;
    stand::check(&target).await?;
    match &target {
        Target::Kind(kind) if !kind.is_there().await? => Ok(None),
        Target::Kind(kind) => Access::new(None, Some(&kind.context())).await.map(Some),
        Target::Existing(context) => Access::new(None, context.as_deref()).await.map(Some),
    }
}

/// `e2e status --on …`.
pub async fn status(args: StatusArgs) -> Result<End> {
    if args.json {
        bail!("--json is not there with --on: `kubectl get pods --all-namespaces -o json` has the same");
    }
    let Some(access) = access(&args.on).await? else {
        output::print("nothing is up\n");
        return Ok(End::Failed);
    };
    let (text, is_ready) = pods::describe(&access).await?;
    output::print(&text);
    Ok(if is_ready { End::Good } else { End::Failed })
}

/// `e2e logs --on …`.
pub async fn logs(args: LogsArgs) -> Result<End> {
    let interrupt = Interrupt::listen()?;
    let access = access(&args.on).await?.context("nothing is up")?;
    let logs = pods::logs(&access, &args.part).await?;
    if logs.is_empty() {
        bail!("no pod is called `{}`", args.part);
    }
    let mut lines = pods::lines(&access, logs, args.follow).await?;
    while let Some(next) = interrupt.unless(lines.next()).await {
        match next {
            Some(line) => output::print(&format!("{}\n", line.context("read a log")?)),
            None => return Ok(End::Good),
        }
    }
    Ok(End::Interrupted)
}

/// `e2e tutorial --on …`.
pub async fn tutorial(args: TutorialArgs) -> Result<End> {
    let session = Session::new(args.verbose)?;
    let TutorialArgs { time, report_dir, keep, verbose: _, on, install, programs } = args;
    let run_dir = report_dir.join("kubernetes");
    std::fs::create_dir_all(&run_dir).with_context(|| format!("create {}", run_dir.display()))?;
    // A cluster for this run only does not become the user's current one.
    let kubeconfig = (on.on == Some(Provider::Kind) && !keep).then(|| run_dir.join("kubeconfig"));
    let asked = asked(&on, &install, &programs);
    let plan = asked.plan(stage::target(&on, kubeconfig.clone())?, run_dir.clone());
    let left = if keep { Left::IfDone } else { Left::Nothing };
    let transcript = report_dir.join("tutorial.txt");
    let follow = async {
        let manifests = doc::directory(&run_dir)?;
        let steps = tutorial::steps(&manifests)?;
        let progress = session.ui.progress();
        let standing = stand::components(&plan, &progress).await?;
        let shell = Shell::new(&report_dir.join("tutorial"), &manifests, kubeconfig.as_deref())?;
        let mut written = File::create(&transcript).context("create the transcript")?;
        for step in steps.iter().map(|step| step.for_seconds(time)) {
            session.ui.step(&step.title);
            let ran = shell.run(&step.run).await?;
            let verdict = step.judge(&ran);
            written.write_all(tutorial::entry(&step, &ran, &verdict).as_bytes())?;
            if let Err(error) = verdict {
                session.ui.note(&format!(
                    "{}: {error:#}\n$ {}\n{}{}",
                    step.title, step.run, ran.stdout, ran.stderr
                ));
                return Ok(End::Failed);
            }
            session.ui.note(&format!("{}: as expected", step.title));
            settle::settle(&standing.access, standing.conditions, &progress).await?;
        }
        Ok(End::Good)
    };
    let followed =
        made_for(&session, &plan.target, left, async || session.interrupt.unless(follow).await.transpose());
    let end = followed.await?.unwrap_or(End::Interrupted);
    output::print(&format!("transcript: {}\n", transcript.display()));
    Ok(end)
}
