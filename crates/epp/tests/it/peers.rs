//! Two pickers of one pool: each finds the prefixes that the other placed, and either may die.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use epp::director::{Director, Peers};
use epp::follow_peers::Followers;
use epp::metrics::Metrics;
use epp::observed::{COUNT_WAIT, END_WAIT, PEER_DELAY};
use epp::peers::{PeerJournal, PeerLine};
use epp::reports::Reports;
use epp::server::{BoundPorts, Server, Settings, Shutdown};
use prefix_index::chain::{Chain, ChainBuilder, ChainSeed};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::fixtures::{Pod, Proxy, SOON, get, options, post, settings, until};

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p, annotations: {inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";

/// A start time that does not survive a round trip through JSON. One in eight is such, unless another crate enables
/// exact floats in serde_json.
fn awkward_start() -> f64 {
    let through_json =
        |start: &f64| serde_json::from_str::<f64>(&serde_json::to_string(start).unwrap()).unwrap();
    let mut starts = (0..100_000).map(|step| 1_795_000_000.123_456_8 + f64::from(step) * 0.0137);
    let is_awkward = |start: &f64| (start - through_json(start)).abs() > 0.0;
    starts.find(is_awkward).unwrap_or(1_795_000_000.123_456_8)
}

/// Pods, and the files that list them.
struct Fleet {
    pods: Vec<Pod>,
    pool: PathBuf,
    endpoints: PathBuf,
    _dir: TempDir,
}

/// A running picker.
struct Picker {
    ports: BoundPorts,
    shutdown: Shutdown,
    server: JoinSet<anyhow::Result<()>>,
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Fleet {
    async fn start() -> Self {
        Self::of(4).await
    }

    async fn of(n_pods: usize) -> Self {
        let dir = TempDir::new().unwrap();
        let (pool, endpoints) = (dir.path().join("pool.yaml"), dir.path().join("endpoints.yaml"));
        let mut pods = Vec::new();
        let mut lines = String::new();
        for idx in 0..n_pods {
            let pod = Pod::start(format!("pod-{idx}")).await;
            pod.set_started(awkward_start());
            lines += &format!("- {{name: pod-{idx}, address: '{}', labels: {{app: a}}}}\n", pod.address);
            pods.push(pod);
        }
        std::fs::write(&pool, POOL).unwrap();
        std::fs::write(&endpoints, lines).unwrap();
        Self { pods, pool, endpoints, _dir: dir }
    }

    async fn picker(&self, seed: u64, change: impl FnOnce(&mut Settings)) -> Picker {
        let mut settings = settings(&self.pool, &self.endpoints, 1 << 20);
        settings.director.seed = seed;
        settings.director.peers = Some(Peers { instance: format!("picker-{seed}"), journal_bytes: 1 << 20 });
        change(&mut settings);
        let server = bound(settings, SOON).await.unwrap();
        let ports = server.ports().unwrap();
        let (mut tasks, shutdown) = (JoinSet::new(), Shutdown::default());
        tasks.spawn(server.run(shutdown.clone()));
        let before: Vec<usize> = self.pods.iter().map(Pod::n_scrapes).collect();
        until(async || self.pods.iter().zip(&before).all(|(pod, before)| pod.n_scrapes() >= before + 2))
            .await;
        Picker { ports, shutdown, server: tasks }
    }
}

/// Binds the ports. The port of a picker that died may be held for a moment by a child that another test starts: it is
/// tried for as long as `patience`.
async fn bound(settings: Settings, patience: Duration) -> anyhow::Result<Server> {
    let is_taken = |error: &anyhow::Error| {
        let kinds = error.chain().filter_map(|cause| cause.downcast_ref()).map(std::io::Error::kind);
        kinds.into_iter().any(|kind| kind == std::io::ErrorKind::AddrInUse)
    };
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        match Server::bind(settings.clone()).await {
            Err(error) if is_taken(&error) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            bound => return bound,
        }
    }
}

impl Picker {
    fn address(&self) -> String {
        self.ports.metrics.to_string()
    }

    async fn die(mut self) {
        self.shutdown.abort.cancel();
        self.server.join_next().await.unwrap().unwrap().unwrap();
    }

    async fn ask(&self, prompt: &str) -> (String, Value) {
        let proxy = Proxy::connect(self.ports.grpc).await;
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{prompt}"}}]}}"#);
        let picked = proxy.chat(&body).await.picked().to_owned();
        let list = get(self.ports.metrics, "/debug/decisions?after=0").await;
        let list: Value = serde_json::from_str(&list).unwrap();
        (picked, list["decisions"].as_array().unwrap().last().unwrap().clone())
    }

    /// Sends a request whose response goes past the picker.
    async fn send_past(&self) {
        let proxy = Proxy::connect(self.ports.grpc).await.with_observed_responses();
        proxy.full_duplex_request(&post("/v1/completions"), r#"{"model":"m","prompt":"a"}"#).await;
    }

    /// Number of requests that it waits for.
    async fn n_running(&self) -> f64 {
        self.metric("inference_model_running_requests").await
    }

    /// The value of a metric with one label, or with none.
    async fn metric(&self, name: &str) -> f64 {
        let metrics = get(self.ports.metrics, "/metrics").await;
        let line = metrics.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    }
}

#[tokio::test]
async fn what_one_placed_the_other_finds() {
    let fleet = Fleet::start().await;
    let first = fleet.picker(1, |_| {}).await;
    let second = fleet.picker(2, |settings| settings.peers = vec![first.address()]).await;
    let alone = fleet.picker(3, |_| {}).await;
    until(async || second.metric("epp_peer_connected").await > 0.0).await;
    for number in 0..6 {
        let prompt = format!("{number}").repeat(1024);
        let (picked, _) = first.ask(&prompt).await;
        until(async || second.metric("epp_peer_insertions_total").await > f64::from(number)).await;
        let (followed, decision) = second.ask(&(prompt.clone() + "and more")).await;
        assert_eq!((&followed, &decision["reason"]), (&picked, &"prefix".into()));
        // Control: a picker without peers knows nothing.
        assert_eq!(alone.ask(&prompt).await.1["reason"], "load");
    }
    assert!((second.metric("epp_peer_staleness_seconds_count").await - 6.0).abs() < 0.5);
    assert!(second.metric("epp_peer_staleness_seconds_sum").await < 6.0 * 5.0);
}

/// The proxy sends its access log to any of the pickers.
#[tokio::test]
async fn the_end_of_a_peers_request_is_passed_on() {
    let fleet = Fleet::start().await;
    let first = fleet.picker(1, |_| {}).await;
    // Control: the second picker tells the end of a request to nobody who follows it.
    let second = fleet.picker(2, |settings| settings.peers = vec![first.address()]).await;
    let proxies = [Proxy::connect(first.ports.grpc).await, Proxy::connect(second.ports.grpc).await];
    let running = "inference_model_running_requests";
    let mut answers = Vec::new();
    for (prompt, n_running) in [("a", 1.0), ("b", 2.0)] {
        let body = format!(r#"{{"model":"m","prompt":"{prompt}"}}"#);
        answers.push(
            proxies[0].with_observed_responses().full_duplex_request(&post("/v1/completions"), &body).await,
        );
        assert!((first.metric(running).await - n_running).abs() < 0.5);
    }
    let logs = proxies.each_ref().map(Proxy::open_log);
    logs[1].tell(&answers[0]).await;
    let third = fleet.picker(3, |settings| settings.peers = vec![second.address()]).await;
    until(async || third.metric("epp_peer_connected").await > 0.0).await;
    assert!((first.metric(running).await - 2.0).abs() < 0.5);
    // The other way round it is passed on: the second one follows the first.
    let own = proxies[1]
        .with_observed_responses()
        .full_duplex_request(&post("/v1/completions"), r#"{"model":"m","prompt":"c"}"#)
        .await;
    until(async || (second.metric(running).await - 1.0).abs() < 0.5).await;
    logs[0].tell(&own).await;
    until(async || second.metric(running).await < 0.5).await;
    logs[0].tell(&answers[1]).await;
    until(async || (first.metric(running).await - 1.0).abs() < 0.5).await;
}

/// A picker that dies takes the ends with it that it has not passed on. The engine has fewer requests then than pickers
/// count, though not fewer than each of them.
#[tokio::test]
async fn the_end_of_a_request_that_died_with_a_peer_is_found_out() {
    if test_skips::skips_slow() {
        return;
    }
    let fleet = Fleet::of(1).await;
    // One request runs.
    fleet.pods[0].set_load(0, 1, 0.0);
    let alone = fleet.picker(1, |_| {}).await;
    let [first_port, second_port] = [free_port(), free_port()];
    let between = |port, peer: u16| {
        move |settings: &mut Settings| {
            settings.metrics_port = port;
            settings.peers = vec![format!("127.0.0.1:{peer}")];
        }
    };
    let first = fleet.picker(2, between(first_port, second_port)).await;
    let second = fleet.picker(3, between(second_port, first_port)).await;
    let pickers = [&alone, &first, &second];
    for picker in &pickers[1..] {
        until(async || picker.metric("epp_peer_connected").await > 0.5).await;
    }
    for picker in pickers {
        picker.send_past().await;
        tokio::time::sleep(PEER_DELAY).await;
    }
    let counts = async || {
        let mut counts = Vec::new();
        for picker in pickers {
            counts.push(picker.n_running().await.to_string());
        }
        counts.join(" ")
    };
    assert_eq!(counts().await, "1 1 1");
    until(async || first.n_running().await < 0.5).await;
    // Control: a picker that is told of no other request than its own has no doubt, and the request that runs goes on.
    tokio::time::sleep(END_WAIT).await;
    assert_eq!(counts().await, "1 0 1");
}

/// Control: what a picker told before it died is not compared with what the engine has later.
#[tokio::test]
async fn a_picker_that_died_waits_for_nothing() {
    if test_skips::skips_slow() {
        return;
    }
    let fleet = Fleet::of(1).await;
    fleet.pods[0].set_load(0, 2, 0.0);
    let second = fleet.picker(2, |_| {}).await;
    let first = fleet.picker(1, |settings| settings.peers = vec![second.address()]).await;
    first.send_past().await;
    tokio::time::sleep(PEER_DELAY).await;
    second.send_past().await;
    tokio::time::sleep(COUNT_WAIT).await;
    second.die().await;
    until(async || first.metric("epp_peer_connected").await < 0.5).await;
    fleet.pods[0].set_load(0, 1, 0.0);
    tokio::time::sleep(END_WAIT + END_WAIT / 2).await;
    assert!((first.n_running().await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn one_that_begins_anew_is_told_what_was() {
    let fleet = Fleet::start().await;
    let first = fleet.picker(1, |_| {}).await;
    let prompt = "x".repeat(1024);
    let (picked, _) = first.ask(&prompt).await;
    let second = fleet.picker(2, |settings| settings.peers = vec![first.address()]).await;
    until(async || second.metric("epp_peer_insertions_total").await > 0.0).await;
    // The first picker may die: the second knows its prefixes.
    first.die().await;
    until(async || second.metric("epp_peer_connected").await < 0.5).await;
    let (followed, decision) = second.ask(&prompt).await;
    assert_eq!((followed, &decision["reason"]), (picked, &"prefix".into()));
}

#[tokio::test]
async fn a_picker_that_restarts_is_followed_again() {
    let fleet = Fleet::start().await;
    let first = fleet.picker(1, |_| {}).await;
    let port = first.ports.metrics.port();
    let second = fleet.picker(2, |settings| settings.peers = vec![first.address()]).await;
    first.ask(&"x".repeat(1024)).await;
    until(async || second.metric("epp_peer_insertions_total").await > 0.0).await;
    first.die().await;
    until(async || second.metric("epp_peer_connected").await < 0.5).await;
    // Its numbers also start again, which does not count as missed events.
    let again = fleet.picker(4, |settings| settings.metrics_port = port).await;
    let prompt = "y".repeat(1024);
    let (picked, _) = again.ask(&prompt).await;
    until(async || second.metric("epp_peer_insertions_total").await > 1.0).await;
    let (followed, decision) = second.ask(&prompt).await;
    assert_eq!((followed, &decision["reason"]), (picked, &"prefix".into()));
    assert!(second.metric("epp_peer_missed_total").await < 0.5);
}

#[tokio::test]
async fn a_picker_among_its_own_peers_lets_itself_be() {
    let fleet = Fleet::start().await;
    let port = free_port();
    let own = SocketAddr::from(([127, 0, 0, 1], port)).to_string();
    let picker = fleet
        .picker(1, |settings| {
            settings.metrics_port = port;
            settings.peers = vec![own];
        })
        .await;
    picker.ask(&"x".repeat(1024)).await;
    picker.ask(&"x".repeat(1024)).await;
    assert!(picker.metric("epp_peer_connected").await < 0.5);
    assert!(picker.metric("epp_peer_insertions_total").await < 0.5);
}

/// A port that stays taken is named, and the flag that chooses another one.
#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let fleet = Fleet::of(1).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let settings = Settings { metrics_port: port, ..settings(&fleet.pool, &fleet.endpoints, 1 << 20) };
    let error = bound(settings.clone(), Duration::ZERO).await.unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("--metrics-port"), "{said}");
    // Control: it is bound when it is free.
    drop(taken);
    bound(settings, SOON).await.unwrap();
}

fn chain(n_bytes: usize, seed: u8) -> Chain {
    let mut builder = ChainBuilder::new();
    builder.push(&vec![seed; n_bytes]);
    builder.finish(&ChainSeed { target_model: "m", adapter: None, cache_salt: None })
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test stands in for the server")]
fn a_journal_is_bounded_and_says_from_where_it_tells() {
    let journal = PeerJournal::new("me".to_owned(), 10_000);
    let next_seq = |after| match journal.hello(after) {
        PeerLine::Hello { next_seq, instance, .. } if instance == "me" => next_seq,
        other => panic!("{other:?}"),
    };
    assert_eq!((next_seq(0), next_seq(9)), (1, 1));
    // 72 blocks and an envelope are about 700 bytes each.
    for number in 0..100 {
        journal.note(&"10.0.0.1:8000".into(), None, &chain(1024, number), std::time::SystemTime::now());
    }
    let oldest = next_seq(0);
    assert!((80..95).contains(&oldest), "{oldest}");
    assert_eq!(journal.after(0).unwrap().seq, oldest);
    assert_eq!(journal.after(99).unwrap().seq, 100);
    assert!(journal.after(100).is_none());
    assert_eq!(next_seq(100), 101);
    // An event that is larger than the bound is kept while it is the newest.
    let small = PeerJournal::new("me".to_owned(), 100);
    for number in 0..3 {
        small.note(&"10.0.0.1:8000".into(), None, &chain(1024, number), std::time::SystemTime::now());
        assert_eq!(small.after(0).unwrap().seq, u64::from(number) + 1);
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the test stands in for the server")]
async fn a_peer_that_is_gone_leaves_no_series() {
    let director = Arc::new(Director::new(options(), Arc::new(Metrics::default())));
    let reports = Arc::new(Reports::new(Arc::clone(&director), std::time::SystemTime::now()));
    let mut followers = Followers::new(reports, Vec::new());
    let has_series = |peer: &SocketAddr| {
        let page = director.metrics().encode(&director.standing(Instant::now()));
        page.contains(&peer.to_string())
    };
    // Peers come and go at new addresses, like pods.
    for _ in 0..20 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        followers.follow([peer].into());
        // Control: while the peer is there, so are its series.
        until(async || has_series(&peer)).await;
        followers.follow([].into());
        tokio::time::timeout(SOON, followers.reap()).await.unwrap();
        assert!(!has_series(&peer));
    }
    // No follower is left that could end.
    assert!(tokio::time::timeout(Duration::from_millis(20), followers.reap()).await.is_err());
}

#[test]
fn a_line_survives_the_wire() {
    let journal = PeerJournal::new("me".to_owned(), 10_000);
    journal.note(&"10.0.0.1:8000".into(), Some(1.5e9), &chain(256, 1), std::time::SystemTime::UNIX_EPOCH);
    let line = journal.after(0).unwrap().line.clone();
    let text = serde_json::to_string(&line).unwrap();
    assert!(
        text.starts_with(r#"{"line":"insertion","seq":1,"time_ms":0,"endpoint":"10.0.0.1:8000""#),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<PeerLine>(&text).unwrap(), line);
    let heartbeat = PeerLine::Waiting { ages_ms: [("10.0.0.1:8000".into(), vec![7, 0])].into() };
    let text = serde_json::to_string(&heartbeat).unwrap();
    assert_eq!(text, r#"{"line":"waiting","ages_ms":{"10.0.0.1:8000":[7,0]}}"#);
    assert_eq!(serde_json::from_str::<PeerLine>(&text).unwrap(), heartbeat);
}
