//! The common tools of all scenarios: a fresh cluster, a client that keeps records, and the records of the other
//! programs.

mod skips;

mod engines;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use load::chat::ChatStream;
use load::client::{Client, Reply};
use load::clock::Stopwatch;
use load::stats::millis;
use tracing::{debug, info};

use crate::check::{Check, Claim, Group};
use crate::cluster::manifests::Manifests;
use crate::cluster::{Cluster, Fresh, LogMark, Pod};
use crate::engine::Engine;
use crate::evidence::access_log::AccessEntry;
use crate::evidence::join::{ClientSide, RequestTrace, join, request_id};
use crate::evidence::picker;
use crate::evidence::pod::CacheCounters;
use crate::journal::Journal;
use crate::patience::{self, Patience};
use crate::requests::Requests;
use crate::ui::Ui;

const LOG_POLL: Duration = Duration::from_millis(20);
/// Time between two looks at what pickers and pods have in memory.
const POLL: Duration = Duration::from_millis(2);
/// Time between two looks at what Envoy moves.
const LOOK: Duration = Duration::from_millis(500);
/// Statistics of Envoy that grow when bytes or messages move.
const MOVEMENTS: &str = "^http.*downstream_cx_.x_bytes_total%7Cext_proc.*stream_msgs";
/// Beginning of the statistics of Envoy's own admin port.
const ADMIN: &str = "http.admin.";

/// Words of Envoy's reason for a failure when nobody listens on the picker's port.
pub(super) const REFUSED: &str = "Connection_refused";
/// Words of Envoy's reason when the picker's address is gone, as that of a pod: nobody answers there, or the name has no
/// address any more.
pub(super) const GONE: [&str; 3] = [REFUSED, "connection_timeout", "no_healthy_upstream"];
pub(super) const CHAT: &str = "/v1/chat/completions";

/// Tools of a part of a scenario, and the section in which its requests are reported. The cluster belongs to the run.
#[derive(Debug, Clone)]
pub struct Lab<'a> {
    pub cluster: &'a Cluster,
    pub journal: &'a Journal,
    pub ui: &'a Ui,
    pub requests: Requests,
    pub time_scale: f64,
    pub started: Stopwatch,
    connections: Arc<Connections>,
    section: String,
    /// Checks that the part will make.
    announced: Arc<Mutex<Vec<Claim>>>,
}

/// State of the run's listeners, shared by its parts.
#[derive(Debug, Default)]
struct Connections {
    /// HTTP client, replaced after each edit of the manifests, because a connection keeps its listener's old
    /// configuration.
    client: Mutex<Client>,
}

/// Target of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Listener `llm-gw`, the tutorial's 8081, where the picker chooses the pod.
    Picker,
    /// Listener `http`, the tutorial's 8080, with least request.
    Plain,
    Pod(SocketAddr),
}

/// A request, and its name in reports.
#[derive(Debug, Clone)]
pub struct Shot {
    pub group: Group,
    pub label: String,
    pub via: Via,
    pub headers: Vec<(HeaderName, String)>,
    pub body: Bytes,
}

/// Answer to a request, or the failure.
#[derive(Debug, Clone)]
pub struct Answer {
    pub side: ClientSide,
    /// The answer, if it is a well-formed stream.
    pub chat: Option<ChatStream>,
    /// Body of an answer that is not a stream.
    pub body: String,
    headers: HeaderMap,
}

/// Places in the pickers' logs when a part began, and its pods.
#[derive(Debug)]
pub struct Mark {
    logs: LogMark,
    pods: Vec<Pod>,
}

/// Records of all programs since a mark.
#[derive(Debug)]
pub struct Evidence {
    /// Traces of the requests, in the order in which they were given to [`Lab::collect`].
    pub traces: Vec<RequestTrace>,
    /// The picker's log lines about prefix-aware routing.
    pub prefix_lines: Vec<picker::LogLine>,
}

