//! A TCP connection that its task reads and writes, and on which other threads may send meanwhile.

use bytes::BufMut as _;
use socket2::SockRef;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Handle of a connection; the connection closes with the last clone.
#[derive(Clone, Debug)]
pub struct SharedStream(Arc<TcpStream>);

// === impl SharedStream ===

impl SharedStream {
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    pub fn stream(&self) -> &TcpStream {
        &self.0
    }

    /// Sends what the socket takes at once, and returns its bytes. A broken socket takes nothing; its task learns of
    /// that.
    pub fn try_send(&self, bytes: &[u8]) -> usize {
        let mut n_sent = 0;
        while n_sent < bytes.len() {
            match self.0.try_write(&bytes[n_sent..]) {
                Ok(n_more) => n_sent += n_more,
                Err(_) => return n_sent,
            }
        }
        n_sent
    }

    /// Sends some bytes and returns their number, at least one.
    ///
    /// # Errors
    /// Fails if the socket is broken.
    pub fn poll_send(&self, ctx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_try(ctx, |stream| stream.try_write(bytes))
    }

    fn poll_try(
        &self,
        ctx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(ctx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncRead for SharedStream {
    fn poll_read(self: Pin<&mut Self>, ctx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !buf.has_remaining_mut() {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.0.poll_read_ready(ctx))?;
            match self.0.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(|_n_read| ())),
            }
        }
    }
}

impl AsyncWrite for SharedStream {
    fn poll_write(self: Pin<&mut Self>, ctx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(ctx, buf)
    }

    /// Does nothing: a socket holds nothing back.
    fn poll_flush(self: Pin<&mut Self>, _ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&*self.0).shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            Ok(()) | Err(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try(ctx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
