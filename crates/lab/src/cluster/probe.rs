//! Probes of a pod, as the kubelet runs them: what they ask, how often, and how many equal answers in a row decide.
//!
//! Until it is ready for the first time, a pod is asked every 20 ms and not once per period, because it loads no model.
//! A pod without `readinessProbe` is probed with GET `/health` and Kubernetes' defaults; a cluster would never take it
//! out.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http::{HeaderName, HeaderValue};
use inference_api::port::TargetPort;
use inference_api::probe::{self, Action, HttpGet, Scheme};
use inference_api::workload::Container;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::{debug, trace};

use crate::cluster::http::{self as pages, RETRY};

/// Probes of a Deployment's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probes {
    startup: Option<Probe>,
    readiness: Option<Probe>,
    liveness: Option<Probe>,
}

/// Longest time from a pod's start to the first question whether it is ready. Longer delays give an engine the time to
/// load its model, and the mock loads none.
const MAX_START_DELAY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// Name of the probe in the manifest.
    name: &'static str,
    ask: Ask,
    /// Time from the pod's start to the first question.
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    success_threshold: u32,
    failure_threshold: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Ask {
    Get { path: String, headers: Vec<(HeaderName, HeaderValue)> },
    Connect,
}

/// Verdict of a probe on a pod, and the number of answers in a row against it.
#[derive(Clone, Copy, Debug)]
struct Tally {
    passes: bool,
    n_against: u32,
}

/// True if the probe would keep a pod from being ready for longer than a pod here needs to start.
pub(super) fn delays_too_long(name: &str, probe: &probe::Probe) -> bool {
    let delay = Duration::from_secs(probe.initial_delay_seconds.into());
    name != "livenessProbe" && delay > MAX_START_DELAY
}

// === impl Probes ===

impl Probes {
    /// Reads a container's probes. `port` is the one on which the container serves.
    ///
    /// # Errors
    /// When a probe would fail on every cluster.
    pub(super) fn new(container: &Container, port: u16) -> Result<Self> {
        let (mut startup, mut readiness, mut liveness) = (None, Some(Probe::of_health()), None);
        for (name, given) in container.probes() {
            let probe = Probe::new(name, given, (container, port)).with_context(|| name)?;
            match name {
                "startupProbe" => startup = probe,
                "readinessProbe" => readiness = probe,
                _ => liveness = probe,
            }
        }
        Ok(Self { startup, readiness, liveness })
    }

    /// Returns the probes of a pod whose own would ask what only its own program answers.
    pub(super) fn of_health() -> Self {
        Self { startup: None, readiness: Some(Probe::of_health()), liveness: None }
    }

    /// Returns the longest time until a pod that answers at once is ready.
    pub(super) fn patience(&self) -> Duration {
        let delays = [&self.startup, &self.readiness].into_iter().flatten();
        delays.map(|probe| probe.initial_delay + probe.period * (probe.success_threshold - 1)).sum()
    }

    /// Returns when the pod is ready for the first time. The caller sets a time limit. A readiness probe that has no
    /// effect here passes as soon as the pod serves.
    pub(super) async fn until_ready(self, address: SocketAddr) {
        let first = self.readiness.unwrap_or_else(Probe::of_health);
        let started = async {
            if let Some(startup) = &self.startup {
                sleep(startup.initial_delay).await;
                startup.until_passed(address).await;
            }
        };
        tokio::join!(started, sleep(first.initial_delay));
        first.until_passed(address).await;
    }

    /// Returns the probe that takes a ready pod out and brings it back.
    pub(super) fn readiness(&self) -> Option<&Probe> {
        self.readiness.as_ref()
    }

    /// True if a probe can end the pod.
    pub(super) fn can_end(&self) -> bool {
        self.startup.is_some() || self.liveness.is_some()
    }

    /// Waits until a probe gives the pod up, and returns the reason.
    pub(super) async fn until_dead(self, address: SocketAddr) -> String {
        let started = async {
            let Some(startup) = &self.startup else { return Ok(()) };
            sleep(startup.initial_delay).await;
            let limit = startup.period * startup.failure_threshold;
            let passed = timeout(limit, startup.until_passed(address)).await;
            passed.map_err(|_| format!("its startupProbe has not passed within {limit:?}"))
        };
        let delay = self.liveness.as_ref().map_or(Duration::ZERO, |liveness| liveness.initial_delay);
        let delayed = async {
            sleep(delay).await;
            Ok::<(), String>(())
        };
        match (tokio::try_join!(started, delayed), &self.liveness) {
            (Err(why), _) => why,
            (Ok(_), Some(liveness)) => liveness.until_changed(address, true).await,
            (Ok(_), None) => std::future::pending().await,
        }
    }
}

// === impl Probe ===

