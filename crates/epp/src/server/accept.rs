//! Accepts connections, and closes unused ones: half-open handshakes, vanished peers, idle ones.
//!
//! A proxy sends the streams of all its clients over a few connections, so nothing that one client causes may end a
//! connection: HTTP/2's guards against abuse are set so that only the peer itself can trigger them.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use axum::Router;
use futures::{FutureExt as _, TryFutureExt as _};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::io::InspectReader;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tracing::{debug, info, warn};

use crate::server::gathered::Gathered;
use crate::server::grpc::{self, Processor};
use crate::server::workers::Workers;

/// Most streams on one connection. The proxy opens one stream per request in flight and closes none early; with hyper's
/// default of 200 it would open more connections instead.
const MAX_CONCURRENT_STREAMS: u32 = 40_000;
/// Bytes of a stream that are under way or not read yet; if the proxy is faster than the picker, it sends what follows
/// in larger frames. The window holds 6,500 frames of 10 bytes, which is an ext_proc message with a byte of body: Envoy
/// ends a connection to which it has more than 10,000 frames to write (`max_outbound_frames`, counted in
/// `http2.outbound_flood`).
const STREAM_WINDOW: u32 = 64 << 10;
/// Bytes of a connection that are under way or not read yet: HTTP/2's largest window, so that streams that are not read
/// block no others. Half of it is h2's budget for small DATA frames that are not read yet, each of which takes up to
/// 256 bytes of it; beyond the budget the connection ends with `too_many_data_frames`. That would take more than 600
/// streams full of such frames.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// Bytes of a stream's answers that wait until the proxy reads them.
const SEND_BUFFER: usize = 64 << 10;
/// Length of HTTP/2's preface and an empty SETTINGS frame.
const HTTP2_HELLO: u64 = 24 + 9;
/// Pause after a connection could not be accepted, for example because file descriptors are short.
const BACK_OFF: Duration = Duration::from_millis(500);
/// Longest silence of an HTTP/1 client: two of Prometheus's usual intervals.
const HTTP1_SILENCE: Duration = Duration::from_secs(60);

/// Times for which peers may keep a connection that does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Time for TLS, and again for the first frame of HTTP/2.
    pub handshake: Duration,
    /// Silence after which a peer is pinged.
    pub ping_interval: Duration,
    /// Time for the answer to a ping; without one, the peer has vanished and its streams end.
    pub ping_timeout: Duration,
    /// Time after which an HTTP/2 connection without streams is closed gracefully.
    pub idle: Duration,
}

impl Default for Patience {
    /// A vanished proxy is noticed within 20 s. The idle time is below the hour after which Envoy itself closes such
    /// connections, and long enough that a quiet night needs few handshakes.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            idle: Duration::from_secs(15 * 60),
        }
    }
}

/// A port, and the protocol of its connections.
#[derive(Debug)]
pub(super) struct Port<P> {
    /// Name in the log.
    pub(super) name: &'static str,
    pub(super) listener: TcpListener,
    pub(super) protocol: P,
    pub(super) patience: Patience,
    pub(super) workers: Workers,
}

/// Serves one connection to its end, and closes it gracefully once `closed`.
pub(super) trait Protocol: Clone + Send + 'static {
    fn serve(
        self,
        socket: TcpStream,
        patience: Patience,
        closed: CancellationToken,
    ) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// gRPC, with or without TLS.
#[derive(Clone, Debug)]
pub(super) struct Grpc {
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) services: Services,
}

/// The gRPC services of a port.
#[derive(Clone, Debug)]
pub(super) struct Services {
    /// Its requests skip the router, which would match, box and wrap each of them.
    pub(super) processor: Option<Processor>,
    pub(super) others: Routes,
}

/// HTTP/1.1.
#[derive(Clone, Debug)]
pub(super) struct Http(pub(super) Router);

/// Runs the streams of one connection and counts them.
#[derive(Clone, Default)]
struct Streams {
    open: TaskTracker,
    n_begun: Arc<AtomicU64>,
}

impl<P: Protocol> Port<P> {
    /// A port whose connections share the runtime of the caller with everything else.
    pub(super) fn shared(name: &'static str, listener: TcpListener, protocol: P, patience: Patience) -> Self {
        Self { name, listener, protocol, patience, workers: Workers::shared() }
    }

    /// Accepts connections until `closed`, then waits for the open ones.
    pub(super) async fn serve(self, closed: CancellationToken) {
        let Self { name, listener, protocol, patience, mut workers } = self;
        let connections = TaskTracker::new();
        let mut fails = false;
        while !closed.is_cancelled() {
            let accepted = match listener.accept().now_or_never() {
                Some(accepted) => accepted,
                None => {
                    // All waiting connections are accepted.
                    if std::mem::take(&mut fails) {
                        info!(port = name, "Taking connections again");
                    }
                    tokio::select! {
                        biased;
                        () = closed.cancelled() => break,
                        accepted = listener.accept() => accepted,
                    }
                }
            };
            match accepted {
                Ok((socket, _)) => {
                    let (protocol, closed) = (protocol.clone(), closed.clone());
                    let connection = async move {
                        let socket = TcpStream::from_std(socket.into_std()?)?;
                        protocol.serve(socket, patience, closed).await
                    };
                    let connection = connection.inspect_err(move |error| {
                        debug!(port = name, error = format!("{error:#}"), "Connection broke off");
                    });
                    connections.spawn_on(connection, workers.next());
                }
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut fails, true) {
                        warn!(port = name, %error, "Cannot take connections");
                    }
                    // File descriptors come back when connections end.
                    let _ = timeout(BACK_OFF, closed.cancelled()).await;
                }
            }
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }
}

