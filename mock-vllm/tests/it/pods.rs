//! Many pods in one process: their names and caches, their ports, and their common end.

use crate::process::{Server, run};
use mock_vllm::cli;
use mock_vllm::server::PodSettings;
use mock_vllm::server::fleet::{PlannedPod, Replicas};
use mock_vllm::server::ports::ListenOn;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use socket2::{Domain, Socket, Type};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

const PROMPT: &str = r#"{"prompt":"one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen","max_tokens":4}"#;

fn settings(flags: &str) -> PodSettings {
    let line = format!("mock-vllm serve m {flags}");
    cli::pod_settings(line.split_whitespace().map(Into::into)).unwrap()
}

fn tcp(port: u16) -> ListenOn {
    ListenOn::Tcp { host: "127.0.0.1".to_owned(), port }
}

fn cached_tokens(answer: &str) -> u64 {
    let json = answer.split_once("\r\n\r\n").unwrap().1;
    let body: serde_json::Value = serde_json::from_str(json).unwrap();
    body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[test]
fn each_pod_has_its_own_cache_metrics_and_name() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("requests.jsonl");
    let server = Server::start(
        3,
        &format!("--pods 3 --pod-name qwen --enable-prompt-tokens-details --request-log {}", log.display()),
    );
    let names: Vec<&str> = server.addresses.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["qwen-0", "qwen-1", "qwen-2"]);
    assert_eq!(cached_tokens(&server.post(0, "/v1/completions", PROMPT)), 0);
    assert_eq!(cached_tokens(&server.post(0, "/v1/completions", PROMPT)), 16, "the same pod has it");
    assert_eq!(cached_tokens(&server.post(1, "/v1/completions", PROMPT)), 0, "another pod does not");
    let generated = |pod_idx| {
        let text = server.get(pod_idx, "/metrics");
        let line = text.lines().find(|line| line.starts_with("vllm:generation_tokens_total{"));
        line.unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!([generated(0), generated(1), generated(2)], ["8.0", "4.0", "0.0"]);
    let log = std::fs::read_to_string(log).unwrap();
    let pods = ["qwen-0", "qwen-1", "qwen-2"].map(|name| log.matches(&format!(r#""pod":"{name}""#)).count());
    assert_eq!(pods, [2, 1, 0], "one log for all");
}

#[test]
fn pods_differ_by_seed_port_name_and_kv_endpoint() {
    let settings = settings("--seed 7 --pod-name p --kv-events-config.enable_kv_cache_events true");
    let plan = Replicas::Pods(3).plan(&settings, &tcp(9000)).unwrap();
    let seen: Vec<_> = plan
        .iter()
        .map(|PlannedPod { settings, listen_on }| {
            let kv_events = format!("{:?}", settings.kv_events);
            let port = ["5557", "5558", "5559"].into_iter().find(|port| kv_events.contains(port)).unwrap();
            (settings.http.pod_name.as_str(), settings.seed, listen_on.clone(), port, settings.rank)
        })
        .collect();
    let expected = [
        ("p-0", 7, tcp(9000), "5557", 0),
        ("p-1", 8, tcp(9001), "5558", 0),
        ("p-2", 9, tcp(9002), "5559", 0),
    ];
    assert_eq!(seen, expected);
    let open = Replicas::Pods(2).plan(&settings, &tcp(0)).unwrap();
    assert!(open.iter().all(|pod| pod.listen_on == tcp(0)), "the system chooses each");
    let sockets = Replicas::Pods(2).plan(&settings, &ListenOn::Unix("/run/v".into())).unwrap();
    assert_eq!(sockets[1].listen_on, ListenOn::Unix("/run/v-1".into()));
    let error = Replicas::Pods(2).plan(&settings, &tcp(65_535)).unwrap_err();
    assert_eq!(error.to_string(), "2 pods from port 65535 on pass port 65535");
    let alone = Replicas::One.plan(&settings, &tcp(1)).unwrap();
    assert_eq!(alone[0].settings.http.pod_name, "p");
}

#[test]
fn another_seed_gives_another_text() {
    let server = Server::start(2, "--pods 2 --seed 7");
    let alone = Server::start(1, "--seed 8");
    let text = |answer: String| {
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        body["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let body = PROMPT.replace("\"max_tokens\":4", "\"max_tokens\":40");
    let texts = [0, 1].map(|pod_idx| text(server.post(pod_idx, "/v1/completions", &body)));
    assert_ne!(texts[0], texts[1]);
    assert_eq!(texts[1], text(alone.post(0, "/v1/completions", &body)), "pod 1 has the seed plus 1");
}

#[test]
fn data_parallel_ranks_carry_their_label() {
    let server = Server::start(2, "--data-parallel-size 2");
    assert_eq!(server.addresses[1].0, "mock-vllm-dp1");
    for rank in 0..2 {
        let label = format!(r#"vllm:num_requests_running{{engine="{rank}","#);
        assert!(server.get(rank, "/metrics").contains(&label));
    }
    let one = Server::start(1, "--data-parallel-size 4 --data-parallel-rank 3");
    assert!(one.get(0, "/metrics").contains(r#"vllm:num_requests_running{engine="3","#));
    run("serve m --data-parallel-size 2 --data-parallel-rank 2")
        .code(2)
        .stderr(contains("--data-parallel-rank 2 must be below"));
}

/// Finds two neighbouring ports, and holds the second.
fn taken_neighbour() -> (u16, TcpListener) {
    for _ in 0..100 {
        // The socket does not listen: a child that another test starts at the moment holds it for a while.
        let first = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        first.set_reuse_address(true).unwrap();
        first.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let port = first.local_addr().unwrap().as_socket().unwrap().port();
        if let (Some(next), true) = (port.checked_add(1), port > 1024)
            && let Ok(held) = TcpListener::bind(("127.0.0.1", next))
        {
            return (port, held);
        }
    }
    panic!("no two ports in a row are free");
}

#[test]
fn a_taken_port_is_named_with_the_way_out_before_anything_is_built() {
    let (port, held) = taken_neighbour();
    // A pod that is built would fail: the script does not exist.
    let flags = |port: u16| {
        format!("serve m --host 127.0.0.1 --port {port} --pods 2 --scripted-replies nowhere.yaml")
    };
    run(&flags(port))
        .code(1)
        .stderr(contains(format!("port {} of 127.0.0.1 is taken", port + 1)))
        .stderr(contains("pod mock-vllm-1").and(contains("--port 0")))
        .stderr(contains("nowhere.yaml").not());
    drop(held);
    // The control: the port was all that was wrong.
    run(&flags(0)).stderr(contains("nowhere.yaml"));
}

#[test]
fn a_taken_kv_event_port_is_named_too() {
    let held = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = held.local_addr().unwrap().port();
    let events = format!("{{\"enable_kv_cache_events\":true,\"endpoint\":\"tcp://*:{port}\"}}");
    run(&format!("serve m --port 0 --kv-events-config {events}"))
        .stderr(contains(format!("0.0.0.0:{port} is taken")).and(contains("--kv-events-config")));
}

fn open_stream(address: &str) -> TcpStream {
    let body = r#"{"prompt":"hi","max_tokens":20000,"ignore_eos":true,"stream":true}"#;
    let mut socket = TcpStream::connect(address).unwrap();
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length:";
    write!(socket, "{head} {}\r\n\r\n{body}", body.len()).unwrap();
    socket.read_exact(&mut [0; 16]).unwrap();
    socket
}

#[test]
fn one_signal_ends_all_pods_though_streams_are_open() {
    for signal in ["-INT", "-TERM"] {
        let mut server = Server::start(4, "--pods 4 --time-scale 1");
        let _streams: Vec<TcpStream> = (0..4).map(|pod_idx| open_stream(server.address(pod_idx))).collect();
        let addresses = server.addresses.clone();
        server.signal(signal);
        assert!(server.wait().success(), "{signal}");
        assert!(addresses.iter().all(|(_, address)| TcpStream::connect(address).is_err()));
        let (log, _) = server.into_output();
        assert!(log.contains("Stopping") && !log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_shutdown_timeout_lets_requests_end_and_a_second_signal_does_not() {
    // 40 tokens at 38 ms: they need the grace.
    let body = r#"{"prompt":"hi","max_tokens":40,"ignore_eos":true}"#;
    let mut server = Server::start(1, "--time-scale 1 --shutdown-timeout 60");
    let address = server.address(0).to_owned();
    let asking = std::thread::spawn(move || {
        crate::process::request(
            &address,
            "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n",
            body,
        )
    });
    while !server.get(0, "/metrics").contains("vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 1.0")
    {
    }
    server.signal("-TERM");
    assert!(server.wait().success());
    assert!(asking.join().unwrap().contains(r#""completion_tokens":40"#));
    let mut server = Server::start(1, "--time-scale 1 --shutdown-timeout 600");
    let _stream = open_stream(server.address(0));
    server.signal("-TERM");
    // The first signal has been seen once new connections are refused.
    while TcpStream::connect(server.address(0)).is_ok() {}
    server.signal("-TERM");
    assert!(server.wait().success());
}

#[test]
fn the_port_file_has_a_line_per_pod() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ports");
    let server = Server::start(3, &format!("--pods 3 --port-file {}", path.display()));
    let text = std::fs::read_to_string(&path).unwrap();
    let expected: String =
        server.addresses.iter().map(|(name, address)| format!("{name} {address}\n")).collect();
    assert_eq!(text, expected);
    assert!(server.get(2, "/health").starts_with("HTTP/1.1 200"));
    run("serve m --port 0 --port-file /nowhere/at/all").code(1).stderr(contains("/nowhere/at/all"));
}

#[test]
fn a_socket_in_the_file_system_serves_and_is_removed() {
    use std::os::unix::net::UnixStream;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vllm.sock");
    let start = |path: &Path| {
        Command::new(env!("CARGO_BIN_EXE_mock-vllm")).args(["serve", "m", "--uds"]).arg(path).spawn().unwrap()
    };
    let wait_for = |path: &Path| {
        loop {
            if let Ok(socket) = UnixStream::connect(path) {
                return socket;
            }
        }
    };
    let mut first = start(&path);
    let mut socket = wait_for(&path);
    socket.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // A server answers there, so the socket is not removed.
    run(&format!("serve m --uds {}", path.display())).code(1).stderr(contains("vllm.sock is taken"));
    // The socket of a server that was killed can be used again.
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(path.exists());
    let mut third = start(&path);
    wait_for(&path);
    let pid = third.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(third.wait().unwrap().success());
    assert!(!path.exists(), "removed at the end");
}
