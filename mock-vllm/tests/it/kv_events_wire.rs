//! KV events over real sockets: subscribers in Rust and Python, gaps and replay.

use crate::engine_fixtures::{ROUND1, engine, request, run};
use crate::kv_events::stored;
use crate::python;
use crate::server_fixtures;
use crate::tutorial;
use bytes::Bytes;
use mock_vllm::kv_events::config::{KvEventsConfig, ZmqConfig};
use mock_vllm::kv_events::encoding::{HashForm, WireFormat, encode_batch};
use mock_vllm::kv_events::publisher::KvEventPublisher;
use mock_vllm::kv_events::service::channel;
use mock_vllm::kv_events::stats::KvEventStats;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use vllm_engine::event::KvEvent;
use vllm_engine::vllm_version::VllmVersion;
use zeromq::{DealerSocket, Socket as _, SocketSend as _, SubSocket, ZmqMessage};

/// Timeout, far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const TOPIC: &str = "kv@pod-0@qwen";
const AT: Duration = Duration::from_millis(1_500);

struct Served {
    publisher: KvEventPublisher,
    /// Address of the PUB socket for a client here; `None` if the service connects itself.
    address: Option<SocketAddr>,
    replay: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Starts a service on ports of its own, with more `keys` of the flag.
async fn serve(version: VllmVersion, keys: &[&str]) -> Served {
    let args = [
        "enable_kv_cache_events=true",
        "endpoint=tcp://*:0",
        "replay_endpoint=tcp://127.0.0.1:0",
        &format!("topic={TOPIC}"),
    ];
    let config = KvEventsConfig::from_args(args.into_iter().chain(keys.iter().copied())).unwrap();
    let KvEventsConfig::Zmq(config) = config else { panic!("events are on") };
    serve_config(version, config).await
}

async fn serve_config(version: VllmVersion, config: ZmqConfig) -> Served {
    let (publisher, service) = channel(config, WireFormat { version, hashes: HashForm::Int }, 0);
    let bound = service.bind().await.unwrap();
    let address = bound.local_addr().map(|address| SocketAddr::from(([127, 0, 0, 1], address.port())));
    let replay = bound.replay_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        let _stop_dropped = stopped.await;
    };
    #[expect(clippy::disallowed_methods, reason = "the test holds the handle")]
    let task = tokio::spawn(bound.run(shutdown));
    Served { publisher, address, replay, stop, task }
}

// === impl Served ===

impl Served {
    fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    fn stats(&self) -> KvEventStats {
        self.publisher.monitor().stats()
    }

