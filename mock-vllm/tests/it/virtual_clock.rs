//! The detached clock: nothing happens unless time moves, all that happens is the same in every run.

use crate::process::{Server, request};
use crate::server_fixtures::start;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::sync::Mutex;
use std::time::Duration;

const POST: &str = "POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\n";

/// Everything that a client can see of a run, but the web server's date.
struct Run {
    answers: Vec<String>,
    log: Vec<String>,
    metrics: Vec<String>,
}

fn advance(server: &Server, body: &Value) -> Value {
    let answer = server.post(0, "/debug/clock/advance", &body.to_string());
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn without_date(answer: &str) -> String {
    answer.lines().filter(|line| !line.starts_with("date:")).collect::<Vec<_>>().join("\n")
}

fn metrics(server: &Server, pod_idx: usize) -> Vec<String> {
    let text = server.get(pod_idx, "/metrics");
    text.lines().filter(|line| line.starts_with("vllm:")).map(str::to_owned).collect()
}

/// A prompt of one of ten conversations, so that caches hit, and some streams.
fn body(rng: &mut ChaCha8Rng) -> String {
    let conversation = rng.random_range(0..10);
    let n_turns = rng.random_range(1..5);
    let text: String =
        (0..n_turns).map(|turn| format!("Turn {turn} of talk {conversation}. ").repeat(20)).collect();
    let max_tokens = rng.random_range(1..120);
    json!({"prompt": text, "max_tokens": max_tokens, "stream": rng.random_bool(0.5)}).to_string()
}

/// 600 s of requests at random times, a third of them two at once, on two pods.
fn open_loop(seed: u64) -> Run {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("requests.jsonl");
    let server = Server::start(
        2,
        &format!("--pods 2 --virtual-clock=stepped --seed {seed} --request-log {}", log.display()),
    );
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let (mut at, mut n_sent) = (0.0, 0);
    let mut clients = Vec::new();
    while at < 600.0 {
        advance(&server, &json!({"to": at, "requests": n_sent}));
        for _ in 0..rng.random_range(1..4) / 2 + 1 {
            let address = server.address(rng.random_range(0..2)).to_owned();
            let body = body(&mut rng);
            clients.push(std::thread::spawn(move || request(&address, POST, &body)));
            n_sent += 1;
        }
        at += rng.random_range(0.0..6.0);
    }
    let end = advance(&server, &json!({"until_idle": true, "requests": n_sent}));
    assert_eq!(end["arrived"], n_sent);
    assert!(end["now"].as_f64().unwrap() > 590.0, "{end}");
    let answers = clients.into_iter().map(|client| without_date(&client.join().unwrap())).collect();
    let mut log: Vec<String> = std::fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect();
    log.sort();
    assert_eq!(log.len(), n_sent);
    Run { answers, log, metrics: [0, 1].into_iter().flat_map(|pod_idx| metrics(&server, pod_idx)).collect() }
}

/// Whole runs would fill screens: only the first difference is shown.
#[track_caller]
fn assert_same(first: &[String], second: &[String]) {
    assert_eq!(first.len(), second.len());
    let difference = first.iter().zip(second).find(|(first, second)| first != second);
    assert_eq!(difference, None);
}

#[test]
fn equal_seeds_give_equal_bytes_and_others_do_not() {
    let (first, second, other) = (open_loop(7), open_loop(7), open_loop(8));
    assert_same(&first.answers, &second.answers);
    assert_same(&first.log, &second.log);
    assert_same(&first.metrics, &second.metrics);
    assert!(first.answers != other.answers && first.log != other.log);
    assert!(first.metrics != other.metrics, "jitter is another");
    assert!(first.answers.iter().all(|answer| answer.starts_with("HTTP/1.1 200")));
    assert!(
        first
            .metrics
            .iter()
            .any(|line| line.starts_with("vllm:prefix_cache_hits_total") && !line.ends_with(" 0.0"))
    );
}

/// Four clients, each of which asks again as soon as it has its answer, and says so when it leaves.
fn closed_loop(clients: usize) -> Vec<Vec<String>> {
    let server = Server::start(2, &format!("--pods 2 --virtual-clock=auto --clock-clients {clients}"));
    let remaining = Mutex::new(clients);
    std::thread::scope(|scope| {
        let ask = |client_idx: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(client_idx);
            let ask_once = |_| {
                let address = server.address(rng.random_range(0..2));
                without_date(&request(address, POST, &body(&mut rng)))
            };
            let answers = (0..20).map(ask_once).collect();
            let mut remaining = remaining.lock().unwrap();
            *remaining = remaining.saturating_sub(1);
            server.post(0, "/debug/clock", &json!({"clients": *remaining}).to_string());
            answers
        };
        let clients: Vec<_> = (0..4).map(|client_idx| scope.spawn(move || ask(client_idx))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

#[test]
fn a_closed_loop_repeats_itself_when_time_waits_for_its_clients() {
    assert_same(&closed_loop(4).concat(), &closed_loop(4).concat());
}

#[tokio::test]
async fn one_client_after_the_other_needs_nobody_to_move_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for run_idx in 0..2 {
        let log = directory.path().join(format!("{run_idx}.jsonl"));
        let pod = start(&format!("--virtual-clock --jitter 0.1 --request-log {}", log.display())).await;
        for prompt_idx in 0..5 {
            let body = json!({"prompt": format!("What is {prompt_idx}?"), "max_tokens": 30});
            assert_eq!(pod.post("/v1/completions", body.to_string()).await.status, 200);
        }
        runs.push(std::fs::read_to_string(log).unwrap());
    }
    assert_eq!(runs[0], runs[1]);
    assert!(runs[0].contains("2026-01-01T00:00:0"), "dates are virtual: {}", runs[0]);
}

#[tokio::test]
async fn stepped_time_stands_still_and_moves_to_the_nanosecond() {
    let pod = start("--virtual-clock=stepped").await;
    let body = json!({"prompt": "hi", "max_tokens": 3, "ignore_eos": true}).to_string();
    let step = async |body: Value| pod.post("/debug/clock/advance", body.to_string()).await;
    let driving = async {
        let here = step(json!({"by": 0, "requests": 1})).await.json();
        assert_eq!(
            (&here["now"], &here["open"], &here["held_by"]),
            (&json!(0.0), &json!(1), &json!("limit"))
        );
        // Tokens leave 69 ms after the end of the steps of 44.7, 38.4 and 38.4 ms.
        let before = step(json!({"to": 0.152})).await.json();
        assert_eq!((&before["now"], &before["open"]), (&json!(0.152), &json!(1)));
        assert_eq!(pod.metric("vllm:generation_tokens_total").await, 2.0);
        let ended = step(json!({"until_idle": true})).await.json();
        assert_eq!((&ended["open"], &ended["next_event"]), (&json!(0), &Value::Null));
        let now = ended["now"].as_f64().unwrap();
        assert!((0.185..0.2).contains(&now), "{now}");
        assert_eq!(step(json!({"by": 10})).await.json()["now"], json!(now + 10.0));
    };
    let (answer, ()) = tokio::join!(pod.post("/v1/completions", body), driving);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn who_comes_first_at_a_moment_does_not_matter() {
    let run = async |reversed: bool| {
        // One at a time, so that order shows in every answer's time.
        let pod = start("--virtual-clock=stepped --max-num-seqs 1 --jitter 0.2").await;
        let mut bodies: Vec<String> = (0..6)
            .map(|idx| json!({"prompt": format!("number {idx}"), "max_tokens": 5 + idx}).to_string())
            .collect();
        if reversed {
            bodies.reverse();
        }
        let asking = async {
            let mut waiting = Vec::new();
            for (body_idx, body) in bodies.into_iter().enumerate() {
                let asked = pod.post("/v1/completions", body);
                let arrived =
                    pod.post("/debug/clock/advance", json!({"by": 0, "requests": body_idx + 1}).to_string());
                let asked = Box::pin(asked);
                // It has arrived before the next one is sent.
                let (asked, arrived) = match futures::future::select(asked, Box::pin(arrived)).await {
                    futures::future::Either::Left(_) => panic!("answered though time stands"),
                    futures::future::Either::Right((arrived, asked)) => (asked, arrived),
                };
                assert_eq!(arrived.status, 200);
                waiting.push(asked);
            }
            let until_idle = pod.post("/debug/clock/advance", r#"{"until_idle":true}"#);
            let (answers, _) = tokio::join!(futures::future::join_all(waiting), until_idle);
            answers
        };
        let mut answers: Vec<String> = asking.await.into_iter().map(|answer| answer.body).collect();
        answers.sort();
        let log_times = pod.metric("vllm:e2e_request_latency_seconds_sum").await;
        (answers, log_times.to_bits())
    };
    assert_eq!(run(false).await, run(true).await);
}

#[tokio::test]
async fn an_advance_that_cannot_be_says_why() {
    let pod = start("--virtual-clock=stepped").await;
    let check = async |body: &str, status: u16, part: &str| {
        let answer = pod.post("/debug/clock/advance", body.to_owned()).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.body.contains(part), "{}", answer.body);
    };
    check(r#"{"to":5}"#, 200, r#""now":5.0"#).await;
    check(r#"{"to":4}"#, 400, "time does not go back").await;
    check(r#"{"to":6,"by":1}"#, 400, "give one of").await;
    check("{}", 400, "give one of").await;
    check(r#"{"by":-1}"#, 400, "no number of seconds").await;
    check(r#"{"by":1,"speed":2}"#, 400, "speed").await;
    check("nonsense", 400, "expected").await;
    let answer = pod.post("/debug/clock", r#"{"clients":2}"#).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("--virtual-clock=auto"), "{}", answer.body);
    check(r#"{"by":1,"requests":2,"timeout":0.01}"#, 409, "0 of 2 requests have reached").await;
    let wall = start("").await;
    let answer = wall.post("/debug/clock/advance", r#"{"by":1}"#).await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("--virtual-clock"));
    assert_eq!(wall.get("/debug/clock").await.json()["time_scale"], 1000.0);
    let auto = start("--virtual-clock --clock-clients 2").await;
    let body = json!({"prompt": "hi", "max_tokens": 3}).to_string();
    let asked = auto.post("/v1/completions", body);
    let alone = auto.post("/debug/clock/advance", r#"{"to":1,"requests":1,"timeout":0.01}"#);
    let release = async {
        let alone = alone.await;
        assert_eq!(alone.status, 409);
        assert!(alone.body.contains("1 requests are open, and --clock-clients asks for 2"), "{}", alone.body);
        auto.post("/debug/clock/advance", r#"{"until_idle":true}"#).await
    };
    let (answer, released) = tokio::join!(asked, release);
    assert_eq!((answer.status.as_u16(), released.status.as_u16()), (200, 200));
}

#[tokio::test]
async fn an_aborted_request_does_not_hold_time() {
    let pod = start("--virtual-clock=stepped").await;
    let body = json!({"prompt": "hi", "max_tokens": 5000, "ignore_eos": true}).to_string();
    let asked = pod.post("/v1/completions", body);
    let gone = tokio::time::timeout(Duration::from_millis(200), asked).await;
    assert!(gone.is_err());
    while pod.get("/debug/clock").await.json()["open"] != 0 {}
    let end = pod.post("/debug/clock/advance", r#"{"until_idle":true,"requests":1}"#).await.json();
    assert!(end["now"].as_f64().unwrap() < 1.0, "{end}");
}