impl Shot {
    pub fn new(group: Group, label: impl Into<String>, via: Via, body: Bytes) -> Self {
        Self { group, label: label.into(), via, headers: Vec::new(), body }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((HeaderName::from_static(name), value.into()));
        self
    }
}

impl Answer {
    /// Returns `200, well-formed stream`, or what the answer is instead.
    pub fn verdict(&self) -> String {
        match (&self.chat, &self.side.error) {
            (Some(_), _) => format!("{}, well-formed stream", self.side.status),
            (None, Some(error)) => format!("{}: {error}", self.side.status),
            (None, None) => self.side.status.to_string(),
        }
    }

    pub fn has_header(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }

    pub fn cached_tokens(&self) -> Option<u32> {
        self.chat.as_ref().map(|chat| chat.usage.cached_tokens())
    }
}

/// Verdict of a good answer, see [`Answer::verdict`].
pub const GOOD: &str = "200, well-formed stream";
/// Virtual time from a request to a fault in the middle of its answer. A pod generates 25 to 45 tokens per second.
pub(super) const MIDWAY: Duration = Duration::from_secs(1);
/// Arguments of a picker that, when it is asked to end, waits for its streams far less long than a long answer takes.
pub(super) const LITTLE_PATIENCE: [&str; 2] = ["--grace-period", "10ms"];

impl<'a> Lab<'a> {
    pub fn new(
        cluster: &'a Cluster,
        journal: &'a Journal,
        ui: &'a Ui,
        run: (Requests, f64, Stopwatch),
    ) -> Self {
        let (requests, time_scale, started) = run;
        let (connections, section, announced) = (Arc::default(), String::new(), Arc::default());
        Self { cluster, journal, ui, requests, time_scale, started, connections, section, announced }
    }

    /// Records a check and shows it.
    pub fn check(&self, check: Check) {
        self.note_made(&check);
        debug!(id = check.id, verdict = ?check.verdict, expected = check.expected, seen = check.seen, "Made a check");
        self.ui.check(&check);
        self.journal.check(check);
    }

    /// Returns the tools for a new part, which has announced no check.
    pub(super) fn part(&self, group: Group, name: &str) -> Self {
        Self { announced: Arc::default(), ..self.section(group, name) }
    }

    /// Returns the tools for another section of the report, and shows to the user that it begins.
    pub fn section(&self, group: Group, section: &str) -> Self {
        info!(%group, section, "Beginning a section");
        self.ui.step(&format!("{group}: {section}"));
        Self { section: section.to_owned(), ..self.clone() }
    }

    /// Starts over with empty caches, an empty index and the user's manifests; engines get these further arguments.
    pub async fn fresh(&self, engine_args: &[&str]) -> Result<()> {
        let engine_args = engine_args.iter().map(|arg| (*arg).to_owned()).collect();
        self.start_anew(Fresh { engine_args, ..Fresh::default() }).await
    }

    /// Starts over like [`Lab::fresh`], with further settings for pickers too.
    pub async fn start_anew(&self, fresh: Fresh) -> Result<()> {
        self.cluster.restart(fresh).await.context("restart pods and picker")?;
        self.reconnect();
        Ok(())
    }

    /// Puts edited manifests in force until the next [`Lab::fresh`].
    pub async fn apply(&self, manifests: &Manifests) -> Result<()> {
        self.cluster.apply(manifests).await.context("apply the edited manifests")?;
        self.reconnect();
        Ok(())
    }

    /// Goes back to the user's manifests without a restart.
    pub async fn reset(&self) -> Result<()> {
        self.cluster.reset_manifests().await?;
        self.reconnect();
        Ok(())
    }

    fn reconnect(&self) {
        *self.connections.client.lock().unwrap_or_else(PoisonError::into_inner) = Client::default();
    }

