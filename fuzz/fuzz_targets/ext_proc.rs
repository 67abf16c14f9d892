//! Fuzzes a whole picker with any sequence of ext_proc messages in any body mode: each answer is allowed by the
//! protocol at that point, the body passes unchanged, and nothing stays behind when the stream has ended.
#![no_main]

use envoy_proto::config::core::v3::{HeaderMap, HeaderValue};
use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{
    HttpBody, HttpHeaders, HttpTrailers, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
};
use ext_proc::budget::Budget;
use ext_proc::compat::Compat;
use epp::director::{Director, Now, Options, InFlightRequest};
use ext_proc::exchange::{Exchange, StreamOptions};
use epp::metrics::Metrics;
use ext_proc::reply::MAX_CHUNK;
use epp::tuning::Patch;
use inference_api::kinds::Object;
use inference_api::manifest;
use inference_api::object::ObjectKey;
use libfuzzer_sys::fuzz_target;
use pool_index::index::{Change, EndpointRecord, Index, Membership};
use prost::Message as _;
use scheduling::saturation::Thresholds;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

const MANIFEST: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p, annotations: {inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: own}
spec: {modelName: m, criticality: Critical, poolRef: {name: p}}
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: renamed}
spec: {modelName: alias, criticality: Critical, poolRef: {name: p}, targetModels: [{name: 'a \"target\"', weight: 1}]}
";
const MAX_BODY_BYTES: usize = 4096;
const PATHS: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models"];
const TYPES: [&str; 4] = ["application/json", "text/event-stream", "text/plain", ""];

static DIRECTOR: LazyLock<Director> = LazyLock::new(|| {
    let (mut index, reader) = Index::new();
    let mut changes = Vec::new();
    for object in manifest::parse(MANIFEST, "fuzz").expect("the manifest is valid") {
        match object {
            Object::InferencePool(pool) => changes.push(Change::ApplyPool(pool)),
            Object::InferenceModel(model) => changes.push(Change::ApplyModel(model)),
            other => panic!("a {}", other.kind()),
        }
    }
    for port in 1..4 {
        changes.push(Change::ApplyEndpoint(EndpointRecord {
            key: ObjectKey::new("default", format!("pod-{port}")),
            address: ([10, 0, 0, 1], port).into(),
            kv: Default::default(),
            membership: Membership::EveryPool,
            ready: true,
        }));
    }
    index.apply(changes);
    let options = Options {
        pool: None,
        policy: Patch::default(),
        max_metrics_age: Duration::from_secs(2),
        index_capacity: NonZeroU32::new(1000).expect("not zero"),
        kv_bounds: Default::default(),
        compat: Compat::None,
        explains: false,
        saturation: Thresholds::default(),
        endpoints_per_pick: NonZeroUsize::new(2).expect("not zero"),
        n_decisions: 10,
        seed: 0,
        peers: None,
    };
    let director = Director::new(options, Arc::new(Metrics::default()));
    director.apply(&reader.snapshot());
    director
});

fn now() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::now() }
}

/// Splits the input into values.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// Two bytes of length, then the bytes; all that is left if there are fewer.
    fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte().unwrap_or(0)) | usize::from(self.byte().unwrap_or(0)) << 8;
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    fn message(&mut self) -> Option<ProcessingRequest> {
        let what = self.byte()?;
        let end_of_stream = what & 0x80 != 0;
        let request = match what & 0x07 {
            0 => Request::RequestHeaders(self.request_headers(end_of_stream)?),
            1 | 2 => Request::RequestBody(self.body(end_of_stream)),
            3 => Request::RequestTrailers(HttpTrailers::default()),
            4 => Request::ResponseHeaders(self.response_headers(end_of_stream)?),
            5 => Request::ResponseBody(self.body(end_of_stream)),
            6 => Request::ResponseTrailers(HttpTrailers::default()),
            _ => return Some(ProcessingRequest::decode(self.bytes()).unwrap_or_default()),
        };
        Some(ProcessingRequest { request: Some(request), ..ProcessingRequest::default() })
    }

    fn body(&mut self, end_of_stream: bool) -> HttpBody {
        HttpBody { body: self.bytes().to_vec().into(), end_of_stream, ..HttpBody::default() }
    }

    fn request_headers(&mut self, end_of_stream: bool) -> Option<HttpHeaders> {
        let path = PATHS[usize::from(self.byte()?) % PATHS.len()];
        let id = self.bytes();
        let headers = vec![
            header(":method", b"POST"),
            header(":path", path.as_bytes()),
            header("x-request-id", id),
            header("x-warmpath-explain", b"1"),
        ];
        Some(HttpHeaders { headers: Some(HeaderMap { headers }), end_of_stream, ..HttpHeaders::default() })
    }

    fn response_headers(&mut self, end_of_stream: bool) -> Option<HttpHeaders> {
        let kind = TYPES[usize::from(self.byte()?) % TYPES.len()];
        let headers = vec![header(":status", b"200"), header("content-type", kind.as_bytes())];
        Some(HttpHeaders { headers: Some(HeaderMap { headers }), end_of_stream, ..HttpHeaders::default() })
    }
}

