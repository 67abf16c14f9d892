//! A cluster of stubs in its own directory: shows the provider's behaviour without the real programs.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use clap::Parser as _;
use lab::cluster::manifests::Manifests;
use lab::cluster::programs::{ProgramOptions, Programs};
use lab::cluster::{Cluster, Options, Progress, ProgressEvent};
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Longest wait for anything; only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(60);

#[derive(clap::Parser)]
struct CommandLine {
    #[command(flatten)]
    programs: ProgramOptions,
}

pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) programs: Programs,
    /// Ports of the listeners `http` and `llm-gw`.
    pub(crate) ports: [u16; 2],
    events: Arc<Mutex<Vec<ProgressEvent>>>,
    /// Held by a lab of real programs.
    _turn: Option<SemaphorePermit<'static>>,
}

impl Lab {
    /// Prepares the tutorial's manifests with two replicas and listeners on free ports.
    pub(crate) fn new() -> Self {
        let ports = [free_port(), free_port()];
        let dir = tempfile::tempdir().unwrap();
        for name in ["bin", "pids", "manifests"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let program = |name: &str, role: &str| {
            let path = dir.path().join("bin").join(name);
            let stub = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/stub.py");
            let pids = dir.path().join("pids");
            let (python, pids) = (python(), pids.display());
            // Without the user's packages (-I -S) it starts in half the time.
            let script = format!("#!/bin/sh\nexec '{python}' -I -S '{stub}' {role} '{pids}' \"$@\"\n");
            write_program(&path, &script);
            path
        };
        let programs = Programs {
            driver: env!("CARGO_BIN_EXE_e2e").into(),
            picker: program("epp", "picker"),
            engine: program("mock-vllm", "engine"),
            envoy: program("envoy", "envoy"),
        };
        let mut manifests = Manifests::tutorial();
        manifests.replace("replicas: 5", "replicas: 2").unwrap();
        manifests.replace("port: 8080", &format!("port: {}", ports[0])).unwrap();
        manifests.replace("port: 8081", &format!("port: {}", ports[1])).unwrap();
        let lab = Self { dir, programs, ports, events: Arc::default(), _turn: None };
        lab.write(&manifests);
        lab
    }

    /// Prepares the same with the real programs. The first use builds them and installs Envoy.
    pub(crate) async fn real() -> Self {
        /// Labs of real programs that run at the same time. With more of them a program may get no CPU for seconds, and
        /// Envoy gives it up then.
        static TURNS: Semaphore = Semaphore::const_new(2);
        let turn = TURNS.acquire().await.unwrap();
        let mut lab = Self { _turn: Some(turn), ..Self::new() };
        let options = CommandLine::parse_from(["e2e"]).programs;
        let driver = lab.programs.driver.clone();
        lab.programs = Programs::resolve_for(driver, &options, &lab.progress()).await.unwrap();
        lab
    }

    /// Returns a command that runs the driver with the stubs; `flags` begin with its subcommand.
    pub(crate) fn driver(&self, flags: &str) -> Command {
        let dir = self.dir.path();
        let mut driver = Command::new(env!("CARGO_BIN_EXE_e2e"));
        driver.args(flags.split_whitespace());
        driver.arg("--manifests").arg(dir.join("manifests")).arg("--bin-dir").arg(dir.join("bin"));
        driver.env("ENVOY_BIN", &self.programs.envoy).env("WARMPATH_STATE_DIR", dir.join("state"));
        driver.env_remove("RUST_LOG");
        driver.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        driver
    }

    pub(crate) fn options(&self) -> Options {
        Options::new(self.dir.path().join("manifests"), self.dir.path().join("run"))
    }

    pub(crate) async fn start(&self) -> Cluster {
        Cluster::start(self.options(), self.programs.clone(), self.progress()).await.unwrap()
    }

    /// Starts the manifests of this text, a thousand times as fast as real engines. `name` is that of its files.
    pub(crate) async fn start_text(&self, name: &str, text: &str) -> Cluster {
        let file = self.dir.path().join(format!("{name}.yaml"));
        std::fs::write(&file, text).unwrap();
        let options = Options { time_scale: 1000.0, ..Options::new(file, self.dir.path().join(name)) };
        Cluster::start(options, self.programs.clone(), self.progress()).await.unwrap()
    }

    pub(crate) fn progress(&self) -> Progress {
        let events = Arc::clone(&self.events);
        Arc::new(move |event| events.lock().unwrap().push(event))
    }

    pub(crate) fn events(&self) -> Vec<ProgressEvent> {
        self.events.lock().unwrap().clone()
    }

    pub(crate) fn manifests(&self) -> Manifests {
        Manifests::read(&[self.dir.path().join("manifests")]).unwrap()
    }

    /// Writes manifests like a user's editor.
    pub(crate) fn write(&self, manifests: &Manifests) {
        for (name, text) in &manifests.files {
            std::fs::write(self.dir.path().join("manifests").join(name), text).unwrap();
        }
    }

    /// Returns the stubs that are alive, such as `engine-123`.
    pub(crate) fn alive(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("pids")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut alive: Vec<String> = names.filter(|name| is_alive(name.split('-').nth(1).unwrap())).collect();
        alive.sort();
        alive
    }

    pub(crate) fn n_alive(&self, role: &str) -> usize {
        self.alive().iter().filter(|name| name.starts_with(role)).count()
    }
}

/// A Deployment or StatefulSet whose pods have the label `app` with its name and run vLLM.
pub(crate) struct Workload<'a> {
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) replicas: u32,
    /// Fields of the container, at least `args`.
    pub(crate) container: &'a str,
}

