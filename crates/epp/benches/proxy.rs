//! A proxy that sends requests like Envoy in FULL_DUPLEX_STREAMED, each with a short response, which goes through the
//! picker or past it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use envoy_proto::config::core::v3::{HeaderMap, HeaderValue, Metadata};
use envoy_proto::data::accesslog::v3::{AccessLogCommon, HttpAccessLogEntry, HttpResponseProperties};
use envoy_proto::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_proto::google::protobuf::value::Kind;
use envoy_proto::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_proto::service::accesslog::v3::access_log_service_client::AccessLogServiceClient;
use envoy_proto::service::accesslog::v3::stream_access_logs_message::{HttpAccessLogEntries, LogEntries};
use envoy_proto::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{
    HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
};
use inference_api::keys;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::Streaming;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

/// Bytes that Envoy sends at once of a body that it has completely.
const CHUNK: usize = 16 << 10;
const RESPONSE: [(&str, &str); 2] =
    [(":status", "200"), ("content-type", "text/event-stream; charset=utf-8")];
const ANSWER: &[u8] = br#"data: {"choices":[],"usage":{"prompt_tokens":500,"completion_tokens":3}}"#;

/// The way of responses, as the filters of a pool set it up.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// Through the picker, on the request's stream.
    Through,
    /// Past the picker, as those of nine in ten go. The access log tells its end.
    Past,
}

#[derive(Clone)]
pub(crate) struct Proxy {
    client: ExternalProcessorClient<Channel>,
    way: Way,
    log: mpsc::Sender<StreamAccessLogsMessage>,
}

/// A request that has its pick, and its open stream.
struct Asked {
    requests: mpsc::Sender<ProcessingRequest>,
    answers: Streaming<ProcessingResponse>,
    pick: ProcessingResponse,
    /// Time from the end of the request's body to the pick.
    latency: Duration,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Through => "through the picker",
            Self::Past => "past it",
        }
    }
}

impl Proxy {
    pub(crate) async fn connect(address: SocketAddr, way: Way) -> Self {
        let endpoint = Endpoint::new(format!("http://{address}")).expect("an address");
        let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(16 << 20);
        let channel = endpoint.connect().await.expect("the picker listens");
        let (log, messages) = mpsc::channel(64);
        let mut logs = AccessLogServiceClient::new(channel.clone());
        TaskTracker::new().spawn(async move { logs.stream_access_logs(ReceiverStream::new(messages)).await });
        Self { client: ExternalProcessorClient::new(channel), way, log }
    }

    /// Runs one request and its response. Returns the time from the end of the request's body to the pick.
    pub(crate) async fn exchange(&self, body: &Bytes) -> Duration {
        let Asked { requests, mut answers, pick, latency } = self.ask(body).await;
        assert!(matches!(pick.response, Some(Response::RequestHeaders(_))), "picked");
        let mut n_bytes = 0;
        loop {
            let Response::RequestBody(answer) = next(&mut answers).await else { panic!("a chunk") };
            let (len, is_last) = streamed(answer);
            n_bytes += len;
            if is_last {
                break;
            }
        }
        assert_eq!(n_bytes, body.len());
        match self.way {
            Way::Through => {
                send(&requests, Request::ResponseHeaders(headers(&RESPONSE)), None).await;
                assert!(matches!(next(&mut answers).await, Response::ResponseHeaders(_)));
                send(&requests, Request::ResponseBody(chunk(Bytes::from_static(ANSWER), true)), None).await;
                assert!(matches!(next(&mut answers).await, Response::ResponseBody(_)));
            }
            Way::Past => {
                drop(requests);
                assert!(answers.message().await.expect("the stream ends well").is_none());
                self.tell_end(pick).await;
            }
        }
        latency
    }

