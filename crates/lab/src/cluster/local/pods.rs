//! Pod processes: as many for each Deployment as it asks for, replaced if they end or if their command changes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Result, anyhow};
use inference_api::object::ObjectKey;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use crate::cluster::local::{Action, CommandReply, Job, Local, TAIL_LINES, describe};
use crate::cluster::probe::Probes;
use crate::cluster::process::{Process, Program};
use crate::cluster::workload::DesiredDeployment;
use crate::cluster::{log_tail, ports};
use crate::engine::Engine;

/// Wait before a pod that ended is replaced; it doubles each time until a pod gets ready.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Number of pods in a row that end before they are ready until the user is told.
const MAX_FAILED_STARTS: u32 = 3;
/// Alphabet of Kubernetes for generated names (`k8s.io/apimachinery/pkg/util/rand`).
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

#[derive(Debug)]
pub(super) struct PodProcess {
    pub(super) name: String,
    pub(super) deployment: ObjectKey,
    /// Text of everything that its processes depend on; a pod is replaced when its Deployment has another one.
    template: String,
    pub(super) address: SocketAddr,
    /// Addresses where the pod publishes KV events and where it replays them.
    pub(super) kv: Option<(SocketAddr, SocketAddr)>,
    probes: Probes,
    readiness: Readiness,
    pub(super) log: PathBuf,
    pub(super) request_log: PathBuf,
    process: Process,
    /// Job that waits for the next change of the pod's readiness.
    _probe: Option<Job>,
    /// Job that waits until a probe gives the pod up.
    _liveness: Option<Job>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    /// The pod has not been ready yet.
    Starting,
    Ready,
    /// The pod was ready, and its probe fails.
    Unready,
}

/// Restart delay of a Deployment whose pods end.
#[derive(Debug)]
pub(super) struct Backoff {
    wait: Duration,
    n_failed_starts: u32,
    /// True if a timer runs, for which a new pod must wait.
    running: bool,
}

impl PodProcess {
    pub(super) fn is_ready(&self) -> bool {
        self.readiness == Readiness::Ready
    }

    pub(super) fn has_been_ready(&self) -> bool {
        self.readiness != Readiness::Starting
    }
}

impl Local {
    /// Starts and ends children until they are what the manifests ask for.
    pub(super) fn reconcile(&mut self) -> Result<()> {
        self.reconcile_pickers()?;
        let deployments = self.desired.deployments.clone();
        let templates: Vec<String> = deployments.iter().map(|deployment| self.template(deployment)).collect();
        let wanted = |pod: &PodProcess| {
            let position = deployments.iter().position(|deployment| deployment.key == pod.deployment);
            position.is_some_and(|idx| templates[idx] == pod.template)
        };
        let (kept, obsolete) = std::mem::take(&mut self.pods).into_iter().partition(wanted);
        self.pods = kept;
        obsolete.into_iter().for_each(|pod: PodProcess| pod.process.kill());
        for (deployment, template) in deployments.iter().zip(&templates) {
            let n_wanted = usize::try_from(self.replicas(deployment))?;
            while self.n_pods(&deployment.key) > n_wanted {
                self.end_newest(&deployment.key);
            }
            let waits = self.backoffs.get(&deployment.key.to_string()).is_some_and(|backoff| backoff.running);
            while !waits && self.n_pods(&deployment.key) < n_wanted {
                self.start_pod(deployment, template)?;
            }
        }
        Ok(())
    }

    /// Returns the number in the options, or the manifests' own number once that has been edited.
    pub(super) fn replicas(&self, deployment: &DesiredDeployment) -> u32 {
        let edited =
            self.first_replicas.get(&deployment.key).is_some_and(|first| *first != deployment.replicas);
        match self.options.replicas {
            Some(replicas) if !edited => replicas,
            Some(_) | None => deployment.replicas,
        }
    }

    /// True if every pod that the manifests ask for is ready.
    pub(super) fn pods_settled(&self) -> bool {
        let complete = self.desired.deployments.iter().all(|deployment| {
            usize::try_from(self.replicas(deployment)).ok() == Some(self.n_pods(&deployment.key))
        });
        complete && self.pods.iter().all(PodProcess::is_ready)
    }

    pub(super) fn kill_pod(&mut self, name: String, reply: CommandReply) {
        match self.pods.iter().position(|pod| pod.name == name) {
            None => {
                let names: Vec<&str> = self.pods.iter().map(|pod| pod.name.as_str()).collect();
                let _ = reply.send(Err(anyhow!("there is no pod {name}, only {}", names.join(", "))));
            }
            Some(idx) => {
                let pod = self.pods.remove(idx);
                self.back_off(&pod);
                pod.process.kill();
                self.dying.insert(name, reply);
            }
        }
    }

