//! Commands to try the tutorial by hand: `e2e up`, `down`, `status` and `logs`, with a cluster that outlives the
//! command.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use etcetera::base_strategy::{BaseStrategy as _, Xdg};
use lab::cluster::Status;
use lab::cluster::picker_choice::PickerChoice;
use lab::cluster::supervisor::{self, ClusterState, Phase};
use lab::flags::{self, ClusterArgs, options};
use lab::on::{InstallArgs, OnArgs};
use lab::session::Session;
use load::ending::End;
use load::interrupt::Interrupt;
use load::output;
use load::table::new_table;

use crate::follow::Followed;

/// Time between two looks of `logs --follow`.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Program that picks: `theirs` is that of the picker's own Deployment among the manifests, run as it says, by its
    /// name on the PATH or as FILE; its pods' addresses are in $WARMPATH_ENDPOINTS_FILE
    #[arg(long, value_name = "ours|theirs[=FILE]", default_value = "ours", conflicts_with_all = ["on", "pickers", "responses"])]
    pub picker: PickerChoice,
    #[command(flatten)]
    pub cluster: ClusterArgs,
    #[command(flatten)]
    pub on: OnArgs,
    #[command(flatten)]
    pub install: InstallArgs,
}

#[derive(Debug, Clone, Args)]
pub struct DownArgs {
    #[command(flatten)]
    pub state: StateArgs,
    #[command(flatten)]
    pub on: OnArgs,
}

/// The place in which `up` keeps its state.
#[derive(Debug, Clone, Args)]
pub struct StateArgs {
    /// State directory of `up` [default: warmpath in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, env = "WARMPATH_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub on: OnArgs,
}

#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// Logs whose names contain this: `epp`, `envoy`, `access`, a pod's name [default: all logs]
    #[arg(value_name = "NAME", default_value = "")]
    pub part: String,
    /// Print what is added, too, until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    #[command(flatten)]
    pub state: StateArgs,
    #[command(flatten)]
    pub on: OnArgs,
}

pub async fn up(args: UpArgs) -> Result<End> {
    let session = Session::new(args.cluster.verbose)?;
    let state_dir = state_dir(&args.state)?;
    let Some(programs) = session.programs(&args.cluster.programs).await? else { return Ok(End::Interrupted) };
    let Session { ui, interrupt } = &session;
    ui.step("starting pods, picker and Envoy");
    let mut options = options(&args.cluster, &state_dir.join("run"))?;
    options.picker = args.picker;
    let started =
        supervisor::up(&state_dir, &options, &programs, &ui.progress(), interrupt.requested()).await?;
    ui.finish();
    let Some(state) = started else { return Ok(End::Interrupted) };
    if interrupt.is_requested() {
        supervisor::down(&state_dir).await?;
        return Ok(End::Interrupted);
    }
    let Phase::Running { status } = &state.phase else { bail!("the cluster is not running") };
    output::print(&instructions(status, &flags::requests(&options)?)?);
    Ok(End::Good)
}

/// Returns step 4 of the tutorial, ready to paste.
fn instructions(status: &Status, requests: &Path) -> Result<String> {
    let llm = address(status, "llm-gw")?;
    let requests = requests.join("quoted");
    let curl = |round: u32| {
        format!(
            "curl -X POST ${{GATEWAY_IP}}:{}/v1/chat/completions -H 'Content-Type: application/json' -d @{}/round{round}.txt",
            llm.port(),
            requests.display()
        )
    };
    let ready = status.pods.iter().filter(|pod| pod.ready).count();
    let mut text = format!("\n{ready} pods are ready. Step 4 of the tutorial:\n\n");
    let _ = writeln!(text, "export GATEWAY_IP={}", llm.ip());
    let _ = writeln!(text, "{}\n{}", curl(1), curl(2));
    let _ = writeln!(text, "cargo e2e logs epp | grep \"Do prefix\"\n");
    let gateways: Vec<String> = status
        .gateways
        .iter()
        .map(|gateway| {
            format!("{} on {} ({} in the manifest)", gateway.listener, gateway.address, gateway.port)
        })
        .collect();
    let _ = writeln!(text, "Listeners: {}.", gateways.join(", "));
    let _ = writeln!(text, "`cargo e2e status` shows the pods, `cargo e2e down` ends everything.");
    Ok(text)
}

fn address(status: &Status, listener: &str) -> Result<std::net::SocketAddr> {
    let found =
        status.gateways.iter().find(|gateway| gateway.listener == listener).or(status.gateways.first());
    found.map(|gateway| gateway.address).context("the manifests have no Gateway")
}