impl Probe {
    /// Reads one probe; `None` if it has no effect here.
    fn new(
        name: &'static str,
        probe: &probe::Probe,
        (container, port): (&Container, u16),
    ) -> Result<Option<Self>> {
        let check_port = |asked: &TargetPort| {
            let asked = number(asked, container)?;
            ensure!(asked == port, "port {asked}: the container serves on {port}");
            Ok(())
        };
        ensure!(
            probe.success_threshold == 1 || name == "readinessProbe",
            "successThreshold {}: must be 1, except of a readinessProbe",
            probe.success_threshold
        );
        let ask = match &probe.action {
            Action::Exec | Action::Grpc => return Ok(None),
            Action::TcpSocket { port } => {
                check_port(port).context("tcpSocket")?;
                Ask::Connect
            }
            Action::HttpGet(http_get) => {
                check_port(&http_get.port).context("httpGet")?;
                Ask::get(http_get).context("httpGet")?
            }
        };
        let seconds = |given: u32| Duration::from_secs(given.into());
        let initial_delay = match delays_too_long(name, probe) {
            true => MAX_START_DELAY,
            false => seconds(probe.initial_delay_seconds),
        };
        Ok(Some(Self {
            name,
            ask,
            initial_delay,
            period: seconds(probe.period_seconds),
            timeout: seconds(probe.timeout_seconds),
            success_threshold: probe.success_threshold,
            failure_threshold: probe.failure_threshold,
        }))
    }

    /// Returns the probe for a pod whose Deployment has none.
    fn of_health() -> Self {
        Self {
            name: "readinessProbe",
            ask: Ask::Get { path: "/health".to_owned(), headers: Vec::new() },
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success_threshold: 1,
            failure_threshold: 3,
        }
    }

    /// Returns when the probe passes for a pod that has not passed yet.
    async fn until_passed(&self, address: SocketAddr) {
        let mut tally = Tally { passes: false, n_against: 0 };
        loop {
            let answer = self.ask(address).await;
            let passed = answer.is_ok();
            if tally.take(passed, self) {
                let (Ok(said) | Err(said)) = answer;
                return debug!(%address, probe = self.name, said, "A pod passes its probe");
            }
            sleep(if passed { self.period } else { RETRY }).await;
        }
    }

    /// Waits until the verdict changes from `passes`, and returns the last answer.
    pub(super) async fn until_changed(&self, address: SocketAddr, passes: bool) -> String {
        let mut tally = Tally { passes, n_against: 0 };
        loop {
            sleep(self.period).await;
            let answer = self.ask(address).await;
            if tally.take(answer.is_ok(), self) {
                let (Ok(said) | Err(said)) = answer;
                debug!(%address, probe = self.name, said, passes = !passes, "A probe of a pod has changed");
                return format!("{} of its {}: {said}", self.ask.describe(), self.name);
            }
        }
    }

    async fn ask(&self, address: SocketAddr) -> Result<String, String> {
        let answer = async {
            match &self.ask {
                Ask::Connect => {
                    TcpStream::connect(address).await.map(|_| "connected".to_owned()).map_err(Into::into)
                }
                Ask::Get { path, headers } => match pages::answer(address, path, headers).await? {
                    (status @ 200..400, _) => Ok(format!("status {status}")),
                    (status, _) => bail!("status {status}"),
                },
            }
        };
        let answer = match timeout(self.timeout, answer).await {
            Ok(answer) => answer.map_err(|error| format!("{error:#}")),
            Err(_) => Err(format!("no answer within {:?}", self.timeout)),
        };
        trace!(%address, probe = self.name, ?answer, "Probed a pod");
        answer
    }
}

impl Ask {
    fn get(http_get: &HttpGet) -> Result<Self> {
        let HttpGet { path, scheme, http_headers, .. } = http_get;
        ensure!(*scheme == Scheme::Http, "scheme HTTPS: the container serves plain HTTP");
        let path = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
        path.parse::<http::Uri>().with_context(|| format!("path {path}"))?;
        let header = |given: &probe::HttpHeader| {
            let probe::HttpHeader { name, value } = given;
            let parsed = anyhow::Ok((HeaderName::try_from(name)?, HeaderValue::try_from(value)?));
            parsed.with_context(|| format!("httpHeaders: {name}"))
        };
        Ok(Self::Get { path, headers: http_headers.iter().map(header).collect::<Result<_>>()? })
    }

    fn describe(&self) -> String {
        match self {
            Self::Get { path, .. } => format!("GET {path}"),
            Self::Connect => "connection".to_owned(),
        }
    }
}

/// Returns the number of a port. A name that no container port has is read as a number, as the kubelet does.
fn number(port: &TargetPort, container: &Container) -> Result<u16> {
    let name = match port {
        TargetPort::Number(number) => return Ok(*number),
        TargetPort::Name(name) => name,
    };
    let named = container.ports.iter().find(|port| port.name.as_ref() == Some(name));
    named
        .map(|port| port.container_port)
        .or_else(|| name.parse().ok())
        .with_context(|| format!("port {name}: the container has no port of this name"))
}