fn is_about_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Sets up the socket: small answers leave at once, and the system detects a vanished peer, with or without data to
/// send.
fn prepare(socket: &TcpStream, patience: Patience) -> io::Result<()> {
    // The system counts in whole seconds.
    let [time, interval] =
        [patience.ping_interval, patience.ping_timeout].map(|wait| wait.max(Duration::from_secs(1)));
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time).with_interval(interval))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(time + interval))?;
    Ok(())
}

/// Returns true if `path` is a method of the ext_proc service.
fn is_for_processor(path: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(grpc::SERVICE));
    method.is_some_and(|method| method.starts_with('/'))
}

impl Protocol for Grpc {
    async fn serve(
        self,
        socket: TcpStream,
        patience: Patience,
        closed: CancellationToken,
    ) -> anyhow::Result<()> {
        prepare(&socket, patience)?;
        let Self { tls, services } = self;
        let services = (services, socket.local_addr()?);
        match tls {
            None => serve_http2(socket, services, patience, closed).await,
            Some(tls) => {
                let handshake = timeout(patience.handshake, TlsAcceptor::from(tls).accept(socket)).await;
                let socket = handshake.map_err(|_| anyhow!("the TLS handshake took too long"))??;
                serve_http2(socket, services, patience, closed).await
            }
        }
    }
}

impl Protocol for Http {
    async fn serve(
        self,
        socket: TcpStream,
        patience: Patience,
        closed: CancellationToken,
    ) -> anyhow::Result<()> {
        prepare(&socket, patience)?;
        let Self(router) = self;
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HTTP1_SILENCE.min(patience.idle));
        let connection = builder.serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
        tokio::pin!(connection);
        tokio::select! {
            served = &mut connection => return Ok(served?),
            () = closed.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        Ok(connection.await?)
    }
}

async fn serve_http2<S>(
    socket: S,
    (services, address): (Services, SocketAddr),
    patience: Patience,
    closed: CancellationToken,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let streams = Streams::default();
    let n_read = AtomicU64::new(0);
    let socket = InspectReader::new(socket, |bytes| {
        n_read.fetch_add(bytes.len().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
    });
    let processor = services.processor.map(|it| TowerToHyperService::new(it.service_at(address)));
    let others = TowerToHyperService::new(services.others);
    let service = service_fn(|request: Request<Incoming>| match &processor {
        Some(processor) if is_for_processor(request.uri().path()) => processor.call(request).left_future(),
        Some(_) | None => others.call(request).right_future(),
    });
    let socket = Gathered::new(socket);
    let connection = http2(streams.clone(), patience).serve_connection(TokioIo::new(socket.clone()), service);
    tokio::pin!(connection);
    let half_open = half_open(&n_read, patience.handshake);
    tokio::pin!(half_open);
    tokio::select! {
        served = poll_fn(|cx| socket.poll_turn(connection.as_mut(), cx)) => return served,
        error = &mut half_open => return Err(error),
        () = streams.idle(patience.idle) => debug!("Closing an idle connection"),
        () = closed.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        served = poll_fn(|cx| socket.poll_turn(connection.as_mut(), cx)) => served,
        error = half_open => Err(error),
    }
}

fn http2(streams: Streams, patience: Patience) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .auto_date_header(false)
        // If clients give up together, the proxy resets all their streams.
        .max_pending_accept_reset_streams(usize::try_from(MAX_CONCURRENT_STREAMS).ok())
        // Frames may be under way for a stream that the picker has ended; a connection lives for months.
        .max_local_error_reset_streams(None)
        .keep_alive_interval(patience.ping_interval)
        .keep_alive_timeout(patience.ping_timeout);
    builder
}

/// Returns an error if the peer does not start HTTP/2 in time; after the start, pings watch the connection.
async fn half_open(n_read: &AtomicU64, handshake: Duration) -> anyhow::Error {
    sleep(handshake).await;
    if n_read.load(Ordering::Relaxed) < HTTP2_HELLO {
        return anyhow!("the peer did not begin to speak HTTP/2");
    }
    match std::future::pending::<Infallible>().await {}
}

impl Streams {
    /// Returns when no stream has been open for at least `idle`, and at most twice that.
    async fn idle(&self, idle: Duration) {
        let mut n_before = None;
        loop {
            let n_begun = self.n_begun.load(Ordering::Relaxed);
            if n_before == Some(n_begun) {
                return;
            }
            n_before = self.open.is_empty().then_some(n_begun);
            sleep(idle).await;
        }
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.n_begun.fetch_add(1, Ordering::Relaxed);
        self.open.spawn(stream);
    }
}