    fn client(&self) -> Client {
        self.connections.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sleeps for virtual time.
    pub async fn pause(&self, virtual_time: Duration) {
        tokio::time::sleep(virtual_time.div_f64(self.time_scale)).await;
    }

    /// Converts wall time to virtual milliseconds.
    pub fn virtual_ms(&self, wall: Duration) -> f64 {
        millis(wall) * self.time_scale
    }

    /// Sends one chat request. A failure is an answer too, and scenarios judge it.
    pub async fn send(&self, shot: Shot) -> Answer {
        let Shot { group, label, via, headers, body } = shot;
        let sent_at = self.started.elapsed().as_secs_f64();
        let stopwatch = Stopwatch::start();
        let reply = match self.url(via).await {
            Ok(url) => {
                let headers: Vec<(HeaderName, &str)> =
                    headers.iter().map(|(name, value)| (name.clone(), value.as_str())).collect();
                self.client().post(&url, &headers, body).await
            }
            Err(error) => Err(error),
        };
        let side = ClientSide {
            label,
            group: group.name().to_owned(),
            section: self.section.clone(),
            via: via.name().to_owned(),
            sent_at,
            status: 0,
            request_id: None,
            ttft_ms: None,
            e2e_ms: self.virtual_ms(stopwatch.elapsed()),
            usage: None,
            error: None,
        };
        self.answer(side, reply)
    }

    /// Waits for `work` as long as Envoy moves anything meanwhile; `None` if it does not end.
    pub async fn while_envoy_works<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let stands_still = async {
            let mut patience = Patience::start(patience::PROGRAMS);
            while patience.lasts(self.envoy_total(MOVEMENTS).await.ok()) {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            done = work => Some(done),
            () = stands_still => None,
        }
    }

    /// Returns the sum of Envoy's statistics whose names match a regular expression, without those of its admin port.
    pub async fn envoy_total(&self, filter: &str) -> Result<u64> {
        let page = self.cluster.envoy_page(&format!("/stats?filter={filter}")).await?;
        let counts = page.lines().filter(|line| !line.starts_with(ADMIN)).map(|line| {
            let (_, count) = line.rsplit_once(": ").with_context(|| format!("a statistic: {line}"))?;
            count.parse::<u64>().with_context(|| format!("the count of {line}"))
        });
        counts.sum()
    }

    /// Posts JSON to any path, for scenarios that judge the answer themselves.
    pub async fn post(
        &self,
        via: Via,
        path: &str,
        headers: &[(HeaderName, &str)],
        body: Bytes,
    ) -> Result<Reply> {
        self.client().post(&format!("http://{}{path}", self.address(via).await?), headers, body).await
    }

    /// Returns the sum of a metric over all running pickers. `series` is the beginning of the metric's lines.
    pub async fn picker_metric(&self, series: &str) -> Result<f64> {
        let pages = self.cluster.picker_pages("/metrics").await?;
        let lines = pages.iter().flat_map(|page| page.lines()).filter(|line| line.starts_with(series));
        Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum())
    }

    /// Waits until a metric, summed over all running pickers, is above `bound`.
    pub async fn picker_metric_above(&self, series: &str, bound: f64) -> Result<()> {
        let mut patience = Patience::start(patience::LOGS);
        loop {
            let value = self.picker_metric(series).await?;
            if value > bound {
                return Ok(());
            }
            ensure!(
                patience.lasts(value.to_bits()),
                "the picker's {series} stays at {value}, not above {bound}"
            );
            tokio::time::sleep(POLL).await;
        }
    }

