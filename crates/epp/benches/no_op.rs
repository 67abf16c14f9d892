//! An ext_proc server that decides nothing: it sends the messages that the picker sends, on the same stack and with one
//! thread for a connection. What it costs is the cost of the protocol.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;

use envoy_proto::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_proto::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_proto::service::ext_proc::v3::processing_request::Request as Asked;
use envoy_proto::service::ext_proc::v3::processing_response::Response as Answer;
use envoy_proto::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeadersResponse, HttpBody, ProcessingRequest,
    ProcessingResponse, StreamedBodyResponse,
};
use futures::Stream;
use futures::stream::unfold;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// Limits like those of the picker's port.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
const MAX_CONCURRENT_STREAMS: u32 = 40_000;

/// Reads an access log, and forgets it.
struct NoLog;

struct NoOp {
    /// The picker's answer to the headers of a request.
    pick: ProcessingResponse,
}

struct Conversation {
    inbound: Streaming<ProcessingRequest>,
    outbox: VecDeque<ProcessingResponse>,
    /// The answer to the headers, until the body is complete.
    pick: Option<ProcessingResponse>,
    held: Vec<HttpBody>,
}

#[tonic::async_trait]
impl AccessLogService for NoLog {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        while messages.message().await?.is_some() {}
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

#[tonic::async_trait]
impl ExternalProcessor for NoOp {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let (inbound, pick) = (request.into_inner(), Some(self.pick.clone()));
        let conversation = Conversation { inbound, outbox: VecDeque::new(), pick, held: Vec::new() };
        let answers = unfold(conversation, |mut conversation| async {
            let answer = conversation.next().await.transpose()?;
            Some((answer, conversation))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Conversation {
    async fn next(&mut self) -> Result<Option<ProcessingResponse>, Status> {
        while self.outbox.is_empty() {
            let Some(ProcessingRequest { request: Some(request), .. }) = self.inbound.message().await? else {
                return Ok(None);
            };
            self.take(request);
        }
        Ok(self.outbox.pop_front())
    }

    fn take(&mut self, request: Asked) {
        match request {
            Asked::RequestBody(body) => {
                let is_last = body.end_of_stream;
                self.held.push(body);
                if is_last {
                    self.outbox.extend(self.pick.take());
                    self.outbox
                        .extend(self.held.drain(..).map(|body| answer(Answer::RequestBody(same(body)))));
                }
            }
            Asked::ResponseHeaders(_) => {
                self.outbox.push_back(answer(Answer::ResponseHeaders(HeadersResponse::default())));
            }
            Asked::ResponseBody(body) => self.outbox.push_back(answer(Answer::ResponseBody(same(body)))),
            Asked::RequestHeaders(_) | Asked::RequestTrailers(_) | Asked::ResponseTrailers(_) => {}
        }
    }
}

fn answer(response: Answer) -> ProcessingResponse {
    ProcessingResponse { response: Some(response), ..ProcessingResponse::default() }
}

/// Lets a chunk pass.
fn same(HttpBody { body, end_of_stream, .. }: HttpBody) -> BodyResponse {
    let chunk = StreamedBodyResponse { body, end_of_stream, ..StreamedBodyResponse::default() };
    let body_mutation = Some(BodyMutation { mutation: Some(Mutation::StreamedResponse(chunk)) });
    BodyResponse { response: Some(CommonResponse { body_mutation, ..CommonResponse::default() }) }
}

/// Serves with the pick in the file `pick`, and writes its ports like the picker.
pub(crate) fn serve(pick: &Path, ports: &Path) {
    let bytes = std::fs::read(pick).expect("the pick is recorded");
    let pick = ProcessingResponse::decode(bytes.as_slice()).expect("an answer");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        write_ports(ports, listener.local_addr().expect("it is bound"));
        tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
            .add_service(ExternalProcessorServer::new(NoOp { pick }))
            .add_service(AccessLogServiceServer::new(NoLog))
            .serve_with_incoming(TcpListenerStream::new(listener))
            .await
            .expect("it serves");
    });
}

/// Writes the file whole, because another process waits for it.
fn write_ports(path: &Path, grpc: SocketAddr) {
    let parts = path.with_extension("part");
    std::fs::write(&parts, serde_json::json!({"grpc": grpc.to_string()}).to_string()).expect("a file");
    std::fs::rename(&parts, path).expect("a file");
}
