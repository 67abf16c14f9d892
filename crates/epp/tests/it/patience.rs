//! Peers that vanish, say nothing or come in large numbers: the picker releases what they hold.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::Duration;

use epp::server::accept::Patience;
use epp::server::parts::{Parts, restart_on_panic};
use epp::server::tls::{Security, local_names};
use epp::server::{Server, Settings, Shutdown};
use serde_json::Value;
#[cfg(target_os = "linux")]
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::fixtures::http2::{Connection, Stream, head, request_body};
use crate::fixtures::program::Program;
use crate::fixtures::{Picker, SOON, Scenario, get, settings, until};

const COMPLETION: &[u8] = br#"{"model":"/model/qwen","prompt":"hello"}"#;
/// Short enough for a test; nothing depends on its exact length.
const SHORT: Duration = Duration::from_millis(100);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);
const PATIENT: Patience = Patience { handshake: LONG, ping_interval: LONG, ping_timeout: LONG, idle: LONG };
const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";

/// Requests in flight to the pods, as the picker counts them.
async fn n_in_flight(picker: &Picker) -> u64 {
    let status: Value = serde_json::from_str(&get(picker.ports.metrics, "/debug/pools").await).unwrap();
    let endpoints = status["pools"][0]["endpoints"].as_array().unwrap();
    endpoints.iter().map(|endpoint| endpoint["in_flight"].as_u64().unwrap()).sum()
}

/// A proxy with `n_streams` requests in flight that does not read any more.
async fn vanished(picker: &Picker, n_streams: usize) -> (Connection, Vec<Stream>) {
    let connection = Connection::relayed(picker.ports.grpc).await;
    let mut streams = Vec::new();
    for _ in 0..n_streams {
        let mut stream = connection.stream().await;
        stream.send(head());
        stream.send(request_body(COMPLETION, true));
        stream.expect_pick("before the proxy vanishes").await;
        streams.push(stream);
    }
    connection.deaf.send_replace(true);
    (connection, streams)
}

#[tokio::test]
async fn requests_of_a_proxy_that_vanished_are_not_in_flight() {
    let patience = Patience { ping_interval: SHORT, ping_timeout: 20 * SHORT, ..PATIENT };
    let picker = Scenario::new(2).patience(patience).start().await;
    let _vanished = vanished(&picker, 5).await;
    until(async || n_in_flight(&picker).await == 0).await;
    until(async || picker.metrics().await.lines().any(|line| line == "epp_streams 0")).await;
}

#[tokio::test]
async fn requests_of_a_proxy_that_is_not_pinged_stay_in_flight() {
    let picker = Scenario::new(2).patience(PATIENT).start().await;
    let _vanished = vanished(&picker, 5).await;
    tokio::time::sleep(5 * SHORT).await;
    assert_eq!(n_in_flight(&picker).await, 5);
}

#[tokio::test]
async fn a_proxy_that_answers_pings_keeps_its_streams() {
    // Many pings fit into the wait, and an answer to them may take all the time that it needs.
    let patience = Patience { ping_interval: SHORT / 10, ping_timeout: SOON, ..PATIENT };
    let picker = Scenario::new(1).patience(patience).start().await;
    let connection = Connection::open(picker.ports.grpc).await;
    let mut stream = connection.stream().await;
    stream.send(head());
    tokio::time::sleep(5 * SHORT).await;
    stream.send(request_body(COMPLETION, true));
    stream.expect_pick("after many pings").await;
}

/// Returns true if the other side closes a connection on which nothing is sent.
async fn closes(address: SocketAddr, wait: Duration) -> bool {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let mut bytes = Vec::new();
    tokio::time::timeout(wait, socket.read_to_end(&mut bytes)).await.is_ok()
}

#[tokio::test]
async fn a_handshake_that_is_not_begun_ends() {
    // HTTP/1 has no handshake: a silent client counts as idle.
    let patience = Patience { handshake: SHORT, idle: 2 * SHORT, ..PATIENT };
    let picker = Scenario::new(1).patience(patience).start().await;
    for address in [picker.ports.grpc, picker.ports.health, picker.ports.metrics] {
        assert!(closes(address, SOON).await, "{address} stays open");
    }
    let patient = Scenario::new(1).patience(PATIENT).start().await;
    for address in [patient.ports.grpc, patient.ports.health, patient.ports.metrics] {
        assert!(!closes(address, 4 * SHORT).await, "{address} closes");
    }
}

