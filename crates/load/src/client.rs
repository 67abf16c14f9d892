//! HTTP client for load: HTTP/1.1 with TCP_NODELAY, an arrival time for each server-sent event, and no retries.

use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tracing::debug;

use crate::chat::{ChatStream, read_chat};
use crate::clock::Stopwatch;
use crate::sse::{Frame, SseReader};

/// Longest wait for the next bytes of an answer. On a slow machine an answer as a whole may take longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest wait for the next bytes of an answer from an endpoint that others use too. OpenAI's SDK has the same default.
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
    /// Makes a client that waits up to ten minutes for the next bytes of an answer.
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
            while let Some(frame) = self.in_time(body.frame()).await? {
                let at = stopwatch.elapsed();
                let Ok(data) = frame.context("read the body")?.into_data() else { continue };
                match status.is_success() {
                    true => read(&data, at).map_err(|error| anyhow::anyhow!(error))?,
                    false => text.extend_from_slice(&data),
                }
            }
            anyhow::Ok((status, String::from_utf8_lossy(&text).trim().to_owned()))
        };
        exchange.await.with_context(|| format!("post {url}"))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply> {
        let stopwatch = Stopwatch::start();
        let response = self.request(request).await?;
        self.read(response, stopwatch).await
    }

    /// Waits for the next part of an answer.
    async fn in_time<T>(&self, part: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout(self.timeout, part).await.context("wait for the answer")
    }

    async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let (method, url) = (request.method().clone(), request.uri().clone());
        debug!(%method, %url, "Sending a request");
        let response = self.in_time(self.http.request(request)).await;
        let response = response.and_then(|response| response.map_err(anyhow::Error::from));
        match &response {
            Ok(response) => debug!(%method, %url, status = response.status().as_u16(), "An answer has begun"),
            Err(error) => debug!(%method, %url, error = format!("{error:#}"), "A request has failed"),
        }
        response
    }

    /// Reads the whole answer to a request that was sent when `stopwatch` was started.
    async fn read<B>(&self, response: Response<B>, stopwatch: Stopwatch) -> Result<Reply>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let (head, mut body) = response.into_parts();
        let is_stream = head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
        let mut reader = SseReader::default();
        let mut malformed = None;
        let mut plain = Vec::new();
        while let Some(frame) = self.in_time(body.frame()).await? {
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
    use std::convert::Infallible;
    use std::time::Duration;

    use bytes::Bytes;
    use futures::{StreamExt as _, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::{Client, REQUEST_TIMEOUT, Reply};
    use crate::clock::Stopwatch;

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

    /// Reads an answer whose ten parts come this long after one another.
    async fn read(gap: Duration) -> anyhow::Result<Reply> {
        let parts = stream::iter(0..10).then(move |number| async move {
            tokio::time::sleep(gap).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{number}"))))
        });
        let response = http::Response::new(StreamBody::new(Box::pin(parts)));
        Client::default().read(response, Stopwatch::start()).await
    }

    /// A slow machine is waited for as long as something comes, and one that hangs is not.
    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_long_but_not_pause_for_long() {
        let slow = read(REQUEST_TIMEOUT - Duration::from_secs(1)).await.unwrap();
        assert_eq!(slow.text(), "0123456789");
        let hung = read(REQUEST_TIMEOUT + Duration::from_secs(1)).await.unwrap_err();
        assert!(format!("{hung:#}").contains("wait for the answer"), "{hung:#}");
    }
}