    pub(super) fn pod_ended(&mut self, name: &str, status: std::io::Result<ExitStatus>) {
        self.n_children -= 1;
        if let Some(reply) = self.dying.remove(name) {
            let _ = reply.send(Ok(()));
        }
        // A pod that was ended on purpose is not in the list any more.
        let Some(idx) = self.pods.iter().position(|pod| pod.name == name) else { return };
        let pod = self.pods.remove(idx);
        self.lost(&pod, format!("has ended ({})", describe(status)));
    }

    /// Ends a pod that its startup or liveness probe has given up; another one replaces it.
    pub(super) fn pod_dead(&mut self, name: &str, why: &str) {
        let Some(idx) = self.pods.iter().position(|pod| pod.name == name) else { return };
        let pod = self.pods.remove(idx);
        self.lost(&pod, format!("is ended: {why}"));
    }

    /// Reports that a pod has ended unexpectedly, and starts its Deployment's back-off.
    fn lost(&mut self, pod: &PodProcess, what: String) {
        let tail = log_tail(&pod.log, TAIL_LINES);
        let when = if pod.has_been_ready() { "" } else { " before it was ready" };
        let message = format!("pod {} {what}{when}:\n{tail}", pod.name);
        let n_failed_starts = self.back_off(pod);
        if n_failed_starts >= MAX_FAILED_STARTS {
            self.trouble = Some(message);
        } else {
            self.warn(message);
        }
    }

    pub(super) fn pod_ready(&mut self, name: &str) {
        let Some(idx) = self.pods.iter().position(|pod| pod.name == name) else { return };
        self.set_readiness(idx, Readiness::Ready);
        let deployment = self.pods[idx].deployment.to_string();
        self.backoffs.remove(&deployment);
        let n_ready = self.pods.iter().filter(|pod| pod.is_ready()).count();
        self.step(format!("{n_ready} of {} pods ready", self.pods.len()));
    }

    pub(super) fn pod_probed(&mut self, name: &str, answer: &str) {
        let Some(idx) = self.pods.iter().position(|pod| pod.name == name) else { return };
        if self.pods[idx].is_ready() {
            self.set_readiness(idx, Readiness::Unready);
            self.warn(format!("pod {name} is not ready any more and gets no request: {answer}"));
        } else {
            self.set_readiness(idx, Readiness::Ready);
            self.note(format!("pod {name} is ready again: {answer}"));
        }
    }

    /// Sets a pod's readiness, and starts a job that reports the next change.
    fn set_readiness(&mut self, pod_idx: usize, readiness: Readiness) {
        let pod = &self.pods[pod_idx];
        let (name, address, passes) = (pod.name.clone(), pod.address, readiness == Readiness::Ready);
        let probe = pod.probes.readiness().cloned().map(|probe| {
            Job(self.jobs.spawn(async move {
                let answer = probe.until_changed(address, passes).await;
                Action::PodProbed { name, answer }
            }))
        });
        let pod = &mut self.pods[pod_idx];
        (pod.readiness, pod._probe) = (readiness, probe);
    }

    pub(super) fn pod_late(&mut self, name: &str) {
        let Some(pod) = self.pods.iter().find(|pod| pod.name == name) else { return };
        let limit = self.options.ready_timeout + pod.probes.patience();
        let tail = log_tail(&pod.log, TAIL_LINES);
        self.trouble = Some(format!("pod {name} is not ready after {limit:?}:\n{tail}"));
    }

    /// Starts the back-off. Returns the number of pods in a row that ended before they were ready.
    fn back_off(&mut self, pod: &PodProcess) -> u32 {
        let key = pod.deployment.to_string();
        let fresh = Backoff { wait: FIRST_BACKOFF, n_failed_starts: 0, running: false };
        let backoff = self.backoffs.entry(key.clone()).or_insert(fresh);
        backoff.n_failed_starts += u32::from(!pod.has_been_ready());
        if !backoff.running {
            backoff.running = true;
            let wait = backoff.wait;
            backoff.wait = (wait * 2).min(MAX_BACKOFF);
            self.jobs.spawn(async move {
                sleep(wait).await;
                Action::BackoffOver { deployment: key }
            });
        }
        backoff.n_failed_starts
    }