fn header(key: &str, value: &[u8]) -> HeaderValue {
    HeaderValue { key: key.to_owned(), raw_value: value.to_vec().into(), ..HeaderValue::default() }
}

/// State of the proxy, which decides the answers that the protocol allows next.
#[derive(Default)]
struct Proxy {
    n_picks: usize,
    refused: bool,
    ended: bool,
    sent: Vec<u8>,
    received: Vec<u8>,
}

impl Proxy {
    fn take(&mut self, answer: ProcessingResponse) {
        self.n_picks += usize::from(answer.dynamic_metadata.is_some());
        assert!(self.n_picks <= 1, "picked twice");
        match answer.response.expect("an answer is not empty") {
            Response::ImmediateResponse(_) => {
                assert!(!self.refused && self.n_picks == 0, "refused after a pick or a refusal");
                self.refused = true;
            }
            Response::RequestHeaders(_) => assert!(!self.refused && !self.ended),
            Response::RequestBody(body) => {
                assert!(!self.refused && self.n_picks == 1, "a chunk before the pick");
                let mutation = body.response.and_then(|common| common.body_mutation?.mutation);
                if let Some(Mutation::StreamedResponse(chunk)) = mutation {
                    assert!(!self.ended, "a chunk after the end");
                    assert!(chunk.body.len() <= MAX_CHUNK);
                    self.received.extend_from_slice(&chunk.body);
                    self.ended = chunk.end_of_stream;
                }
            }
            Response::RequestTrailers(_) => assert!(!self.refused),
            _ => {}
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let director = &*DIRECTOR;
    let mut input = Input(bytes);
    let Some(modes) = input.byte() else { return };
    let config = ProtocolConfiguration {
        request_body_mode: i32::from(modes & 0x07),
        response_body_mode: i32::from(modes >> 3 & 0x07),
        send_body_without_waiting_for_header_response: modes & 0x40 != 0,
    };
    let compat = if modes & 0x80 == 0 { Compat::None } else { Compat::GieV04 };
    let options = StreamOptions {
        max_body_bytes: MAX_BODY_BYTES,
        fresh_request_id: director.fresh_request_id(),
        pool: None,
        compat,
        explains: false,
    };
    let budget = Arc::new(Budget::new(2 * MAX_BODY_BYTES));
    let mut exchange: Exchange<InFlightRequest> = Exchange::new(options, budget.reserve());
    let mut proxy = Proxy::default();
    let mut protocol_config = Some(config);
    while let Some(mut message) = input.message() {
        if matches!(message.request, Some(Request::RequestHeaders(_))) {
            message.protocol_config = protocol_config.take();
        }
        if let Some(Request::RequestBody(body)) = &message.request {
            proxy.sent.extend_from_slice(&body.body);
        }
        let observes = message.observability_mode;
        let Ok(answers) = exchange.step(message, |request| director.decide(request, now())) else { break };
        assert!(!observes || answers.is_empty(), "an observer is not answered");
        answers.into_iter().for_each(|answer| proxy.take(answer));
    }
    if proxy.ended && exchange.may_end() && !bytes.windows(5).any(|five| five == b"alias") {
        // The proxy's own chunks after the end do not count.
        assert!(proxy.sent.starts_with(&proxy.received), "the body changed");
    }
    if let Some((mut in_flight, report)) = exchange.end() {
        in_flight.note_first_token();
        director.settle(in_flight, &report, now().instant);
    }
    for endpoint in director.status(now().instant).pools.iter().flat_map(|pool| &pool.endpoints) {
        assert_eq!((endpoint.in_flight, endpoint.uncached_bytes), (0, 0), "something stayed behind");
    }
});
