//! The socket of an HTTP/2 connection, with a write for all frames of a turn. HTTP/2 hands long frames to the socket one
//! by one, and every write is a system call and wakes the proxy.
//!
//! ```text
//! turn: the connection reads ─► streams answer ─► frames are gathered ─► one write
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};

/// Bytes that are read at once: the messages of some 30 short requests.
const READ_BYTES: usize = 64 << 10;
/// Most bytes that are gathered. Frames wait then until the peer has read.
const MOST_BYTES: usize = 64 << 10;

/// The connection's side of the socket, and its owner's, which ends the turns.
#[derive(Debug)]
pub(super) struct Gathered<S>(Arc<Mutex<Socket<S>>>);

#[derive(Debug)]
struct Socket<S> {
    socket: BufReader<S>,
    /// Frames that are not written yet.
    frames: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gathered<S> {
    pub(super) fn new(socket: S) -> Self {
        let socket = BufReader::with_capacity(READ_BYTES, socket);
        Self(Arc::new(Mutex::new(Socket { socket, frames: BytesMut::new() })))
    }

    /// Runs a turn of the connection, and then writes its frames.
    pub(super) fn poll_turn<F, E>(
        &self,
        connection: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<anyhow::Result<()>>
    where
        F: Future<Output = Result<(), E>>,
        anyhow::Error: From<E>,
    {
        let served = connection.poll(cx)?;
        match self.0.lock().poll_write_frames(cx)? {
            Poll::Ready(()) | Poll::Pending => served.map(Ok),
        }
    }
}

impl<S> Clone for Gathered<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    fn poll_write_frames(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, frames } = self;
        while !frames.is_empty() {
            match ready!(Pin::new(&mut *socket).poll_write(cx, frames))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n_bytes => frames.advance(n_bytes),
            }
        }
        Pin::new(socket).poll_flush(cx)
    }

    fn poll_gather(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.frames.len() >= MOST_BYTES {
            ready!(self.poll_write_frames(cx))?;
        }
        parts.iter().for_each(|part| self.frames.extend_from_slice(part));
        Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.lock().socket).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.lock().poll_gather(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_gather(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Frames leave at the end of the turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut socket = self.0.lock();
        ready!(socket.poll_write_frames(cx))?;
        Pin::new(&mut socket.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};

    use super::{Gathered, MOST_BYTES};

    /// Counts writes.
    struct Counted {
        socket: DuplexStream,
        n_writes: usize,
    }

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.socket).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.n_writes += 1;
            Pin::new(&mut self.socket).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.socket).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.socket).poll_shutdown(cx)
        }
    }

    /// A connection that has these frames to write.
    async fn write(mut socket: impl AsyncWrite + Unpin, frames: &[&[u8]]) -> io::Result<()> {
        for frame in frames {
            socket.write_all(frame).await?;
            socket.flush().await?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn the_frames_of_a_turn_leave_in_one_write() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut counted = Counted { socket: near, n_writes: 0 };
        write(&mut counted, &[b"a", b"b", b"c"]).await.unwrap();
        assert_eq!(counted.n_writes, 3, "Control: a write for each frame");
        let socket = Gathered::new(counted);
        let mut connection = pin!(write(socket.clone(), &[b"d", b"e", b"f"]));
        poll_fn(|cx| socket.poll_turn(connection.as_mut(), cx)).await.unwrap();
        assert_eq!(socket.0.lock().socket.get_ref().n_writes, 4);
        let mut read = [0; 6];
        far.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"abcdef");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_makes_frames_wait() {
        const FRAME: &[u8] = &[7; 16 << 10];
        let (near, mut far) = tokio::io::duplex(1024);
        let socket = Gathered::new(near);
        let frames = [FRAME; 40];
        let connection = async {
            let mut socket = socket.clone();
            write(&mut socket, &frames).await?;
            socket.shutdown().await
        };
        let mut connection = pin!(connection);
        let mut turn = pin!(poll_fn(|cx| socket.poll_turn(connection.as_mut(), cx)));
        assert!(futures::poll!(turn.as_mut()).is_pending());
        let n_bytes = socket.0.lock().frames.len();
        assert!(
            n_bytes > MOST_BYTES / 2 && n_bytes < MOST_BYTES + FRAME.len(),
            "{n_bytes} bytes are gathered"
        );
        // Control: they leave as soon as it reads.
        let mut read = Vec::new();
        let (written, _) = tokio::join!(turn, far.read_to_end(&mut read));
        written.unwrap();
        assert_eq!(read, frames.concat());
    }
}