    /// Tells the picker that a request has ended.
    async fn tell_end(&self, pick: ProcessingResponse) {
        let lb = pick.dynamic_metadata.and_then(|mut metadata| metadata.fields.remove(keys::LB_METADATA));
        let Some(Kind::StructValue(lb)) = lb.and_then(|value| value.kind) else { panic!("a pick") };
        let filter_metadata = [(keys::LB_METADATA.to_owned(), lb)].into();
        let metadata = Some(Metadata { filter_metadata, ..Metadata::default() });
        let common_properties = Some(AccessLogCommon { metadata, ..AccessLogCommon::default() });
        let response = HttpResponseProperties { response_code: Some(200), response_body_bytes: 700 };
        let entry = HttpAccessLogEntry { common_properties, request: None, response: Some(response) };
        let log_entries = Some(LogEntries::HttpLogs(HttpAccessLogEntries { log_entry: vec![entry] }));
        self.log.send(StreamAccessLogsMessage { log_entries }).await.expect("the log is open");
    }

    /// Returns the answer to a request's headers.
    pub(crate) async fn pick(&self, body: &Bytes) -> ProcessingResponse {
        self.ask(body).await.pick
    }

    /// Sends one request, and waits for the pick.
    async fn ask(&self, body: &Bytes) -> Asked {
        let (requests, rx) = mpsc::channel(64);
        let mut stream = tonic::Request::new(ReceiverStream::new(rx));
        if let Way::Past = self.way {
            stream.metadata_mut().insert(keys::RESPONSES, MetadataValue::from_static(keys::OBSERVED));
        }
        let answers = self.client.clone().process(stream).await.expect("a stream");
        let mut answers = answers.into_inner();
        let request = [
            (":method", "POST"),
            (":path", "/v1/chat/completions"),
            (":authority", "localhost:8081"),
            (":scheme", "http"),
            ("user-agent", "bench/1.0"),
            ("content-type", "application/json"),
            ("x-forwarded-proto", "http"),
            ("x-request-id", "8d0a25f9-5f53-4a2c-9a31-2bd0f0ec8b3f"),
        ];
        send(&requests, Request::RequestHeaders(headers(&request)), Some(modes())).await;
        let mut rest = body.clone();
        while rest.len() > CHUNK {
            send(&requests, Request::RequestBody(chunk(rest.split_to(CHUNK), false)), None).await;
        }
        let start = Instant::now();
        send(&requests, Request::RequestBody(chunk(rest, true)), None).await;
        let pick = answers.message().await.expect("the stream lives").expect("an answer");
        Asked { requests, answers, pick, latency: start.elapsed() }
    }
}

async fn send(
    requests: &mpsc::Sender<ProcessingRequest>,
    request: Request,
    protocol_config: Option<ProtocolConfiguration>,
) {
    let message =
        ProcessingRequest { request: Some(request), protocol_config, ..ProcessingRequest::default() };
    requests.send(message).await.expect("the picker reads");
}

fn modes() -> ProtocolConfiguration {
    ProtocolConfiguration {
        request_body_mode: BodySendMode::FullDuplexStreamed.into(),
        response_body_mode: BodySendMode::FullDuplexStreamed.into(),
        send_body_without_waiting_for_header_response: false,
    }
}

fn headers(headers: &[(&str, &'static str)]) -> HttpHeaders {
    let header = |(key, value): &(&str, &'static str)| HeaderValue {
        key: (*key).to_owned(),
        value: String::new(),
        raw_value: Bytes::from_static(value.as_bytes()),
    };
    let headers = Some(HeaderMap { headers: headers.iter().map(header).collect() });
    HttpHeaders { headers, ..HttpHeaders::default() }
}

fn chunk(body: Bytes, end_of_stream: bool) -> HttpBody {
    HttpBody { body, end_of_stream, ..HttpBody::default() }
}

/// Length of a chunk, and true if it is the last.
fn streamed(answer: envoy_proto::service::ext_proc::v3::BodyResponse) -> (usize, bool) {
    use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
    match answer.response.and_then(|common| common.body_mutation?.mutation) {
        Some(Mutation::StreamedResponse(chunk)) => (chunk.body.len(), chunk.end_of_stream),
        other => panic!("not a chunk: {other:?}"),
    }
}

async fn next(answers: &mut Streaming<ProcessingResponse>) -> Response {
    let answer = answers.message().await.expect("the stream lives").expect("an answer");
    answer.response.expect("an answer is not empty")
}
