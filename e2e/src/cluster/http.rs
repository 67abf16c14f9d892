//! GET of a small page of a child: health, readiness, statistics.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Between two tries; a pod is ready within 150 ms.
const RETRY: Duration = Duration::from_millis(20);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Status and body.
pub(super) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    timeout(ANSWER, exchange(address, path))
        .await
        .with_context(|| format!("no answer from {address}{path}"))?
}

async fn exchange(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request =
        http::Request::get(path).header(http::header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        drop(sender);
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

/// Returns when a GET answers 200; the caller sets the limit.
pub(super) async fn until_ok(address: SocketAddr, path: &'static str) {
    while !matches!(get(address, path).await, Ok((200, _))) {
        sleep(RETRY).await;
    }
}

/// Returns when Envoy's statistics hold all these versions; the caller sets the limit.
pub(super) async fn until_versions(admin: SocketAddr, versions: Vec<(String, String)>) {
    loop {
        if let Ok((200, text)) = get(admin, "/stats?filter=version_text").await {
            let taken = |(stat, version): &(String, String)| {
                text.lines().any(|line| line == format!("{stat}: \"{version}\""))
            };
            if versions.iter().all(taken) {
                return;
            }
        }
        sleep(RETRY).await;
    }
}
