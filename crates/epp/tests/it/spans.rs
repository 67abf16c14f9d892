//! Spans over OTLP, as a collector receives them.

use std::net::SocketAddr;
use std::sync::Arc;

use epp::spans::Otlp;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::fixtures::{Picker, Scenario, post, until};

/// A sampled parent: `00-<trace>-<parent>-01`.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
const CHAT: &str = r#"{"model":"/model/qwen","messages":[{"role":"user","content":"hello"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}"#;

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        self.0.lock().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn start(&self) -> (SocketAddr, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = TraceServiceServer::new(self.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpIncoming::from(listener))
                .await
                .unwrap();
        });
        (address, tasks)
    }

    fn named(&self, name: &str) -> Vec<Span> {
        self.0.lock().iter().filter(|span| span.name == name).cloned().collect()
    }
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.clone()?.value
}

fn text(value: &str) -> Option<Value> {
    Some(Value::StringValue(value.to_owned()))
}

async fn start(otlp: Option<Otlp>) -> Picker {
    Scenario::new(2).otlp(otlp).start().await
}

async fn ask(picker: &Picker, body: &str, traceparent: Option<&str>) {
    let mut call = picker.proxy().await.open().await;
    let mut headers = post("/v1/chat/completions").to_vec();
    headers.extend(traceparent.map(|parent| ("traceparent", parent)));
    call.send_headers(None, &headers, None, false).await;
    call.send_body(body.as_bytes(), true).await;
    if call.full_duplex_answer().await.refused.is_none() {
        let json = [(":status", "200"), ("content-type", "application/json")];
        call.respond(&json, &[USAGE.as_bytes()]).await;
    }
}

/// Ends the picker, which first sends its remaining spans.
async fn end(mut picker: Picker) {
    picker.shutdown.drain.cancel();
    picker.server.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_request_is_a_span_with_its_decision_below_the_proxys() {
    let collector = Collector::default();
    let (address, _tasks) = collector.start().await;
    let picker = start(Some(Otlp { endpoint: format!("http://{address}"), sample_ratio: 0.0 })).await;
    ask(&picker, CHAT, Some(PARENT)).await;
    // The proxy decided against the first, and there is no decision about the second: neither is sampled.
    ask(&picker, CHAT, Some(UNSAMPLED)).await;
    ask(&picker, CHAT, None).await;
    ask(&picker, &CHAT.replace("/model/qwen", "unknown"), Some(PARENT)).await;
    until(async || picker.decisions(0).await.len() == 4).await;
    let picked = picker.decisions(0).await[0].clone();
    end(picker).await;
    until(async || collector.named("gateway.request").len() == 2).await;
    let [request, refused] = &collector.named("gateway.request")[..] else { panic!("two are sampled") };
    let [decision, refusal] = &collector.named("gateway.request_orchestration")[..] else { panic!("two") };
    assert_eq!(request.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!(request.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!(decision.parent_span_id, request.span_id);
    assert!(decision.start_time_unix_nano >= request.start_time_unix_nano);
    assert!(decision.end_time_unix_nano <= request.end_time_unix_nano);
    assert_eq!(attribute(request, "gen_ai.request.model"), text("/model/qwen"));
    for (key, tokens) in [
        ("http.response.status_code", 200),
        ("gen_ai.usage.input_tokens", 7),
        ("gen_ai.usage.output_tokens", 3),
        ("gen_ai.usage.cache_read.input_tokens", 2),
    ] {
        assert_eq!(attribute(request, key), Some(Value::IntValue(tokens)), "{key}");
    }
    assert_eq!(attribute(decision, "warmpath.pod"), text(picked["pod"].as_str().unwrap()));
    assert_eq!(attribute(decision, "warmpath.reason"), text("load"));
    assert_eq!(attribute(decision, "warmpath.candidates"), Some(Value::IntValue(2)));
    assert_eq!(attribute(refusal, "warmpath.outcome"), text("model_not_found"));
    assert_eq!(attribute(refused, "error.type"), text("model_not_found"));
    assert_eq!(refused.status.as_ref().unwrap().message, "model_not_found");
}

#[tokio::test]
async fn without_an_endpoint_nothing_is_sent_and_one_that_is_down_harms_nobody() {
    let picker = start(None).await;
    ask(&picker, CHAT, Some(PARENT)).await;
    end(picker).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let picker = start(Some(Otlp { endpoint: format!("http://{free}"), sample_ratio: 1.0 })).await;
    ask(&picker, CHAT, None).await;
    until(async || picker.decisions(0).await[0]["response"]["complete"] == true).await;
    end(picker).await;
}