    pub(super) fn backoff_over(&mut self, deployment: &str) {
        if let Some(backoff) = self.backoffs.get_mut(deployment) {
            backoff.running = false;
        }
    }

    fn n_pods(&self, deployment: &ObjectKey) -> usize {
        self.pods.iter().filter(|pod| pod.deployment == *deployment).count()
    }

    fn end_newest(&mut self, deployment: &ObjectKey) {
        if let Some(idx) = self.pods.iter().rposition(|pod| pod.deployment == *deployment) {
            drop(self.pods.remove(idx));
        }
    }

    fn start_pod(&mut self, deployment: &DesiredDeployment, template: &str) -> Result<()> {
        self.n_pods_started += 1;
        let suffix = generated(&format!("{template} {}", self.n_pods_started), 5);
        let name = format!("{}-{}-{suffix}", deployment.key.name, generated(template, 9));
        let address = ports::free()?;
        let log = self.files.logs().join(format!("{name}.log"));
        let request_log = self.files.logs().join(format!("{name}.requests.jsonl"));
        let mut args = deployment.command.args.clone();
        args.extend(["--host".to_owned(), address.ip().to_string()]);
        args.extend(["--port".to_owned(), address.port().to_string()]);
        args.extend(["--pod-name".to_owned(), name.clone()]);
        if self.options.engine == Engine::Mock {
            args.extend(["--request-log".to_owned(), request_log.display().to_string()]);
            args.extend(["--time-scale".to_owned(), self.options.time_scale.to_string()]);
            args.push("--enable-prompt-tokens-details".to_owned());
        }
        args.push("--grow-kv-cache".to_owned());
        let kv = match deployment.publishes_events {
            true => Some((ports::free()?, ports::free()?)),
            false => None,
        };
        if let Some((events, replay)) = kv {
            let config = json!({
                "enable_kv_cache_events": true,
                "publisher": "zmq",
                // Engines bind an endpoint with a star, and connect to any other.
                "endpoint": format!("tcp://*:{}", events.port()),
                "replay_endpoint": format!("tcp://{replay}"),
                "topic": format!("kv@{address}@{name}"),
            });
            args.extend(["--kv-events-config".to_owned(), config.to_string()]);
            // A picker that reads KV events asks engines to render requests.
            args.push("--enable-scale-out".to_owned());
        }
        args.extend(self.options.engine_args.iter().cloned());
        let env = deployment.command.env.clone();
        let program = Program { path: self.programs.engine.clone(), args, env, log: log.clone() };
        let (process, exit) = Process::spawn(&self.programs.driver, &program)?;
        let ended = name.clone();
        self.watch_exit(exit, |status| Action::PodEnded { name: ended, status });
        let (starting, liveness) = self.watch_start(&name, address, &deployment.probes);
        let pod = PodProcess {
            name,
            deployment: deployment.key.clone(),
            template: template.to_owned(),
            address,
            kv,
            probes: deployment.probes.clone(),
            readiness: Readiness::Starting,
            log,
            request_log,
            process,
            _probe: Some(starting),
            _liveness: liveness,
        };
        self.pods.push(pod);
        Ok(())
    }

    /// Starts jobs that report when the pod is ready for the first time, and when a probe gives it up.
    fn watch_start(&mut self, name: &str, address: SocketAddr, probes: &Probes) -> (Job, Option<Job>) {
        let limit = self.options.ready_timeout + probes.patience();
        let (own, ready) = (name.to_owned(), probes.clone().until_ready(address));
        let starting = Job(self.jobs.spawn(async move {
            match timeout(limit, ready).await {
                Ok(()) => Action::PodReady { name: own },
                Err(_) => Action::PodLate { name: own },
            }
        }));
        let (own, dead) = (name.to_owned(), probes.clone().until_dead(address));
        let liveness = probes
            .can_end()
            .then(|| Job(self.jobs.spawn(async move { Action::PodDead { name: own, why: dead.await } })));
        (starting, liveness)
    }

    fn template(&self, deployment: &DesiredDeployment) -> String {
        let DesiredDeployment { key, labels, command, probes, publishes_events, .. } = deployment;
        let events = if *publishes_events { " events" } else { "" };
        format!(
            "{key} {labels:?} {command:?} {probes:?} {:?} {}{events}",
            self.options.engine_args, self.epoch
        )
    }
}

/// Returns the random-looking part of a name. It depends only on `seed`, so that two runs have the same pods.
fn generated(seed: &str, n_chars: usize) -> String {
    let digest = Sha256::digest(seed);
    digest
        .iter()
        .take(n_chars)
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect()
}
