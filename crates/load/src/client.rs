//! HTTP client for load: HTTP/1.1 with TCP_NODELAY, an arrival time for each server-sent event, and no retries.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tracing::debug;

use crate::chat::{ChatStream, read_chat};
use crate::clock::Stopwatch;
use crate::sse::{Frame, SseReader};

/// Longest time that an answer may take. Every step of the tutorial is shorter, also in virtual time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest time that an answer may take from an endpoint that others use too. OpenAI's SDK has the same default.
const PATIENCE: Duration = Duration::from_secs(600);

/// Sends requests and keeps their timing.
#[derive(Debug, Clone)]
pub struct Client {
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    timeout: Duration,
}

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// Body of an answer that is not an event stream; empty otherwise.
    pub body: Bytes,
    /// Frames of an event stream, or why the stream is malformed; `None` for another content type.
    pub frames: Option<Result<Vec<Frame>, String>>,
    /// Time from sending the request to the last byte of the answer.
    pub elapsed: Duration,
}

impl Default for Client {
    fn default() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        connector.enforce_http(false);
        let roots = rustls_native_certs::load_native_certs();
        let mut trusted = rustls::RootCertStore::empty();
        // If there are no certificates, plain HTTP still works, and TLS endpoints are refused with the reason.
        trusted.add_parsable_certificates(roots.certs);
        let tls = rustls::ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = HyperClient::builder(TokioExecutor::new()).retry_canceled_requests(false).build(connector);
        Self { http, timeout: REQUEST_TIMEOUT }
    }
}

impl Client {
    /// Makes a client that waits up to ten minutes for an answer.
    pub fn patient() -> Self {
        Self { timeout: PATIENCE, ..Self::default() }
    }

    pub async fn get(&self, url: &str) -> Result<Reply> {
        let request = Request::builder().method(Method::GET).uri(url).body(Full::default())?;
        self.send(request).await.with_context(|| format!("get {url}"))
    }

    /// Posts JSON with `headers` in addition to the content type.
    pub async fn post(&self, url: &str, headers: &[(HeaderName, &str)], body: Bytes) -> Result<Reply> {
        let mut request =
            Request::builder().method(Method::POST).uri(url).header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(body))?;
        self.send(request).await.with_context(|| format!("post {url}"))
    }

    /// Posts JSON and passes the bytes of a successful answer to `read` as they arrive, each time with the time since
    /// the request was sent. Returns the status, and the body if the answer is an error.
    pub async fn post_and_read(
        &self,
        url: &str,
        headers: &[(HeaderName, &str)],
        body: Bytes,
        mut read: impl FnMut(&[u8], Duration) -> Result<(), String>,
    ) -> Result<(StatusCode, String)> {
        let mut request =
            Request::builder().method(Method::POST).uri(url).header(header::CONTENT_TYPE, "application/json");
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let request = request.body(Full::new(body))?;
        let exchange = async {
            let stopwatch = Stopwatch::start();
            let response = self.request(request).await?;
            let status = response.status();
            let mut body = response.into_body();
            let mut text = Vec::new();
            while let Some(frame) = body.frame().await {
                let at = stopwatch.elapsed();
                let Ok(data) = frame.context("read the body")?.into_data() else { continue };
                match status.is_success() {
                    true => read(&data, at).map_err(|error| anyhow::anyhow!(error))?,
                    false => text.extend_from_slice(&data),
                }
            }
            Ok((status, String::from_utf8_lossy(&text).trim().to_owned()))
        };
        let answered = tokio::time::timeout(self.timeout, exchange).await.context("wait for the answer");
        answered.and_then(|answered| answered).with_context(|| format!("post {url}"))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply> {
        tokio::time::timeout(self.timeout, self.exchange(request)).await.context("wait for the answer")?
    }

    async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let (method, url) = (request.method().clone(), request.uri().clone());
        debug!(%method, %url, "Sending a request");
        let response = self.http.request(request).await.map_err(anyhow::Error::from);
        match &response {
            Ok(response) => debug!(%method, %url, status = response.status().as_u16(), "An answer has begun"),
            Err(error) => debug!(%method, %url, error = format!("{error:#}"), "A request has failed"),
        }
        response
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Reply> {
        let stopwatch = Stopwatch::start();
        let response = self.request(request).await?;
        let (head, mut body) = response.into_parts();
        let is_stream = head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        let mut reader = SseReader::default();
        let mut malformed = None;
        let mut plain = Vec::new();
        while let Some(frame) = body.frame().await {
            let at = stopwatch.elapsed();
            let Ok(data) = frame.context("read the body")?.into_data() else { continue };
            if !is_stream {
                plain.extend_from_slice(&data);
            } else if let Err(error) = reader.push(&data, at) {
                malformed.get_or_insert(error.to_string());
            }
        }
        let frames = is_stream.then(|| match malformed {
            Some(error) => Err(error),
            None => reader.finish().map_err(|error| error.to_string()),
        });
        let elapsed = stopwatch.elapsed();
        Ok(Reply { status: head.status, headers: head.headers, body: plain.into(), frames, elapsed })
    }
}

impl Reply {
    /// The answer as a well-formed chat stream, or the reason why it is not one.
    pub fn chat(&self) -> Result<ChatStream, String> {
        match &self.frames {
            Some(Ok(frames)) => read_chat(frames).map_err(|error| error.to_string()),
            Some(Err(error)) => Err(error.clone()),
            None if self.body.is_empty() => Err("no event stream, an empty body".to_owned()),
            None => Err(format!("no event stream: {}", self.text())),
        }
    }

    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::Client;

    async fn serve_once(answer: &'static str) -> (String, impl Future<Output = Vec<u8>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let serve = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            request.truncate(n);
            request
        };
        (url, serve)
    }

    #[tokio::test]
    async fn an_event_stream_is_split_and_a_plain_body_kept() {
        let (url, serve) = serve_once(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\ndata: a\n\n",
        )
        .await;
        let client = Client::default();
        let (reply, _) = tokio::join!(client.get(&url), serve);
        let frames = reply.unwrap().frames.unwrap().unwrap();
        assert_eq!(frames.iter().map(|frame| frame.data.as_str()).collect::<Vec<_>>(), ["a"]);

        let (url, serve) = serve_once("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno").await;
        let (reply, request) =
            tokio::join!(client.post(&url, &[(http::header::ACCEPT, "x/y")], "{}".into()), serve);
        let reply = reply.unwrap();
        assert_eq!((reply.status.as_u16(), reply.text().as_str()), (404, "no"));
        assert!(reply.chat().unwrap_err().contains("no event stream"));
        let request = String::from_utf8(request).unwrap();
        assert!(request.contains("content-type: application/json") && request.contains("accept: x/y"));
    }

    #[tokio::test]
    async fn a_truncated_stream_is_an_error_of_the_stream() {
        let (url, serve) = serve_once(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: a",
        )
        .await;
        let client = Client::default();
        let (reply, _) = tokio::join!(client.get(&url), serve);
        assert!(reply.unwrap().frames.unwrap().unwrap_err().contains("ends inside a frame"));
    }
}
