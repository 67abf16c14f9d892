//! Pickers of others behind a real Envoy: each gets bodies in the mode that it speaks, and one that is away costs no
//! request whose pool fails open.

#![expect(clippy::unwrap_used, reason = "a cluster that cannot be made fails its test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use envoy_proto::config::core::v3::{HeaderMap, HeaderValue, HeaderValueOption};
use envoy_proto::google::protobuf::value::Kind;
use envoy_proto::google::protobuf::{Struct, Value};
use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpHeaders,
    ProcessingRequest, ProcessingResponse, StreamedBodyResponse, TrailersResponse,
};
use http::{HeaderName, StatusCode};
use lab::cluster::picker_choice::PickerChoice;
use lab::cluster::{Cluster, Options};
use load::client::{Client, Reply};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Status, Streaming};

use crate::stubs::{HANG, Lab, free_port};

const FILE: &str = include_str!("../shapes/own-picker.yaml");
/// Header with the pod that the client wants, as in upstream's conformance suite.
const WANTED: HeaderName = HeaderName::from_static("test-epp-endpoint-selection");
/// Header of the response with the pod that served, as the proxy told the picker.
const SERVED: &str = "x-conformance-test-served-endpoint";
/// Longest part of a body in an answer.
const MAX_CHUNK: usize = 62_000;

/// The ways in which pickers of others take bodies.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// Upstream's own light picker: answers each part of a body, and the headers with the last one.
    Parts,
    /// Upstream's protocol: reads all, answers the headers, and streams the body back.
    FullDuplex,
}

/// Picker that sends a request where its client wants.
#[derive(Debug)]
struct Picker {
    way: Way,
    /// True if it fails when it has read a body.
    fails: Arc<AtomicBool>,
}

/// The state of one stream.
#[derive(Default)]
struct Exchange {
    wanted: String,
    body: Vec<u8>,
    answers_headers: bool,
}

type Answers = Vec<Response>;

fn headers_response(key: &str, value: &str) -> HeadersResponse {
    let header =
        HeaderValue { key: key.to_owned(), raw_value: value.to_owned().into(), ..HeaderValue::default() };
    let option = HeaderValueOption { header: Some(header), ..HeaderValueOption::default() };
    let mutation = HeaderMutation { set_headers: vec![option], ..HeaderMutation::default() };
    let response = CommonResponse {
        header_mutation: Some(mutation),
        clear_route_cache: true,
        ..CommonResponse::default()
    };
    HeadersResponse { response: Some(response) }
}

/// The parts of a body as they are streamed back.
fn streamed(body: &[u8], end_of_stream: bool) -> Vec<BodyResponse> {
    let n_chunks = body.len().div_ceil(MAX_CHUNK).max(1);
    let chunk = |idx: usize| {
        let bytes = body.chunks(MAX_CHUNK).nth(idx).unwrap_or_default().to_vec();
        let end_of_stream = end_of_stream && idx + 1 == n_chunks;
        let chunk = StreamedBodyResponse { body: bytes.into(), end_of_stream, ..Default::default() };
        let mutation = BodyMutation { mutation: Some(Mutation::StreamedResponse(chunk)) };
        let response = CommonResponse { body_mutation: Some(mutation), ..CommonResponse::default() };
        BodyResponse { response: Some(response) }
    };
    (0..n_chunks).map(chunk).collect()
}

fn unchanged() -> BodyResponse {
    BodyResponse { response: Some(CommonResponse::default()) }
}

fn value<'a>(headers: &'a HttpHeaders, name: &str) -> Option<&'a [u8]> {
    let HeaderMap { headers } = headers.headers.as_ref()?;
    headers.iter().find(|header| header.key == name).map(|header| header.raw_value.as_ref())
}

impl Exchange {
    fn answer(&mut self, way: Way, message: &ProcessingRequest) -> Answers {
        match message.request.as_ref().unwrap() {
            Request::RequestHeaders(headers) => {
                let wanted = value(headers, WANTED.as_str()).unwrap_or_default();
                self.wanted = String::from_utf8(wanted.to_vec()).unwrap();
                self.answers_headers = !headers.end_of_stream;
                if headers.end_of_stream { vec![self.pick()] } else { vec![] }
            }
            Request::RequestBody(part) => {
                self.body.extend_from_slice(&part.body);
                let mut answers = Vec::new();
                if part.end_of_stream && std::mem::take(&mut self.answers_headers) {
                    answers.push(self.pick());
                }
                match way {
                    Way::Parts => answers.push(Response::RequestBody(unchanged())),
                    Way::FullDuplex if part.end_of_stream => {
                        answers.extend(streamed(&self.body, true).into_iter().map(Response::RequestBody));
                    }
                    Way::FullDuplex => {}
                }
                answers
            }
            Request::ResponseHeaders(_) => {
                let served = served(message).unwrap_or("unknown");
                vec![Response::ResponseHeaders(headers_response(SERVED, served))]
            }
            Request::ResponseBody(part) => match way {
                Way::Parts => vec![Response::ResponseBody(unchanged())],
                Way::FullDuplex => {
                    streamed(&part.body, part.end_of_stream).into_iter().map(Response::ResponseBody).collect()
                }
            },
            Request::RequestTrailers(_) => vec![Response::RequestTrailers(TrailersResponse::default())],
            Request::ResponseTrailers(_) => vec![Response::ResponseTrailers(TrailersResponse::default())],
        }
    }

