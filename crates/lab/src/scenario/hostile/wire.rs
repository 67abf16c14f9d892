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
use tracing::debug;

use crate::scenario::lab::CHAT;

/// Posts `body` over a new HTTP/2 connection, in DATA frames of `frame_bytes` each, and returns the status.
///
/// # Errors
/// When the connection or the stream breaks.
pub(super) async fn post_in_frames(
    address: SocketAddr,
    body: &Bytes,
    frame_bytes: usize,
) -> Result<StatusCode> {
    debug!(%address, n_bytes = body.len(), frame_bytes, "Sending a request in frames");
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
    exchange.await
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
        debug!(%address, n_bytes, n_kept, "Beginning an upload");
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
        let _ = written.await;
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
        self.stream.write_all(&self.rest).await?;
        let mut answer = Vec::new();
        self.stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Returns the status code of an HTTP/1.1 answer, 0 if there is none.
pub(super) fn status_of(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default()
}

/// A kind of frame by the ten thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flood {
    Ping,
    Settings,
    Continuation,
    EmptyData,
    RstStream,
}

impl Flood {
    pub(super) const ALL: [Self; 5] =
        [Self::Ping, Self::Settings, Self::Continuation, Self::EmptyData, Self::RstStream];

    /// The frames before the flood: a stream, or a header block without its end.
    fn opening(self, headers: &[u8]) -> Vec<u8> {
        match self {
            Self::Ping | Self::Settings | Self::RstStream => Vec::new(),
            Self::Continuation => frame(HEADERS, 0, 1, headers),
            Self::EmptyData => frame(HEADERS, END_HEADERS, 1, headers),
        }
    }

    /// Frame number `idx` of the flood.
    fn frame(self, idx: u32, headers: &[u8]) -> Vec<u8> {
        match self {
            Self::Ping => frame(6, 0, 0, &u64::from(idx).to_be_bytes()),
            Self::Settings => frame(SETTINGS, 0, 0, b""),
            Self::Continuation => frame(9, 0, 1, b""),
            Self::EmptyData => frame(0, 0, 1, b""),
            Self::RstStream => {
                let stream = 2 * idx + 1;
                let reset = frame(3, 0, stream, &CANCEL.to_be_bytes());
                [frame(HEADERS, END_HEADERS, stream, headers), reset].concat()
            }
        }
    }
}

/// HTTP/2's numbers of frames, flags and errors.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let n_bytes = u32::try_from(payload.len()).expect("frames are short").to_be_bytes();
    let head = [&n_bytes[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// The header block of a chat request. Each field is a literal with a new name, without Huffman coding.
fn header_block(address: SocketAddr) -> Vec<u8> {
    let authority = address.to_string();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", CHAT),
        (":authority", &authority),
        ("content-type", "application/json"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("names and values are short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Sends `n_frames` frames of a flood over a new connection, and then reads until the connection ends.
///
/// # Errors
/// When there is no connection.
pub(super) async fn flood(address: SocketAddr, flood: Flood, n_frames: u32) -> Result<()> {
    let mut stream = TcpStream::connect(address).await.context("connect")?;
    let headers = header_block(address);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, b""));
    bytes.extend(flood.opening(&headers));
    bytes.extend((0..n_frames).flat_map(|idx| flood.frame(idx, &headers)));
    // A connection that ends in the middle of the flood refuses the rest of it.
    let _ = stream.write_all(&bytes).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    Ok(())
}