#[tokio::test]
async fn a_tls_handshake_that_is_not_begun_ends() {
    let dir = TempDir::new().unwrap();
    for (handshake, wait, expected) in [(SHORT, SOON, true), (LONG, 4 * SHORT, false)] {
        let (pool, endpoints) = (dir.path().join("pool.yaml"), dir.path().join("endpoints.yaml"));
        std::fs::write(&pool, POOL).unwrap();
        std::fs::write(&endpoints, "[]\n").unwrap();
        let security = Security::Made { names: local_names(), certificate_file: None };
        let patience = Patience { handshake, ..PATIENT };
        let settings = Settings { security, patience, ..settings(&pool, &endpoints, 1 << 20) };
        let server = Server::bind(settings).await.unwrap();
        let address = server.ports().unwrap().grpc;
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(Shutdown::default()));
        assert_eq!(closes(address, wait).await, expected);
    }
}

/// Opens a connection with a stream that the picker has seen. A busy machine may be so slow that the picker ends the
/// connection before; then the next one is tried.
async fn stream_in_time(picker: &Picker) -> (Connection, Stream) {
    loop {
        let mut connection = Connection::open(picker.ports.grpc).await;
        let Ok(mut stream) = connection.try_stream().await else { continue };
        if stream.frames.send_data(head(), false).is_err() {
            continue;
        }
        let is_seen = async || picker.metrics().await.lines().any(|line| line == "epp_streams 1");
        tokio::select! {
            () = until(is_seen) => return (connection, stream),
            () = connection.ended() => {}
        }
    }
}

#[tokio::test]
async fn a_connection_ends_when_it_has_no_stream_for_long() {
    let patience = Patience { idle: SHORT, ..PATIENT };
    let picker = Scenario::new(1).patience(patience).start().await;
    let (_busy, mut stream) = stream_in_time(&picker).await;
    let mut idle = Connection::open(picker.ports.grpc).await;
    tokio::time::timeout(SOON, idle.ended()).await.expect("the idle connection stays open");
    tokio::time::sleep(3 * SHORT).await;
    stream.send(request_body(COMPLETION, true));
    stream.expect_pick("on the connection with a stream").await;
}

#[tokio::test]
async fn a_part_that_ends_or_dies_is_named() {
    let mut parts = Parts::default();
    parts.spawn("one that goes on", std::future::pending());
    parts.spawn("one that ends", async {});
    assert_eq!(format!("{:#}", parts.failed().await), "a part of the picker has ended: one that ends");
    parts.spawn("one that dies", async { panic!("no hope") });
    let error = format!("{:#}", parts.failed().await);
    assert!(error.starts_with("a part of the picker has died: one that dies: "), "{error}");
    assert!(error.contains("no hope"), "{error}");
    assert!(tokio::time::timeout(SHORT, parts.failed()).await.is_err(), "the one that goes on is left");
}

#[tokio::test]
async fn a_task_that_panics_runs_again_and_one_that_ends_does_not() {
    let (n_runs, messages) = (Cell::new(0), RefCell::new(Vec::new()));
    let run = async || {
        n_runs.set(n_runs.get() + 1);
        match n_runs.get() {
            1 => panic!("no hope"),
            2 => panic!("no hope in run {}", n_runs.get()),
            _ => {}
        }
    };
    restart_on_panic(run, |message| messages.borrow_mut().push(message.to_owned())).await;
    assert_eq!((n_runs.get(), messages.into_inner()), (3, vec!["no hope".into(), "no hope in run 2".into()]));
    n_runs.set(2);
    restart_on_panic(run, |message| unreachable!("{message}")).await;
    assert_eq!(n_runs.get(), 3);
}

