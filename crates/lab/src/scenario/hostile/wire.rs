//! Clients that no proper library would be: bodies in frames of a few bytes, and uploads that stop before their end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::stream;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::scenario::lab::CHAT;

/// Longest wait for the answer to a hostile request; an attack takes a second or two.
const PATIENCE: Duration = Duration::from_secs(30);

/// Posts `body` over a new HTTP/2 connection, in DATA frames of `frame_bytes` each, and returns the status.
///
/// # Errors
/// When the connection or the stream breaks, or no answer comes.
pub(super) async fn post_in_frames(
    address: SocketAddr,
    body: &Bytes,
    frame_bytes: usize,
) -> Result<StatusCode> {
    let exchange = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.context("speak HTTP/2")?;
        let pieces: Vec<Result<Frame<Bytes>, Infallible>> = (0..body.len())
            .step_by(frame_bytes)
            .map(|start| Ok(Frame::data(body.slice(start..body.len().min(start + frame_bytes)))))
            .collect();
        let request = Request::post(format!("http://{address}{CHAT}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(StreamBody::new(stream::iter(pieces)))?;
        let answer = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            response.into_body().collect().await.context("read the answer")?;
            anyhow::Ok(status)
        };
        tokio::select! {
            answer = answer => answer,
            ended = connection => Err(ended.err().map_or_else(|| anyhow::anyhow!("the connection has ended"), Into::into)),
        }
    };
    timeout(PATIENCE, exchange).await.context("no answer")?
}

/// An HTTP/1.1 upload that holds back its last bytes.
#[derive(Debug)]
pub(super) struct Upload {
    stream: TcpStream,
    rest: Bytes,
}

impl Upload {
    /// Sends the head, and `body` without its last `n_kept` bytes.
    pub(super) async fn begin(address: SocketAddr, body: &Bytes, n_kept: usize) -> Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        let n_bytes = body.len();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {n_bytes}\r\nconnection: close\r\n\r\n"
        );
        let (first, rest) = (body.slice(..n_bytes - n_kept), body.slice(n_bytes - n_kept..));
        // A refusal may come while the body is being written, so a failed write is not an error here.
        let written = async {
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&first).await
        };
        let _ = timeout(PATIENCE, written).await.context("the upload is not taken")?;
        Ok(Self { stream, rest })
    }

    /// Returns what was answered within `wait`: a refusal, or nothing yet.
    pub(super) async fn answer_within(&mut self, wait: Duration) -> String {
        let mut answer = vec![0; 4096];
        let read = timeout(wait, self.stream.read(&mut answer)).await;
        let n_read = read.map_or(0, |read| read.unwrap_or_default());
        String::from_utf8_lossy(&answer[..n_read]).into_owned()
    }

    /// Sends the bytes that were held back, and returns the whole answer.
    pub(super) async fn finish(mut self) -> Result<String> {
        let exchange = async {
            self.stream.write_all(&self.rest).await?;
            let mut answer = Vec::new();
            self.stream.read_to_end(&mut answer).await?;
            anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        timeout(PATIENCE, exchange).await.context("no answer")?
    }
}

/// Returns the status code of an HTTP/1.1 answer, 0 if there is none.
pub(super) fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
}