    /// Waits until the counters fulfil the condition.
    async fn wait_for(&self, what: &str, is_so: impl Fn(KvEventStats) -> bool) {
        let wait = async {
            while !is_so(self.stats()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: {:?}", self.stats()));
    }

    /// Returns a subscriber whose subscription has arrived.
    async fn subscribe(&self, topic: &str) -> SubSocket {
        let n_before = self.stats().subscribers;
        let mut socket = SubSocket::new();
        socket.connect(&format!("tcp://{}", self.address())).await.unwrap();
        socket.subscribe(topic).await.unwrap();
        self.wait_for("subscription", |stats| stats.subscribers > n_before).await;
        socket
    }

    /// Returns the frames after the delimiter in each answer, the end marker's included.
    async fn replay(&self, start: u64) -> Vec<Vec<Vec<u8>>> {
        let mut socket = DealerSocket::new();
        socket.connect(&format!("tcp://{}", self.replay)).await.unwrap();
        let request = vec![Bytes::new(), Bytes::copy_from_slice(&start.to_be_bytes())];
        socket.send(ZmqMessage::try_from(request).unwrap()).await.unwrap();
        let mut answers: Vec<Vec<Vec<u8>>> = Vec::new();
        while answers.last().is_none_or(|answer| answer.last().is_some_and(|payload| !payload.is_empty())) {
            let mut frames = receive(&mut socket).await;
            assert!(frames.remove(0).is_empty(), "the delimiter comes first");
            answers.push(frames);
        }
        answers
    }
}

async fn receive(socket: &mut impl zeromq::SocketRecv) -> Vec<Vec<u8>> {
    let message = tokio::time::timeout(PATIENCE, socket.recv()).await.expect("a message comes").unwrap();
    message.into_vec().iter().map(|frame| frame.to_vec()).collect()
}

fn payload(version: VllmVersion, events: &[KvEvent]) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_batch(&mut payload, WireFormat { version, hashes: HashForm::Int }, AT, events, 0);
    payload
}

fn message(version: VllmVersion, seq: u64, events: &[KvEvent]) -> Vec<Vec<u8>> {
    vec![TOPIC.into(), seq.to_be_bytes().to_vec(), payload(version, events)]
}

/// Makes a batch that contains its number.
fn batch(seq: u64) -> Vec<KvEvent> {
    vec![stored(&[seq], None)]
}

#[tokio::test]
async fn each_step_is_one_message_in_sequence() {
    let mut served = serve(VllmVersion::V0_33, &[]).await;
    let mut subscriber = served.subscribe("kv@").await;
    let mut engine = engine(|config| config.kv_events = true);
    engine.add(request(1, &ROUND1, 24)).unwrap();
    run(&mut engine);
    let events = engine.take_events();
    assert!(events.len() > 1, "prompt and decode blocks");
    served.publisher.publish(AT, events.clone());
    // A step without events sends no message and uses no number.
    served.publisher.publish(AT, Vec::new());
    served.publisher.publish(AT, batch(1));
    assert_eq!(receive(&mut subscriber).await, message(VllmVersion::V0_33, 0, &events));
    assert_eq!(receive(&mut subscriber).await, message(VllmVersion::V0_33, 1, &batch(1)));
}

#[tokio::test]
async fn an_engine_without_events_sends_nothing() {
    let mut served = serve(VllmVersion::V0_33, &[]).await;
    let mut subscriber = served.subscribe("").await;
    let mut engine = engine(|config| config.kv_events = false);
    engine.add(request(1, &ROUND1, 24)).unwrap();
    run(&mut engine);
    served.publisher.publish(AT, engine.take_events());
    served.publisher.publish(AT, batch(0));
    // The first message is the one that was sent to mark an end.
    assert_eq!(receive(&mut subscriber).await, message(VllmVersion::V0_33, 0, &batch(0)));
    assert_eq!(served.stats().published, 1);
}

#[tokio::test]
async fn a_topic_is_a_prefix() {
    let mut served = serve(VllmVersion::V0_33, &[]).await;
    let mut subscriber = SubSocket::new();
    subscriber.connect(&format!("tcp://{}", served.address())).await.unwrap();
    subscriber.subscribe("kv@pod-1").await.unwrap();
    // Subscriptions of one connection arrive in order, so that the first has arrived with the second.
    let mut all = served.subscribe("").await;
    served.publisher.publish(AT, batch(0));
    assert_eq!(receive(&mut all).await, message(VllmVersion::V0_33, 0, &batch(0)));
    subscriber.subscribe(TOPIC).await.unwrap();
    served.wait_for("second subscription", |stats| stats.subscribers == 2).await;
    served.publisher.publish(AT, batch(1));
    assert_eq!(receive(&mut subscriber).await, message(VllmVersion::V0_33, 1, &batch(1)));
    drop(all);
    subscriber.unsubscribe(TOPIC).await.unwrap();
    served.wait_for("end of the subscription", |stats| stats.subscribers == 0).await;
}

#[tokio::test]
async fn replay_answers_in_both_generations() {
    for version in [VllmVersion::V0_11, VllmVersion::V0_33] {
        let mut served = serve(version, &["buffer_steps=3"]).await;
        let mut subscriber = served.subscribe("").await;
        (0..5).for_each(|seq| served.publisher.publish(AT, batch(seq)));
        for seq in 0..5 {
            assert_eq!(receive(&mut subscriber).await, message(version, seq, &batch(seq)));
        }
        let n_topic = match version {
            VllmVersion::V0_8 | VllmVersion::V0_11 => 1,
            VllmVersion::V0_33 => 0,
        };
        let answer = |seq| message(version, seq, &batch(seq)).split_off(n_topic);
        let end = [Vec::new(), vec![0xff; 8], Vec::new()][n_topic..].to_vec();
        assert_eq!(served.replay(3).await, [answer(3), answer(4), end.clone()]);
        // The buffer holds three: the first two are lost.
        assert_eq!(served.replay(0).await, [answer(2), answer(3), answer(4), end.clone()]);
        assert_eq!(served.replay(5).await, [end]);
        assert_eq!(served.stats().replays, 3);
    }
}

/// ZMTP by hand: a subscriber of version 3.0 that does not read, and libzmq's heartbeat.
#[tokio::test]
async fn a_slow_subscriber_loses_messages_and_replay_has_them() {
    let mut served = serve(VllmVersion::V0_33, &["hwm=2"]).await;
    let mut stream = TcpStream::connect(served.address()).await.unwrap();
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting).await.unwrap();
    stream.write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB").await.unwrap();
    stream.write_all(b"\x04\x09\x04PING\0\x01hi\0\x01\x01").await.unwrap();
    served.wait_for("subscription", |stats| stats.subscribers == 1).await;
    // 16 MB are more than the kernel holds for a connection.
    let hashes: Vec<u64> = (u64::MAX - 100_000..u64::MAX).collect();
    let large = vec![stored(&hashes, None)];
    let mut n_sent = 0;
    while served.stats().dropped_messages == 0 {
        assert!(n_sent < 500, "a subscriber that does not read never lost a message");
        served.publisher.publish(AT, large.clone());
        n_sent += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    served.wait_for("everything is queued or dropped", |stats| stats.published == n_sent).await;
    let kept: Vec<_> = served.replay(0).await;
    assert_eq!(kept.len() as u64, n_sent + 1, "all messages and the end");
    let Served { publisher, stop, task, .. } = served;
    drop((publisher, stop));
    task.await.unwrap();
    let mut received = Vec::new();
    let _cut_off = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut received)).await.unwrap();
    assert!(received[64..].windows(8).any(|bytes| bytes == b"\x07\x04PONGhi"), "the heartbeat is answered");
    let n_received = received.windows(TOPIC.len()).filter(|bytes| *bytes == TOPIC.as_bytes()).count() as u64;
    assert!(n_received < n_sent, "{n_received} of {n_sent}");
}