impl Workload<'_> {
    pub(crate) fn manifest(&self) -> String {
        let Self { kind, name, namespace, replicas, container } = self;
        format!(
            "---
apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec: {{containers: [{{name: vllm, image: vllm/vllm-openai, {container}}}]}}
"
        )
    }

    /// The workload, and an InferencePool of its name that has these ports of each pod.
    pub(crate) fn with_pool(&self, ports: &[u16]) -> String {
        let Self { name, namespace, .. } = self;
        let ports: Vec<String> = ports.iter().map(|port| format!("{{number: {port}}}")).collect();
        let ports = ports.join(", ");
        let pool = format!(
            "---
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  targetPorts: [{ports}]
  endpointPickerRef: {{name: {name}-epp, port: {{number: 9002}}}}
"
        );
        pool + &self.manifest()
    }
}

/// Returns the interpreter itself: `python3` may be a script that looks for it each time.
fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let asked = Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
        String::from_utf8(asked.expect("python3 starts").stdout).unwrap().trim().to_owned()
    })
}

/// Returns a port that is free and that no other test of this process gets. It is below the ports of the lab's pods and
/// of outgoing connections, so that neither can take it.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    /// Distance between the first ports that two processes with successive ids look at.
    const STRIDE: u32 = 64;
    const RANGE: Range<u16> = 10_000..19_000;
    let n_ports = RANGE.end - RANGE.start;
    let first = u16::try_from(std::process::id() * STRIDE % u32::from(n_ports)).unwrap();
    let mut candidates =
        RANGE.map(|_| RANGE.start + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % n_ports);
    candidates.find(|port| is_free(*port)).expect("a port is free")
}

/// True if nobody is bound to the port. The socket does not listen: a child that another test starts holds it a while, and
/// would keep the gateway from the port.
fn is_free(port: u16) -> bool {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).is_ok()
}

/// Writes a program. A shell writes it, because a program cannot be started while its file is open for writing, and
/// what other tests start at the moment would hold a file of this process open.
pub(crate) fn write_program(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""]).arg(path).arg(text);
    assert!(shell.status().unwrap().success(), "{} is not written", path.display());
}

pub(crate) fn read(path: impl Into<PathBuf>) -> String {
    std::fs::read_to_string(path.into()).unwrap()
}

/// False if the process is gone. It counts a zombie as alive, and no test leaves one.
pub(crate) fn is_alive(pid: &str) -> bool {
    kill(Pid::from_raw(pid.parse().unwrap()), None) != Err(Errno::ESRCH)
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let met = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(HANG, met).await.unwrap_or_else(|_| panic!("never: {what}"));
}