    fn pick(&self) -> Response {
        Response::RequestHeaders(headers_response("x-gateway-destination-endpoint", &self.wanted))
    }
}

/// The endpoint that served, by the metadata that the proxy forwards.
fn served(message: &ProcessingRequest) -> Option<&str> {
    let metadata = message.metadata_context.as_ref()?.filter_metadata.get("envoy.lb")?;
    match metadata.fields.get("x-gateway-destination-endpoint-served")?.kind.as_ref()? {
        Kind::StringValue(served) => Some(served),
        _ => None,
    }
}

/// The pick in the dynamic metadata.
fn metadata(wanted: &str) -> Struct {
    let text = Value { kind: Some(Kind::StringValue(wanted.to_owned())) };
    let fields = [("x-gateway-destination-endpoint".to_owned(), text)].into_iter().collect();
    let lb = Value { kind: Some(Kind::StructValue(Struct { fields })) };
    Struct { fields: [("envoy.lb".to_owned(), lb)].into_iter().collect() }
}

#[tonic::async_trait]
impl ExternalProcessor for Picker {
    type ProcessStream = ReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Self::ProcessStream>, Status> {
        let mut messages = request.into_inner();
        let (tx, rx) = mpsc::channel(64);
        let (way, fails) = (self.way, Arc::clone(&self.fails));
        #[expect(clippy::disallowed_methods, reason = "the stream ends with its request")]
        tokio::spawn(async move {
            let mut exchange = Exchange::default();
            while let Ok(Some(message)) = messages.message().await {
                let is_body = matches!(message.request, Some(Request::RequestBody(_)));
                if is_body && fails.load(Ordering::Relaxed) {
                    let _ = tx.send(Err(Status::unavailable("it dies"))).await;
                    return;
                }
                for response in exchange.answer(way, &message) {
                    let is_pick = matches!(response, Response::RequestHeaders(_));
                    let dynamic_metadata =
                        (is_pick && !exchange.wanted.is_empty()).then(|| metadata(&exchange.wanted));
                    let response = ProcessingResponse {
                        dynamic_metadata,
                        response: Some(response),
                        ..ProcessingResponse::default()
                    };
                    if tx.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(rx)))
    }
}

/// A cluster whose pool has a picker of others.
struct Strange {
    cluster: Cluster,
    url: String,
    pods: Vec<SocketAddr>,
    fails: Arc<AtomicBool>,
    port: u16,
    /// `None` after its end.
    picker: Option<Runtime>,
}

impl Strange {
    /// `mode` is the annotation of the pool.
    async fn start(lab: &Lab, name: &str, way: Way, (failure, mode): (&str, &str)) -> Self {
        let (port, started) = (free_port(), lab.dir.path().join(format!("{name}-started")));
        let command = format!("command: [sh, -c, 'touch {}; exec sleep 3600']", started.display());
        let pool = "kind: InferencePool\nmetadata: {name: llm}\nspec:\n  targetPorts";
        let annotation = format!("\"inference.networking.x-k8s.io/picker-body-mode\": {mode}");
        let annotated = pool.replace("{name: llm}", &format!("{{name: llm, annotations: {{{annotation}}}}}"));
        let text = FILE
            .replace("COMMAND", &command)
            .replace("port: 80}", &format!("port: {}}}", free_port()))
            .replace("9999", &port.to_string())
            .replacen(pool, &annotated, 1)
            .replacen(
                "port: {number: 9002}}",
                &format!("port: {{number: 9002}}, failureMode: {failure}}}"),
                1,
            );
        assert!(text.contains(mode) && text.contains(failure), "{text}");
        let file = lab.dir.path().join(format!("{name}.yaml"));
        std::fs::write(&file, text).unwrap();
        let fails = Arc::new(AtomicBool::new(false));
        let picker = Picker { way, fails: Arc::clone(&fails) };
        // Its end closes the picker's connections, too.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(serve(picker, port, started));
        let options = Options {
            time_scale: 1000.0,
            picker: PickerChoice::Theirs { program: None },
            ..Options::new(file, lab.dir.path().join(name))
        };
        let cluster = Cluster::start(options, lab.programs.clone(), lab.progress()).await.unwrap();
        let url = format!("http://{}", cluster.gateway("http").unwrap());
        let pods = cluster.status().pods.iter().map(|pod| pod.address).collect();
        Self { cluster, url, pods, fails, port, picker: Some(runtime) }
    }

    /// Posts a prompt of this many bytes, which is to go to `pod`.
    async fn post(&self, pod: SocketAddr, n_bytes: usize) -> Reply {
        let prompt = "word ".repeat(n_bytes / 5);
        let body = json!({ "model": "m", "prompt": prompt, "max_tokens": 1 }).to_string();
        let url = format!("{}/v1/completions", self.url);
        let wanted = pod.to_string();
        timeout(HANG, Client::default().post(&url, &[(WANTED, wanted.as_str())], body.into()))
            .await
            .unwrap()
            .unwrap()
    }

    async fn get(&self) -> Reply {
        timeout(HANG, Client::default().get(&format!("{}/v1/models", self.url))).await.unwrap().unwrap()
    }

    /// Ends the picker: its port is closed, and so are its connections.
    fn end_picker(&mut self) {
        self.picker.take().into_iter().for_each(Runtime::shutdown_background);
    }

    async fn stop(mut self) {
        self.end_picker();
        self.cluster.stop().await.unwrap();
    }
}

async fn serve(picker: Picker, port: u16, started: impl AsRef<Path>) {
    while !started.as_ref().exists() {
        sleep(Duration::from_millis(20)).await;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let service = ExternalProcessorServer::new(picker);
    let server = tonic::transport::Server::builder().add_service(service);
    server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
}

fn served_by(reply: &Reply) -> &str {
    reply.headers.get(SERVED).map_or("", |served| served.to_str().unwrap())
}

const MODES: [(Way, &str); 2] = [(Way::Parts, "streamed"), (Way::FullDuplex, "full-duplex-streamed")];

/// The controls are pickers that get bodies in the other mode.
#[tokio::test]
async fn each_picker_is_followed_in_the_mode_that_it_speaks() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    for (way, mode) in MODES {
        for failure in ["FailClose", "FailOpen"] {
            let strange = Strange::start(&lab, &format!("{mode}-{failure}"), way, (failure, mode)).await;
            for n_bytes in [50, 100_000] {
                for pod in &strange.pods {
                    let reply = strange.post(*pod, n_bytes).await;
                    let case =
                        format!("{way:?} {failure} {n_bytes}: {}", String::from_utf8_lossy(&reply.body));
                    assert_eq!(reply.status, StatusCode::OK, "{case}");
                    assert_eq!(served_by(&reply), pod.to_string(), "{case}");
                }
            }
            assert_eq!(strange.get().await.status, StatusCode::OK);
            strange.stop().await;
        }
    }
    for (way, mode) in [(Way::FullDuplex, "streamed"), (Way::Parts, "full-duplex-streamed")] {
        let strange = Strange::start(&lab, &format!("wrong-{mode}"), way, ("FailClose", mode)).await;
        let reply = strange.post(strange.pods[0], 50).await;
        assert_ne!(reply.status, StatusCode::OK, "{way:?} as {mode}");
        strange.stop().await;
    }
}

/// The control is a pool that fails closed.
#[tokio::test]
async fn a_picker_that_is_away_costs_no_request_of_a_pool_that_fails_open() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    for (way, mode) in MODES {
        for (failure, expected) in
            [("FailOpen", StatusCode::OK), ("FailClose", StatusCode::INTERNAL_SERVER_ERROR)]
        {
            let name = format!("away-{mode}-{failure}");
            let mut strange = Strange::start(&lab, &name, way, (failure, mode)).await;
            let pod = strange.pods[0];
            assert_eq!(strange.post(pod, 50).await.status, StatusCode::OK);
            strange.fails.store(true, Ordering::Relaxed);
            // Envoy keeps nothing of a body that it has sent in full duplex.
            let lost = StatusCode::INTERNAL_SERVER_ERROR;
            let in_its_hands = if way == Way::Parts { expected } else { lost };
            assert_eq!(strange.post(pod, 50).await.status, in_its_hands, "{name}: it dies with a request");
            strange.fails.store(false, Ordering::Relaxed);
            strange.end_picker();
            for n_bytes in [50, 100_000] {
                let reply = strange.post(pod, n_bytes).await;
                assert_eq!(
                    reply.status,
                    expected,
                    "{name} {n_bytes}: {}",
                    String::from_utf8_lossy(&reply.body)
                );
                assert_eq!(served_by(&reply), "", "nobody picked");
            }
            assert_eq!(strange.get().await.status, expected, "{name}");
            if failure == "FailOpen" {
                // A picker that hangs: its port takes connections, and nobody answers on them.
                let _hangs = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, strange.port)).unwrap();
                assert_eq!(strange.post(pod, 50).await.status, expected, "{name}: it hangs");
            }
            strange.stop().await;
        }
    }
}