    fn answer(&self, side: ClientSide, reply: Result<Reply>) -> Answer {
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                let side = ClientSide { error: Some(format!("{error:#}")), ..side };
                return Answer { side, chat: None, body: String::new(), headers: HeaderMap::new() };
            }
        };
        let (chat, error) = match reply.chat() {
            Ok(chat) => (Some(chat), None),
            Err(error) => (None, Some(error)),
        };
        let side = ClientSide {
            status: reply.status.as_u16(),
            request_id: chat.as_ref().and_then(|chat| request_id(&chat.id)).map(str::to_owned),
            ttft_ms: chat.as_ref().map(|chat| self.virtual_ms(chat.ttft)),
            usage: chat.as_ref().map(|chat| chat.usage),
            error,
            ..side
        };
        Answer { side, chat, body: reply.text(), headers: reply.headers }
    }

    async fn url(&self, via: Via) -> Result<String> {
        Ok(format!("http://{}{CHAT}", self.address(via).await?))
    }

    pub async fn address(&self, via: Via) -> Result<SocketAddr> {
        match via {
            Via::Picker => self.cluster.gateway("llm-gw"),
            Via::Plain => self.cluster.gateway("http"),
            Via::Pod(address) => self.cluster.reach(address).await,
        }
    }

    /// Returns the number of pods that were ready at `mark`.
    pub fn replicas(&self, mark: &Mark) -> usize {
        mark.pods.len()
    }

    pub fn mark(&self) -> Mark {
        Mark { logs: self.cluster.log_mark(), pods: self.cluster.pods() }
    }

    /// Collects and journals the records of `answers` since `mark`, and waits for logs that lag.
    pub async fn collect(&self, mark: &Mark, answers: Vec<ClientSide>) -> Result<Evidence> {
        let ids: Vec<&str> = answers.iter().filter_map(|side| side.request_id.as_deref()).collect();
        let gateway_ids: Vec<&str> = answers
            .iter()
            .filter(|side| side.via != Via::POD)
            .filter_map(|side| side.request_id.as_deref())
            .collect();
        let mut patience = Patience::start(patience::LOGS);
        let (accesses, pods) = loop {
            let accesses = self.cluster.access_log()?;
            let pods = self.cluster.pod_entries(&mark.pods)?;
            let complete = gateway_ids
                .iter()
                .all(|id| accesses.iter().any(|entry| entry.request_id.as_deref() == Some(*id)))
                && (self.engine() == Engine::Vllm
                    || ids.iter().all(|id| pods.iter().any(|entry| entry.request_id == *id)));
            if complete || !patience.lasts((accesses.len(), pods.len())) {
                break (accesses, pods);
            }
            tokio::time::sleep(LOG_POLL).await;
        };
        let decisions = self.cluster.decisions(0).await?;
        let mut traces = join(answers, &accesses, &decisions, &pods);
        for trace in &mut traces {
            trace.served_by = trace.envoy_upstream.as_deref().and_then(|address| mark.pod_at(address));
            if trace.client.via == Via::POD {
                trace.served_by = trace.pod.as_ref().map(|entry| entry.pod.clone());
            }
        }
        self.journal.requests(&traces);
        Ok(Evidence { traces, prefix_lines: self.prefix_lines(mark) })
    }

    /// Returns Envoy's reason for the first answer with status 500 after the first `n_before` entries of its access log.
    pub async fn reason_of_failure(&self, n_before: usize) -> Result<String> {
        let mut patience = Patience::start(patience::LOGS);
        loop {
            let accesses = self.cluster.access_log()?;
            let n_entries = accesses.len();
            if let Some(entry) = accesses.into_iter().skip(n_before).find(|entry| entry.code == 500) {
                return Ok(entry.details.unwrap_or_default());
            }
            ensure!(patience.lasts(n_entries), "Envoy's access log has no answer with status 500");
            tokio::time::sleep(LOG_POLL).await;
        }
    }

    /// Returns the entries of chats without a whole answer after the first `n_before` entries of Envoy's access log, once
    /// there are `n_lost` of them.
    pub async fn losses(&self, n_before: usize, n_lost: usize) -> Result<Vec<AccessEntry>> {
        let mut patience = Patience::start(patience::LOGS);
        loop {
            let mut accesses = self.cluster.access_log()?.split_off(n_before);
            let n_entries = accesses.len();
            accesses.retain(|entry| entry.path.as_deref() == Some(CHAT) && !entry.is_whole());
            if accesses.len() >= n_lost {
                return Ok(accesses);
            }
            ensure!(
                patience.lasts(n_entries),
                "Envoy's access log has {} lost requests, and clients {n_lost}",
                accesses.len()
            );
            tokio::time::sleep(LOG_POLL).await;
        }
    }

    /// Returns the picker's log lines about prefix-aware routing since `mark`.
    pub fn prefix_lines(&self, mark: &Mark) -> Vec<picker::LogLine> {
        self.cluster.prefix_lines(&mark.logs)
    }

    /// Returns the number of the newest decision, or 0 before the first.
    pub async fn last_decision(&self) -> Result<u64> {
        Ok(self.cluster.decisions(0).await?.last().map_or(0, |decision| decision.seq))
    }

    /// Returns the picker's first decision after number `seq`, once its response has ended.
    pub async fn decision_after(&self, seq: u64) -> Result<picker::Decision> {
        let mut patience = Patience::start(patience::LOGS);
        loop {
            let decisions = self.cluster.decisions(seq).await?;
            let n_decisions = decisions.len();
            let decision = decisions.into_iter().next();
            if let Some(decision) = decision.filter(|decision| decision.response.is_some()) {
                return Ok(decision);
            }
            ensure!(patience.lasts(n_decisions), "the picker reports no response after decision {seq}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until each picker's index has as many blocks as all pods' caches together.
    pub async fn index_agrees(&self) -> Result<()> {
        let mut patience = Patience::start(patience::LOGS);
        loop {
            let (cached, known) = (self.cached_blocks().await?, self.known_blocks().await?);
            if known.iter().all(|known| *known == cached) {
                return Ok(());
            }
            ensure!(
                patience.lasts((cached, known.clone())),
                "pods have {cached} blocks, and pickers know of {known:?}"
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns the number of cached blocks, summed over pods; within a pod, equal contents count once.
    async fn cached_blocks(&self) -> Result<u64> {
        let mut n_cached = 0;
        for pod in self.cluster.pods() {
            let page = self.cluster.pod_page(&pod, "/debug/cache?limit=1").await?;
            let cache: serde_json::Value = serde_json::from_str(&page).context("read the cache")?;
            let n_contents = cache["pool"]["cached_contents"].as_u64();
            n_cached += n_contents.with_context(|| format!("{} does not report its cache", pod.name))?;
        }
        Ok(n_cached)
    }

    /// Returns the number of blocks in each picker's index of KV events.
    async fn known_blocks(&self) -> Result<Vec<u64>> {
        let pages = self.cluster.picker_pages("/metrics").await?;
        let blocks = |page: &String| {
            let value = page.lines().find_map(|line| line.strip_prefix("epp_kv_index_blocks ")?.parse().ok());
            value.context("a picker does not report epp_kv_index_blocks")
        };
        pages.iter().map(blocks).collect()
    }

    /// Returns the cache counters of every pod, by name.
    pub async fn counters(&self) -> Result<BTreeMap<String, CacheCounters>> {
        let mut counters = BTreeMap::new();
        for pod in self.cluster.pods() {
            let page = self.cluster.pod_page(&pod, "/metrics").await?;
            let values = CacheCounters::parse(&page)
                .with_context(|| format!("{} lacks vLLM's prefix cache counters", pod.name))?;
            counters.insert(pod.name, values);
        }
        Ok(counters)
    }
}

impl Via {
    const POD: &'static str = "pod";

    /// Returns the tutorial's name of the target, whichever port is really used.
    pub fn name(self) -> &'static str {
        match self {
            Self::Picker => "8081",
            Self::Plain => "8080",
            Self::Pod(_) => Self::POD,
        }
    }
}

impl Mark {
    /// Returns the name of the pod that had this address.
    pub fn pod_at(&self, address: &str) -> Option<String> {
        self.pods.iter().find(|pod| pod.address.to_string() == address).map(|pod| pod.name.clone())
    }

    pub fn address_of(&self, name: &str) -> Option<SocketAddr> {
        self.pods.iter().find(|pod| pod.name == name).map(|pod| pod.address)
    }
}