#[tokio::test]
async fn a_full_queue_never_blocks_and_leaves_a_gap() {
    let args = ["enable_kv_cache_events=true", "endpoint=tcp://*:0", "replay_endpoint=tcp://127.0.0.1:0"];
    let config =
        KvEventsConfig::from_args(args.into_iter().chain(["max_queue_size=2", "topic=kv@pod-0@qwen"]));
    let KvEventsConfig::Zmq(config) = config.unwrap() else { panic!("events are on") };
    let (mut publisher, service) = channel(config, WireFormat::default(), 0);
    // No task takes from the queue yet.
    (0..5).for_each(|seq| publisher.publish(AT, batch(seq)));
    let stats = publisher.monitor().stats();
    assert_eq!((stats.published, stats.dropped_batches), (5, 3));
    let bound = service.bind().await.unwrap();
    let replay = bound.replay_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    #[expect(clippy::disallowed_methods, reason = "the test holds the handle")]
    let task = tokio::spawn(bound.run(async move {
        let _stop_dropped = stopped.await;
    }));
    let mut served = Served { publisher, address: None, replay, stop, task };
    let answers = loop {
        let answers = served.replay(0).await;
        if answers.len() == 3 {
            break answers;
        }
    };
    assert_eq!(answers[1], message(VllmVersion::V0_33, 1, &batch(1)));
    served.publisher.publish(AT, batch(5));
    let after = loop {
        let answers = served.replay(2).await;
        if answers.len() == 2 {
            break answers;
        }
    };
    assert_eq!(after[0], message(VllmVersion::V0_33, 5, &batch(5)), "2 to 4 are nowhere");
}

