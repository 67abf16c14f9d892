//! GET requests for small pages of a child: health, readiness, statistics.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::trace;

/// Wait between two tries. A pod is ready within 150 ms.
pub(super) const RETRY: Duration = Duration::from_millis(20);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Returns status and body of a page.
pub(super) async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    timeout(ANSWER, answer(address, path, &[]))
        .await
        .with_context(|| format!("no answer from {address}{path}"))?
}

/// Returns status and body for a GET with these headers, which may name another host. The caller sets a time limit.
pub(super) async fn answer(
    address: SocketAddr,
    path: &str,
    headers: &[(HeaderName, HeaderValue)],
) -> Result<(u16, String)> {
    trace!(%address, path, "Getting a page");
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request =
        http::Request::get(path).header(http::header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    request.headers_mut().extend(headers.iter().cloned());
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

/// Returns when a GET answers with 200. The caller sets a time limit.
pub(super) async fn until_ok(address: SocketAddr, path: &'static str) {
    while !matches!(get(address, path).await, Ok((200, _))) {
        sleep(RETRY).await;
    }
}

/// Returns when Envoy's statistics show all these versions. The caller sets a time limit.
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

/// Returns when no Envoy cluster is warming and Envoy's health checks do not fail for any of these hosts. The caller
/// sets a time limit. A host that Envoy has found down stays out until Envoy's next check, even if it is up again by
/// then.
pub(super) async fn until_healthy(admin: SocketAddr, hosts: &[SocketAddr]) {
    loop {
        let warm = matches!(get(admin, "/stats?filter=^cluster_manager.warming_clusters$").await,
            Ok((200, text)) if text.trim() == "cluster_manager.warming_clusters: 0");
        if warm
            && let Ok((200, text)) = get(admin, "/clusters").await
            && !hosts.iter().any(|host| is_down(&text, *host))
        {
            return;
        }
        sleep(RETRY).await;
    }
}

/// True if a line such as `picker::127.0.0.1:9002::health_flags::/failed_active_hc` says that the host is down.
fn is_down(clusters: &str, host: SocketAddr) -> bool {
    let flags = format!("::{host}::health_flags::");
    clusters.lines().any(|line| line.contains(&flags) && !line.ends_with("::healthy"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_down_only_by_its_own_flags() {
        let clusters = "picker::127.0.0.1:9002::health_flags::healthy\n\
                        picker::127.0.0.1:9003::health_flags::/failed_active_hc\n";
        let host = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!([9002, 9003, 9004].map(|port| is_down(clusters, host(port))), [false, true, false]);
    }
}
