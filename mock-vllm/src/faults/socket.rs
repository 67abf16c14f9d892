//! Listeners and connections that can fail: closed listeners, reset connections, and connections of a dead pod.

use super::active::PodFaults;
use crate::send_schedule::shared_stream::SharedStream;
use crate::send_schedule::{Accepted, Outbox, SendSchedule};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Pause before a port that another process has taken is tried again.
const REOPEN_PAUSE: Duration = Duration::from_millis(50);
/// Most connections that wait to be accepted: uvicorn's default. The system's own would reject a burst of clients.
const BACKLOG: u32 = 2048;

/// A listener that can be closed for some time.
pub trait Door: Listener<Io: Severable> {
    /// Closes the listener; connections that wait to be accepted are lost.
    fn close(&mut self);

    /// Listens again at the same place; does nothing if the listener is open.
    fn open(&mut self) -> impl Future<Output = ()> + Send;
}

/// A connection that can be closed with a reset.
pub trait Severable {
    fn reset_when_closed(&self);

    /// Connection on which other threads may send meanwhile; `None` if tokens leave as soon as they are written.
    fn shared_stream(&self) -> Option<&SharedStream>;
}

#[derive(Debug)]
pub struct TcpDoor {
    /// Listener; `None` while it is closed.
    listener: Option<TcpListener>,
    address: SocketAddr,
}

/// A Unix socket stays in the file system: while it is closed, new connections end at once.
#[derive(Debug)]
pub struct UnixDoor {
    listener: UnixListener,
    is_closed: bool,
}

/// Listener of a pod with faults.
#[derive(Debug)]
pub struct FaultListener<D> {
    door: D,
    faults: Arc<PodFaults>,
    send_schedule: Option<Arc<SendSchedule>>,
    changed: watch::Receiver<()>,
}

/// A connection that the answering side can cut off.
#[derive(Debug)]
pub struct FaultIo<I: Severable> {
    io: I,
    connection: Connection,
    severed: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// Handle of a connection, for the code that answers its requests.
#[derive(Clone, Debug)]
pub struct Connection {
    severed: CancellationToken,
    shared: Arc<Shared>,
    outbox: Option<Arc<Outbox>>,
}

#[derive(Debug, Default)]
struct Shared {
    has_reset: AtomicBool,
    has_excess: AtomicBool,
    excess: Mutex<Bytes>,
}

/// Listens on an address.
///
/// # Errors
/// Fails if the address is not available.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Lets the server use a port that another one has just released.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

// === impl TcpDoor ===

impl TcpDoor {
    /// Wraps a listener.
    ///
    /// # Errors
    /// Fails if the listener does not know its address.
    pub fn new(listener: TcpListener) -> io::Result<Self> {
        Ok(Self { address: listener.local_addr()?, listener: Some(listener) })
    }
}

impl Listener for TcpDoor {
    type Io = SharedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match &mut self.listener {
            Some(listener) => {
                let (stream, address) = Listener::accept(listener).await;
                // Otherwise Nagle's algorithm and delayed acknowledgements delay a token by 40 ms.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "Cannot set TCP_NODELAY");
                }
                (SharedStream::new(stream), address)
            }
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Ok(self.address)
    }
}

impl Door for TcpDoor {
    fn close(&mut self) {
        self.listener = None;
    }

    async fn open(&mut self) {
        while self.listener.is_none() {
            match listen(self.address) {
                Ok(listener) => self.listener = Some(listener),
                Err(error) => {
                    tracing::warn!(address = %self.address, %error, "Cannot listen again");
                    tokio::time::sleep(REOPEN_PAUSE).await;
                }
            }
        }
    }
}

// === impl UnixDoor ===

impl UnixDoor {
    pub fn new(listener: UnixListener) -> Self {
        Self { listener, is_closed: false }
    }
}