#[tokio::test]
async fn dials_a_subscriber_that_listens_and_comes_back() {
    // The subscriber's side of the connection by hand: what libzmq sends, in commands of 3.1.
    async fn accept(listener: &TcpListener) -> TcpStream {
        let (mut stream, _) = tokio::time::timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut greeting = [0; 64];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(&greeting).await.unwrap();
        stream.write_all(b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB").await.unwrap();
        stream.write_all(b"\x04\x0a\x09SUBSCRIBE").await.unwrap();
        stream
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("endpoint=tcp://{}", listener.local_addr().unwrap());
    let mut served = serve(VllmVersion::V0_33, &[&endpoint]).await;
    for seq in 0..2 {
        let mut stream = accept(&listener).await;
        served.wait_for("subscription", |stats| stats.subscribers == 1).await;
        served.publisher.publish(AT, batch(seq));
        let expected = payload(VllmVersion::V0_33, &batch(seq));
        let mut received = Vec::new();
        while !received.ends_with(&expected) {
            let n_read =
                tokio::time::timeout(PATIENCE, stream.read_buf(&mut received)).await.unwrap().unwrap();
            assert!(n_read > 0, "the publisher hung up");
        }
        drop(stream);
        served.wait_for("end of the connection", |stats| stats.subscribers == 0).await;
    }
}

#[tokio::test]
async fn stops_at_once_and_sends_what_is_queued() {
    let mut served = serve(VllmVersion::V0_33, &[]).await;
    let mut subscriber = served.subscribe("").await;
    (0..100).for_each(|seq| served.publisher.publish(AT, batch(seq)));
    let Served { stop, task, publisher, .. } = served;
    stop.send(()).unwrap();
    task.await.unwrap();
    for seq in 0..100 {
        assert_eq!(receive(&mut subscriber).await, message(VllmVersion::V0_33, seq, &batch(seq)));
    }
    // A publisher that outlives its service does no harm.
    let mut publisher = publisher;
    publisher.publish(AT, batch(100));
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let served = serve(VllmVersion::V0_33, &[]).await;
    let args = [
        "enable_kv_cache_events=true",
        &format!("replay_endpoint=tcp://{}", served.replay),
        "endpoint=tcp://*:0",
    ];
    let KvEventsConfig::Zmq(config) = KvEventsConfig::from_args(args).unwrap() else {
        panic!("events are on")
    };
    let (_publisher, service) = channel(config, WireFormat::default(), 0);
    let error = service.bind().await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {} for KV events", served.replay));
}

/// The whole way from the command line to the socket. The tutorial's first request fills seven blocks at once, and two
/// more one by one.
#[tokio::test]
async fn a_pod_sends_what_its_engine_stores() {
    let on = "--kv-events-config {\"enable_kv_cache_events\":true} --kv-events-config.endpoint tcp://*:0";
    for (version, hashes, flags) in [
        (VllmVersion::V0_33, HashForm::Int, "--kv-events-config.topic=kv"),
        (
            VllmVersion::V0_11,
            HashForm::Bytes,
            "--kv_events_config.topic kv --vllm-version 0.11 --hash-seed vllm-none-hash --kv-events-use-int-block-hashes 0",
        ),
    ] {
        let pod = server_fixtures::start(&format!("{on} {flags}")).await;
        let (address, monitor) = pod.kv_events.clone().unwrap();
        let mut subscriber = SubSocket::new();
        subscriber.connect(&format!("tcp://127.0.0.1:{}", address.port())).await.unwrap();
        subscriber.subscribe("").await.unwrap();
        while monitor.stats().subscribers == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(pod.post("/v1/chat/completions", tutorial::ROUND1).await.status, 200);
        let mut twin = engine(|config| config.kv_events = true);
        twin.add(request(1, &ROUND1, 24)).unwrap();
        twin.schedule();
        let mut expected = Vec::new();
        encode_batch(&mut expected, WireFormat { version, hashes }, AT, &twin.take_events(), 0);
        // The decode blocks follow, each with its own step.
        for seq in 0_u64..3 {
            let [topic, seq_bytes, payload] = <[_; 3]>::try_from(receive(&mut subscriber).await).unwrap();
            assert_eq!((topic, seq_bytes), (b"kv".to_vec(), seq.to_be_bytes().to_vec()));
            // The head of the array and of the float, then the time.
            assert_eq!(payload[..2], expected[..2]);
            assert!(f64::from_be_bytes(payload[2..10].try_into().unwrap()) > 1.7e9, "a time of our days");
            assert_eq!(payload[10..] == expected[10..], seq == 0);
        }
        assert_eq!(monitor.stats().published, 3);
    }
}

#[tokio::test]
async fn a_pod_without_the_flag_has_no_events() {
    for flags in ["", "--kv-events-config {}", "--kv-events-config.topic kv"] {
        let pod = server_fixtures::start(flags).await;
        assert!(pod.kv_events.is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_decodes_the_stream_and_fills_its_gap() {
    let packages = ["pyzmq==27.3.0", "msgspec==0.22.0"];
    let Some(python) = python::interpreter(&packages) else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/kv_events/subscriber.py");
    for (version, shape) in [(VllmVersion::V0_33, "map"), (VllmVersion::V0_11, "array")] {
        for (buffer, is_filled) in [("buffer_steps=10", true), ("buffer_steps=2", false)] {
            let mut served = serve(version, &[buffer]).await;
            let mut child = tokio::process::Command::new(&python)
                .args([script, shape, &served.address().to_string(), &served.replay.to_string(), TOPIC, "3"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            served.wait_for("Python's subscription", |stats| stats.subscribers == 1).await;
            (0..3).for_each(|seq| served.publisher.publish(AT, python_batch(seq)));
            for seq in 0..3 {
                let line: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
                assert_eq!(line, json!(["live", seq, 1.5, python_events(shape, seq), 0]));
            }
            assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("\"away\""));
            served.wait_for("Python's absence", |stats| stats.subscribers == 0).await;
            (3..7).for_each(|seq| served.publisher.publish(AT, python_batch(seq)));
            stdin.write_all(b"\n").await.unwrap();
            served.wait_for("Python's return", |stats| stats.subscribers == 1).await;
            served.publisher.publish(AT, python_batch(7));
            let mut rest = Vec::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                rest.push(serde_json::from_str::<Value>(&line).unwrap());
            }
            // A buffer of two holds only 6 and 7: 3 to 5 are lost, and the script says so.
            let first_replayed = if is_filled { 3 } else { 6 };
            let expected: Vec<Value> = std::iter::once(("live", 7))
                .chain((first_replayed..7).map(|seq| ("replayed", seq)))
                .map(|(kind, seq)| json!([kind, seq, 1.5, python_events(shape, seq), 0]))
                .collect();
            assert_eq!(rest, expected);
            let output = child.wait_with_output().await.unwrap();
            let complaint = if is_filled { "" } else { "missing for good: [3, 4, 5]\n" };
            assert_eq!(String::from_utf8_lossy(&output.stderr), complaint);
            assert_eq!(output.status.success(), is_filled);
        }
    }
}

fn python_batch(seq: u64) -> Vec<KvEvent> {
    let removed = KvEvent::BlockRemoved { block_hash: crate::kv_events::hash(seq) };
    vec![stored(&[u64::MAX - seq, seq], Some(9)), removed, KvEvent::AllBlocksCleared]
}

/// Returns what Python should decode from `python_batch`.
fn python_events(shape: &str, seq: u64) -> Value {
    let mut stored = json!({"type": "BlockStored", "block_hashes": [u64::MAX - seq, seq], "parent_block_hash": 9,
        "token_ids": [1, 2, 3, 4], "block_size": 2, "lora_id": null, "medium": "GPU"});
    let mut removed = json!({"type": "BlockRemoved", "block_hashes": [seq], "medium": "GPU"});
    if shape == "map" {
        stored["lora_name"] = Value::Null;
        stored["extra_keys"] = json!([null, null]);
        stored["group_idx"] = json!(0);
        stored["kv_cache_spec_kind"] = json!("full_attention");
        removed["group_idx"] = json!(0);
    }
    json!([stored, removed, {"type": "AllBlocksCleared"}])
}