pub async fn down(state: &StateArgs) -> Result<End> {
    let was_up = supervisor::down(&state_dir(state)?).await?;
    output::print(if was_up { "everything has ended\n" } else { "nothing was up\n" });
    Ok(End::Good)
}

pub fn status(args: &StatusArgs) -> Result<End> {
    let state = supervisor::status(&state_dir(&args.state)?)?;
    if args.json {
        output::print(&format!("{}\n", serde_json::to_string_pretty(&state)?));
    } else {
        output::print(&state.as_ref().map_or_else(|| "nothing is up\n".to_owned(), describe));
    }
    let running = state.is_some_and(|state| matches!(state.phase, Phase::Running { .. }));
    Ok(if running { End::Good } else { End::Failed })
}

fn describe(state: &ClusterState) -> String {
    let ClusterState { pid, run_dir, manifests, phase } = state;
    let manifests: Vec<String> = manifests.iter().map(|source| source.display().to_string()).collect();
    let mut text = format!(
        "supervisor {pid}, manifests {}, logs in {}\n",
        manifests.join(", "),
        run_dir.join("logs").display()
    );
    let status = match phase {
        Phase::Starting => return text + "starting\n",
        Phase::Failed { error } => return format!("{text}failed: {error}\n"),
        Phase::Running { status } => status,
    };
    let mut table = new_table(&["what", "name", "address", "state"], 4);
    for gateway in &status.gateways {
        let name = format!("{}/{} {}", gateway.namespace, gateway.gateway, gateway.listener);
        table.add_row(["gateway".to_owned(), name, gateway.address.to_string(), "listening".to_owned()]);
    }
    for picker in &status.pickers {
        let state = if picker.running { "running" } else { "down" };
        table.add_row(["picker".to_owned(), picker.name.clone(), picker.grpc.to_string(), state.to_owned()]);
    }
    for pod in &status.pods {
        let state = if pod.ready { "ready" } else { "not ready" };
        table.add_row(["pod".to_owned(), pod.name.clone(), pod.address.to_string(), state.to_owned()]);
    }
    let _ = writeln!(text, "{table}");
    if let Some(error) = &status.config_error {
        let _ = writeln!(text, "the newest manifests were not taken: {error}");
    }
    text
}

pub async fn logs(args: &LogsArgs) -> Result<End> {
    let interrupt = Interrupt::listen()?;
    let state_dir = state_dir(&args.state)?;
    let mut followed = Followed::default();
    let mut logs = supervisor::logs(&state_dir, &args.part)?;
    if logs.is_empty() {
        bail!("no log is called `{}`, or nothing is up", args.part);
    }
    loop {
        for added in followed.read(&logs)? {
            output::print(&String::from_utf8_lossy(&added));
        }
        if !args.follow {
            return Ok(End::Good);
        }
        if interrupt.unless(tokio::time::sleep(FOLLOW_POLL)).await.is_none() {
            return Ok(End::Interrupted);
        }
        logs = supervisor::logs(&state_dir, &args.part)?;
    }
}

pub async fn supervise(state_dir: &Path) -> Result<End> {
    supervisor::supervise(state_dir).await.map(|()| End::Good)
}

/// Returns the directory in which `up` keeps its state.
///
/// # Errors
/// When none is given and the system has none.
pub fn state_dir(args: &StateArgs) -> Result<PathBuf> {
    if let Some(dir) = &args.state_dir {
        return Ok(dir.clone());
    }
    let base = Xdg::new().context("no state directory: set --state-dir")?;
    Ok(base.state_dir().context("no state directory: set --state-dir")?.join("warmpath"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::instructions;
    use lab::cluster::{GatewayAddress, Status};

    fn status(port: u16) -> Status {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        Status {
            settled: true,
            pods: Vec::new(),
            gateways: vec![GatewayAddress {
                gateway: "qwen-inference-gateway".to_owned(),
                namespace: "default".to_owned(),
                listener: "llm-gw".to_owned(),
                port: 8081,
                address,
            }],
            pickers: Vec::new(),
            admin: address,
            config_error: None,
            trouble: None,
        }
    }

    #[test]
    fn instructions_are_the_tutorials_commands_with_the_real_port() {
        let text = instructions(&status(18081), Path::new("manifests/doc/requests")).unwrap();
        assert!(text.contains("export GATEWAY_IP=127.0.0.1\n"));
        assert!(text.contains("curl -X POST ${GATEWAY_IP}:18081/v1/chat/completions -H 'Content-Type: application/json' -d @manifests/doc/requests/quoted/round1.txt\n"));
    }
}