#[tokio::test]
async fn a_picker_ends_with_any_of_its_parts() {
    let dir = TempDir::new().unwrap();
    let (pool, endpoints) = (dir.path().join("pool.yaml"), dir.path().join("endpoints.yaml"));
    std::fs::write(&pool, POOL).unwrap();
    std::fs::write(&endpoints, "[]\n").unwrap();
    let mut server = Server::bind(settings(&pool, &endpoints, 1 << 20)).await.unwrap();
    server.parts().spawn("a part that is lost", async { panic!("no hope") });
    let ended = tokio::time::timeout(SOON, server.run(Shutdown::default())).await;
    let error = format!("{:#}", ended.expect("the picker goes on").unwrap_err());
    assert!(error.contains("a part that is lost"), "{error}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_lack_of_file_descriptors_is_waited_for() {
    if test_skips::skips_slow() {
        return;
    }
    let program = Program::start(40);
    let mut sockets = Vec::new();
    for _ in 0..60 {
        sockets.push(TcpStream::connect(program.address("health")).await.unwrap());
    }
    until(async || program.n_logged("Cannot take connections") > 0).await;
    let before = program.cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let busy = program.cpu() - before;
    assert!(busy < Duration::from_millis(700), "{busy:?} of computing while nothing can be done");
    // A scrape that ends leaves its file descriptor to one more connection, after which they are lacking again.
    let n_lacks = program.n_logged("Cannot take connections");
    assert!(n_lacks <= 2, "said {n_lacks} times");
    drop(sockets);
    until(async || program.n_logged("Taking connections again") == n_lacks).await;
    assert_eq!(get(program.address("metrics"), "/healthz").await, "ok\n");
}

/// Connections from here to `port` that the other side has not answered.
#[cfg(target_os = "linux")]
fn n_unanswered(port: u16) -> usize {
    let (port, syn_sent) = (format!(":{port:04X}"), "02");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let to_port = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|remote| remote.ends_with(&port)) && fields.next() == Some(syn_sent)
    };
    table.lines().filter(to_port).count()
}

/// A port at all addresses of this machine that answers no connection, because nobody accepts those that there are.
#[cfg(target_os = "linux")]
fn swallowing_port() -> (Socket, Vec<std::net::TcpStream>, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    let connect = |_| std::net::TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), SHORT).ok();
    let waiting = (0..10).map_while(connect).collect();
    (socket, waiting, port)
}

/// Most attempts at a time to reach so many endpoints that swallow connections, until each was tried.
#[cfg(target_os = "linux")]
async fn most_attempts(n_endpoints: usize) -> usize {
    let (_socket, _waiting, port) = swallowing_port();
    let dir = TempDir::new().unwrap();
    let (pool, endpoints) = (dir.path().join("pool.yaml"), dir.path().join("endpoints.yaml"));
    std::fs::write(&pool, POOL).unwrap();
    let line = |idx: usize| {
        format!(
            "- {{name: pod-{idx}, address: '127.1.{}.{}:{port}', labels: {{app: a}}}}\n",
            idx / 200,
            idx % 200
        )
    };
    std::fs::write(&endpoints, (0..n_endpoints).map(line).collect::<String>()).unwrap();
    let server = Server::bind(settings(&pool, &endpoints, 1 << 20)).await.unwrap();
    let metrics = server.ports().unwrap().metrics;
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(Shutdown::default()));
    let mut most = 0;
    until(async || {
        most = most.max(n_unanswered(port));
        let page = get(metrics, "/metrics").await;
        let failures = r#"epp_scrape_failures_total{reason="timeout"} "#;
        let count = page.lines().find_map(|line| line.strip_prefix(failures)?.parse::<usize>().ok());
        count.is_some_and(|count| count >= 2 * n_endpoints)
    })
    .await;
    most
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn endpoints_that_swallow_connections_take_so_many_descriptors_and_no_more() {
    if test_skips::skips_slow() {
        return;
    }
    // 256 that are tried for the first time, and as many that were tried before. The system's table is not of one moment.
    let most = most_attempts(700).await;
    assert!((257..=530).contains(&most), "{most} attempts at a time");
    // The control: fewer are tried together, as far as they do not pause.
    let most = most_attempts(200).await;
    assert!((100..=210).contains(&most), "{most} attempts at a time");
}