// === impl Tally ===

impl Tally {
    /// Counts an answer. Returns true if it changes the verdict.
    fn take(&mut self, passed: bool, probe: &Probe) -> bool {
        self.n_against = if passed == self.passes { 0 } else { self.n_against + 1 };
        let threshold = if self.passes { probe.failure_threshold } else { probe.success_threshold };
        self.n_against >= threshold
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Probe, Probes, Tally};

    fn probes(yaml: &str) -> Result<Probes, String> {
        let container = serde_saphyr::from_str(&format!(
            "name: vllm\nports: [{{name: http, containerPort: 8000}}, {{name: other, containerPort: 9}}]\n{yaml}"
        ));
        Probes::new(&container.map_err(|error| format!("{error}"))?, 8000)
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_verdict_turns_after_its_threshold_in_a_row() {
        let probe = Probe { success_threshold: 2, failure_threshold: 3, ..Probe::of_health() };
        let turns_at = |passes, answers: &[bool]| {
            let mut tally = Tally { passes, n_against: 0 };
            answers.iter().position(|answer| tally.take(*answer, &probe))
        };
        assert_eq!(turns_at(true, &[false, false, true, false, false, false]), Some(5));
        assert_eq!(turns_at(true, &[false, false, true, false, false]), None);
        assert_eq!(turns_at(false, &[true, false, true, true]), Some(3));
    }

    #[test]
    fn probes_are_those_of_the_container_and_else_of_health() {
        let own = probes(
            "startupProbe: {tcpSocket: {port: http}, initialDelaySeconds: 4, failureThreshold: 30}\n\
             readinessProbe: {httpGet: {path: ready, port: 8000, httpHeaders: [{name: a, value: b}]}, periodSeconds: 5, \
             successThreshold: 2, initialDelaySeconds: 7}\n\
             livenessProbe: {httpGet: {path: /health, port: \"8000\"}, timeoutSeconds: 3}",
        )
        .unwrap();
        let readiness = own.readiness.as_ref().unwrap();
        assert_eq!((readiness.ask.describe(), readiness.period.as_secs()), ("GET /ready".to_owned(), 5));
        assert_eq!((readiness.success_threshold, readiness.failure_threshold), (2, 3));
        assert_eq!(own.patience(), Duration::from_secs(4 + 7 + 5));
        assert_eq!(own.startup.as_ref().unwrap().failure_threshold, 30);
        assert_eq!(own.liveness.as_ref().unwrap().timeout.as_secs(), 3);
        let none = probes("").unwrap();
        assert_eq!((none.readiness.clone(), none.can_end()), (Some(Probe::of_health()), false));
        let exec = probes("readinessProbe: {exec: {command: [\"true\"]}}").unwrap();
        assert_eq!((exec.readiness.clone(), exec.patience()), (None, Duration::ZERO));
    }

    #[test]
    fn the_time_to_load_a_model_is_not_waited_for() {
        let delayed = |name: &str, delay: u32| {
            probes(&format!("{name}: {{httpGet: {{port: 8000}}, initialDelaySeconds: {delay}}}")).unwrap()
        };
        for name in ["startupProbe", "readinessProbe"] {
            assert_eq!(delayed(name, 600).patience(), Duration::from_secs(10));
            // Control: a short delay stays.
            assert_eq!(delayed(name, 10).patience(), Duration::from_secs(10));
            assert_eq!(delayed(name, 2).patience(), Duration::from_secs(2));
        }
        // A liveness probe keeps no pod from being ready.
        let liveness = delayed("livenessProbe", 600).liveness.unwrap();
        assert_eq!(liveness.initial_delay, Duration::from_secs(600));
    }

    #[test]
    fn a_probe_that_fails_on_every_cluster_is_refused() {
        let error = |yaml: &str| probes(yaml).unwrap_err();
        let is = "readinessProbe: httpGet: port 9: the container serves on 8000";
        assert_eq!(error("readinessProbe: {httpGet: {port: 9}}"), is);
        assert_eq!(error("readinessProbe: {httpGet: {port: other}}"), is);
        assert!(error("livenessProbe: {tcpSocket: {port: web}}").contains("no port of this name"));
        assert!(error("livenessProbe: {tcpSocket: {port: 8000}, successThreshold: 2}").contains("must be 1"));
        assert!(error("readinessProbe: {httpGet: {port: 8000, scheme: HTTPS}}").contains("plain HTTP"));
        assert!(error("readinessProbe: {periodSeconds: 5}").contains("exactly one of httpGet"));
        assert!(
            error("readinessProbe: {httpGet: {port: 8000}, exec: {}}").contains("exactly one of httpGet")
        );
    }
}
