//! A pod on a port of its own, and a client for it.

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use mock_vllm::http::Pod;
use mock_vllm::kv_events::publisher::KvEventMonitor;
use mock_vllm::server::BuiltPod;
use mock_vllm::{cli, server};
use serde_json::Value;
use socket2::SockRef;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

pub(crate) const MODEL: &str = "/model/qwen";
/// Command line of the tutorial.
pub(crate) const TUTORIAL_FLAGS: &str = "--served-model-name /model/qwen --max-model-len 8192 \
    --gpu-memory-utilization 0.95 --enforce-eager --enable-prefix-caching";

/// A pod that stops when this is dropped.
pub(crate) struct TestPod {
    pub(crate) pod: Arc<Pod>,
    pub(crate) address: SocketAddr,
    /// Address and counters of its KV events, if they are on.
    pub(crate) kv_events: Option<(SocketAddr, KvEventMonitor)>,
    client: Client<HttpConnector, Full<Bytes>>,
    _stop: oneshot::Sender<()>,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

/// Starts a pod with the tutorial's flags and `flags`, without jitter, a thousand times faster unless `flags` say
/// otherwise.
pub(crate) async fn start(flags: &str) -> TestPod {
    let line = format!(
        "mock-vllm serve Qwen/Qwen2.5-7B-Instruct {TUTORIAL_FLAGS} --jitter 0 --time-scale 1000 {flags}"
    );
    let settings = cli::pod_settings(line.split_whitespace().map(Into::into)).expect("the flags are valid");
    let BuiltPod { pod, kv_events } = server::build(settings).expect("the pod starts");
    let kv_events = match kv_events {
        Some(service) => Some(service.bind().await.expect("the endpoints are free")),
        None => None,
    };
    let kv_events_seen = kv_events.as_ref().and_then(|bound| Some((bound.local_addr()?, bound.monitor())));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("the listener has an address");
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        let _sender_dropped = stopped.await;
    };
    let serving = server::run(listener, pod.clone(), kv_events, shutdown, Duration::ZERO);
    #[expect(clippy::disallowed_methods, reason = "the runtime of a test outlives nothing")]
    tokio::spawn(serving);
    TestPod {
        pod,
        address,
        kv_events: kv_events_seen,
        client: Client::builder(TokioExecutor::new()).build_http(),
        _stop: stop,
    }
}

/// Takes what has arrived according to the kernel. (`try_read` knows only what tokio's reactor has seen of a socket,
/// which is nothing until it has run.)
///
/// # Errors
/// Returns `WouldBlock` if nothing has arrived.
pub(crate) fn take_arrived(socket: &TcpStream) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let n_read = (&*SockRef::from(socket)).read(&mut buffer)?;
    buffer.truncate(n_read);
    Ok(buffer)
}

/// Returns whether the connection is open and nothing has arrived.
pub(crate) fn is_silent(socket: &TcpStream) -> bool {
    take_arrived(socket).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

// === impl TestPod ===

impl TestPod {
    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], Bytes::new()).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let (parts, body) = self.exchange(method, path, headers, body.into()).await;
        let body = String::from_utf8(body.to_vec()).expect("the body is text");
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// Returns the body of an answer that may be no text.
    pub(crate) async fn fetch_bytes(&self, path: &str, headers: &[(&str, &str)]) -> Bytes {
        self.exchange(Method::GET, path, headers, Bytes::new()).await.1
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> (Parts, Bytes) {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).expect("the request is valid");
        let response = self.client.request(request).await.expect("the pod answers");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("the body is complete").to_bytes();
        (parts, body)
    }

    /// Returns the value of a metric that has no labels beside the pod's own.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let series = format!("{name}{{engine=\"0\",model_name=\"{MODEL}\"}} ");
        let text = self.get("/metrics").await.body;
        let value = text.lines().find_map(|line| line.strip_prefix(&series)).expect("the metric exists");
        value.parse().expect("the value is a number")
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Returns the frames of a stream, without `data: ` and the blank lines, which are checked.
    pub(crate) fn frames(&self) -> Vec<&str> {
        let body = self.body.strip_suffix("\n\n").expect("the stream ends with a blank line");
        body.split("\n\n").map(|frame| frame.strip_prefix("data: ").expect("frames are data")).collect()
    }

    /// Returns the events of a stream, whose type is beside the data and in it.
    pub(crate) fn events(&self) -> Vec<Value> {
        let body = self.body.strip_suffix("\n\n").expect("the stream ends with a blank line");
        let events = body.split("\n\n").map(|event| {
            let event = event.strip_prefix("event: ").expect("the event has a type");
            let (kind, data) = event.split_once("\ndata: ").expect("the event has data");
            let data: Value = serde_json::from_str(data).expect("the data is JSON");
            assert_eq!(data["type"], kind);
            data
        });
        events.collect()
    }

    /// Joins the text of the stream.
    pub(crate) fn text(&self) -> String {
        let frames = self.frames().into_iter().filter(|frame| *frame != "[DONE]");
        let choices = frames.map(|frame| {
            let frame: Value = serde_json::from_str(frame).expect("frames are JSON");
            let choice = &frame["choices"][0];
            let text = choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str());
            text.unwrap_or_default().to_owned()
        });
        choices.collect()
    }

    /// Returns `usage` of the stream's last frame before `[DONE]`.
    pub(crate) fn stream_usage(&self) -> Value {
        let frames = self.frames();
        assert_eq!(frames.last(), Some(&"[DONE]"));
        let frame: Value = serde_json::from_str(frames[frames.len() - 2]).expect("frames are JSON");
        frame["usage"].clone()
    }
}

/// Returns the digest of the last prompt in a request log, and its endpoint.
pub(crate) fn last_prompt(log: &Path) -> (String, String) {
    let text = std::fs::read_to_string(log).expect("the log is readable");
    let line = text.lines().last().expect("there was a request");
    let line: Value = serde_json::from_str(line).expect("lines are JSON");
    let field = |name: &str| line[name].as_str().expect("the prompt was known").to_owned();
    (field("prompt_sha256"), field("endpoint"))
}
