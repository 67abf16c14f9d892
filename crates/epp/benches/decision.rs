//! One request through exchange and director, without sockets: scan, hash, look up, pick, record, answer.
//!
//! Bodies are chats whose turns extend each other, so that most lookups match. The fleet is ten pods, or as many as the
//! largest fleets have.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use divan::counter::{BytesCount, ItemsCount};
use envoy_proto::config::core::v3::{HeaderMap, HeaderValue};
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::{HttpBody, HttpHeaders, ProcessingRequest};
use epp::director::{Director, InFlightRequest, Now, Options};
use epp::metrics::Metrics;
use epp::scrape::ScrapeResult;
use epp::tuning::Patch;
use ext_proc::body::{Api, BodyScanner};
use ext_proc::budget::Budget;
use ext_proc::compat::Compat;
use ext_proc::exchange::{Exchange, StreamOptions};
use inference_api::kinds::Object;
use inference_api::manifest;
use picking::endpoint::Sample;
use picking::picker::INDEX_CAPACITY;
use pool_index::index::{Change, EndpointRecord, Index, Membership};
use pool_index::snapshot::KvAddresses;
use prefix_index::blocks::Bounds;
use scheduling::saturation::Thresholds;

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p, annotations: {inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";
const N_PODS: u16 = 10;
/// Sizes of growing fleets; the last one is larger than any that is known to run behind one picker.
const FLEETS: [u16; 4] = [10, 100, 1000, 10_000];
/// Body sizes from upstream's issue reports: a short chat, a long one, and a whole document.
const BODY_BYTES: [usize; 3] = [2_000, 10_000, 220_000];
/// Largest piece of a body that Envoy sends.
const CHUNK: usize = 16_384;
/// Sizes of the pieces of a body whose client sends small DATA frames, which Envoy passes on one by one.
const SMALL_CHUNKS: [usize; 3] = [10, 100, 1000];

fn main() {
    divan::main();
}

fn director(n_pods: u16) -> Director {
    let (mut index, reader) = Index::new();
    let pools =
        manifest::parse(POOL, "pool.yaml").expect("a valid pool").into_iter().map(|object| match object {
            Object::InferencePool(pool) => Change::ApplyPool(pool),
            other => panic!("not a pool: {other:?}"),
        });
    let endpoints = (0..n_pods).map(|pod| {
        let address = ([10, 0, 0, 1], 8000 + pod).into();
        let key = inference_api::object::ObjectKey::new("default", format!("pod-{pod}"));
        Change::ApplyEndpoint(EndpointRecord {
            key,
            address,
            kv: KvAddresses::default(),
            membership: Membership::EveryPool,
            ready: true,
        })
    });
    index.apply(pools.chain(endpoints).collect::<Vec<_>>());
    let options = Options {
        pool: None,
        policy: Patch::default(),
        max_metrics_age: Duration::from_secs(2),
        index_capacity: INDEX_CAPACITY,
        kv_bounds: Bounds::default(),
        compat: Compat::None,
        explains: false,
        saturation: Thresholds::default(),
        endpoints_per_pick: NonZeroUsize::MIN,
        n_decisions: 1000,
        seed: 1,
        peers: None,
    };
    let director = Director::new(options, Arc::new(Metrics::default()));
    let datastore = director.apply(&reader.snapshot());
    for (idx, endpoint) in datastore.endpoints.iter().enumerate() {
        let sample = Sample {
            waiting: u32::try_from(idx % 3).unwrap_or_default(),
            running: 8,
            kv_usage: 0.5,
            started: Some(1.0),
            prompt_tokens: None,
            first_tokens: Some(0),
            kv_tokens: None,
            adapters: None,
        };
        let doubts = endpoint.state.doubts();
        director.note_scrape(endpoint, ScrapeResult::Sample { sample, doubts, taken: now().instant });
    }
    director
}

/// A chat of turns of about 200 bytes, cut to `n_bytes`. Chats with different numbers share nothing.
fn body(n_bytes: usize, number: u64) -> Bytes {
    let mut text = String::from(r#"{"model":"m","messages":["#);
    for turn in 0.. {
        let role = if turn % 2 == 0 { "user" } else { "assistant" };
        let words = "the quick brown fox jumps over the lazy dog and says \\\"no\\\" ".repeat(3);
        text += &format!(r#"{{"role":"{role}","content":"{number:016}, {turn}: {words}\n"}},"#);
        if text.len() > n_bytes {
            break;
        }
    }
    text.pop();
    Bytes::from(text + "]}")
}

/// A chat as an agent sends it: with tools, and every other answer of the assistant calls one.
fn agent_body(n_bytes: usize) -> Bytes {
    const TOOLS: &str = r#""tools":[{"type":"function","function":{"name":"read","description":"Reads a file.","parameters":{"type":"object","properties":{"path":{"type":"string"}}}}}]"#;
    let mut text = format!(r#"{{"model":"m",{TOOLS},"messages":["#);
    for turn in 0.. {
        let words = "the quick brown fox jumps over the lazy dog and says \\\"no\\\" ".repeat(3);
        text += &match turn % 3 {
            0 => format!(r#"{{"role":"user","content":"{turn}: {words}\n"}},"#),
            1 => format!(
                r#"{{"role":"assistant","content":null,"tool_calls":[{{"id":"call_{turn}","type":"function","function":{{"name":"read","arguments":"{{\"path\": \"/src/{turn}.rs\"}}"}}}}]}},"#
            ),
            _ => format!(r#"{{"role":"tool","tool_call_id":"call_{}","content":"{words}\n"}},"#, turn - 1),
        };
        if text.len() > n_bytes {
            break;
        }
    }
    text.pop();
    Bytes::from(text + "]}")
}

fn messages(body: &Bytes, chunk: usize) -> Vec<ProcessingRequest> {
    let header = |key: &str, value: &str| HeaderValue {
        key: key.to_owned(),
        raw_value: value.to_owned().into(),
        ..HeaderValue::default()
    };
    let headers = vec![header(":method", "POST"), header(":path", "/v1/chat/completions")];
    let headers =
        HttpHeaders { headers: Some(HeaderMap { headers }), end_of_stream: false, ..HttpHeaders::default() };
    let chunks = (0..body.len()).step_by(chunk).map(|start| {
        let end = (start + chunk).min(body.len());
        let end_of_stream = end == body.len();
        Request::RequestBody(HttpBody { body: body.slice(start..end), end_of_stream, ..HttpBody::default() })
    });
    std::iter::once(Request::RequestHeaders(headers))
        .chain(chunks)
        .map(|request| ProcessingRequest { request: Some(request), ..ProcessingRequest::default() })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "the bench stands in for the server")]
fn now() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::now() }
}

#[divan::bench(args = BODY_BYTES)]
fn decision(bencher: divan::Bencher<'_, '_>, n_bytes: usize) {
    bench(bencher, N_PODS, || messages(&body(n_bytes, 0), CHUNK));
}

/// A large body of which every message holds little.
#[divan::bench(args = SMALL_CHUNKS)]
fn decision_in_small_messages(bencher: divan::Bencher<'_, '_>, chunk: usize) {
    bench(bencher, N_PODS, || messages(&body(BODY_BYTES[2], 0), chunk));
}

/// Decides for the smallest body, so that the fleet's size dominates.
#[divan::bench(args = FLEETS)]
fn decision_by_pods(bencher: divan::Bencher<'_, '_>, n_pods: u16) {
    bench(bencher, n_pods, || messages(&body(BODY_BYTES[0], 0), CHUNK));
}

/// Decides for requests of which no endpoint holds anything: all are compared by their load.
#[divan::bench(args = FLEETS)]
fn decision_by_pods_without_a_match(bencher: divan::Bencher<'_, '_>, n_pods: u16) {
    let next = AtomicU64::new(0);
    let inputs = || messages(&body(BODY_BYTES[0], next.fetch_add(1, Ordering::Relaxed)), CHUNK);
    bench(bencher, n_pods, inputs);
}

fn bench(bencher: divan::Bencher<'_, '_>, n_pods: u16, inputs: impl Fn() -> Vec<ProcessingRequest> + Sync) {
    let director = director(n_pods);
    let budget = Arc::new(Budget::new(usize::MAX));
    bencher.counter(ItemsCount::new(1_u32)).with_inputs(inputs).bench_values(|messages| {
        let fresh_request_id = director.fresh_request_id();
        let options = StreamOptions {
            max_body_bytes: 64 << 20,
            fresh_request_id,
            pool: None,
            compat: Compat::None,
            explains: false,
        };
        let mut exchange = Exchange::<InFlightRequest>::new(options, budget.reserve());
        for message in messages {
            let answers = exchange.step(message, |request| director.decide(request, now()));
            divan::black_box(answers.expect("a legal sequence"));
        }
    });
}

#[divan::bench(args = BODY_BYTES)]
fn scan(bencher: divan::Bencher<'_, '_>, n_bytes: usize) {
    bench_scan(bencher, &body(n_bytes, 0));
}

/// Scan of a body with fields that the engine renders in another order, so that they are read a second time.
#[divan::bench(args = BODY_BYTES)]
fn scan_of_an_agent(bencher: divan::Bencher<'_, '_>, n_bytes: usize) {
    bench_scan(bencher, &agent_body(n_bytes));
}

fn bench_scan(bencher: divan::Bencher<'_, '_>, body: &Bytes) {
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let mut scanner = BodyScanner::new(Api::Chat);
        scanner.push(body).expect("valid JSON");
        scanner.finish(std::slice::from_ref(body)).expect("a chat")
    });
}