impl Listener for UnixDoor {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let accepted = Listener::accept(&mut self.listener).await;
            if !self.is_closed {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

impl Door for UnixDoor {
    fn close(&mut self) {
        self.is_closed = true;
    }

    async fn open(&mut self) {
        self.is_closed = false;
    }
}

// === impl Severable ===

impl Severable for SharedStream {
    fn reset_when_closed(&self) {
        if let Err(error) = self.stream().set_zero_linger() {
            tracing::debug!(%error, "Cannot set SO_LINGER");
        }
    }

    fn shared_stream(&self) -> Option<&SharedStream> {
        Some(self)
    }
}

impl Severable for UnixStream {
    /// Does nothing: a Unix socket has no reset, so the peer sees the end of the stream.
    fn reset_when_closed(&self) {}

    fn shared_stream(&self) -> Option<&SharedStream> {
        None
    }
}

// === impl FaultListener ===

impl<D: Door> FaultListener<D> {
    /// Wraps a listener. In `send_schedule` the connections' streams wait for their time, if they do.
    pub fn new(door: D, faults: Arc<PodFaults>, send_schedule: Option<Arc<SendSchedule>>) -> Self {
        Self { door, changed: faults.watch(), faults, send_schedule }
    }
}

impl<D: Door> Listener for FaultListener<D> {
    type Io = FaultIo<D::Io>;
    type Addr = D::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if self.faults.refuses_connections() {
                self.door.close();
            } else {
                self.door.open().await;
            }
            tokio::select! {
                (io, address) = self.door.accept() => {
                    if !self.faults.drops_connection() {
                        return (FaultIo::new(io, self.faults.dead(), self.send_schedule.as_ref()), address);
                    }
                    io.reset_when_closed();
                }
                () = self.faults.change(&mut self.changed) => {}
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.door.local_addr()
    }
}

impl<D: Door> Connected<IncomingStream<'_, FaultListener<D>>> for Connection {
    fn connect_info(stream: IncomingStream<'_, FaultListener<D>>) -> Self {
        stream.io().connection.clone()
    }
}

// === impl Connection ===

impl Connection {
    /// Ends the connection in the middle of its answers.
    pub fn close(&self) {
        self.severed.cancel();
    }

    /// Ends the connection with a TCP reset.
    pub fn reset(&self) {
        self.shared.has_reset.store(true, Ordering::Release);
        self.severed.cancel();
    }

    /// Returns the outbox in which its streams wait for their time.
    pub fn outbox(&self) -> Option<&Arc<Outbox>> {
        self.outbox.as_ref()
    }

    /// Sends these bytes after the answer that is being written, beyond its declared end.
    pub fn exceed(&self, bytes: Bytes) {
        *self.shared.excess.lock() = bytes;
        self.shared.has_excess.store(true, Ordering::Release);
    }
}

// === impl FaultIo ===

impl<I: Severable> FaultIo<I> {
    fn new(io: I, pod_dead: &CancellationToken, send_schedule: Option<&Arc<SendSchedule>>) -> Self {
        let with_stream = send_schedule.zip(io.shared_stream());
        let outbox = with_stream
            .map(|(send_schedule, stream)| Arc::new(Outbox::new(stream.clone(), send_schedule.clone())));
        let severed = pod_dead.child_token();
        let waiting = Box::pin(severed.clone().cancelled_owned());
        Self { io, connection: Connection { severed, shared: Arc::default(), outbox }, severed: waiting }
    }

    fn is_severed(&self) -> bool {
        self.connection.severed.is_cancelled()
    }
}

fn severed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut off by a fault")
}

impl<I: AsyncRead + Severable + Unpin> AsyncRead for FaultIo<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_severed() {
            return Poll::Ready(Err(severed()));
        }
        let read = Pin::new(&mut self.io).poll_read(ctx, buf);
        match read {
            Poll::Ready(result) => Poll::Ready(result),
            // Wakes a reader that waits for bytes which never come.
            Poll::Pending => self.severed.as_mut().poll(ctx).map(|()| Err(severed())),
        }
    }
}

impl<I: AsyncWrite + Severable + Unpin> AsyncWrite for FaultIo<I> {
    fn poll_write(mut self: Pin<&mut Self>, ctx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_severed() {
            return Poll::Ready(Err(severed()));
        }
        if let Some(outbox) = &self.connection.outbox
            && ready!(outbox.poll_accept(ctx, &[io::IoSlice::new(buf)]))? == Accepted::Held
        {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.io).poll_write(ctx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shared = self.connection.shared.clone();
        if shared.has_excess.load(Ordering::Acquire) {
            if let Some(outbox) = &self.connection.outbox {
                ready!(outbox.poll_empty(ctx))?;
            }
            let mut excess = shared.excess.lock();
            while !excess.is_empty() {
                let n_written = ready!(Pin::new(&mut self.io).poll_write(ctx, &excess))?;
                excess.advance(n_written);
            }
            shared.has_excess.store(false, Ordering::Release);
        }
        if let Some(outbox) = &self.connection.outbox {
            ready!(outbox.poll_flush(ctx))?;
        }
        Pin::new(&mut self.io).poll_flush(ctx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.connection.shared.has_reset.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        if let Some(outbox) = &self.connection.outbox {
            ready!(outbox.poll_empty(ctx))?;
        }
        Pin::new(&mut self.io).poll_shutdown(ctx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.is_severed() {
            return Poll::Ready(Err(severed()));
        }
        if let Some(outbox) = &self.connection.outbox
            && ready!(outbox.poll_accept(ctx, bufs))? == Accepted::Held
        {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        Pin::new(&mut self.io).poll_write_vectored(ctx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl<I: Severable> Drop for FaultIo<I> {
    fn drop(&mut self) {
        if let Some(outbox) = &self.connection.outbox {
            outbox.abandon();
        }
        if self.connection.shared.has_reset.load(Ordering::Acquire) {
            self.io.reset_when_closed();
        }
    }
}
