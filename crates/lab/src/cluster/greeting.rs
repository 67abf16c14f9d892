//! The first bytes of a server of gRPC whose settings are not known: does it expect TLS?

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Wait between two tries.
const RETRY: Duration = Duration::from_millis(50);
/// Longest wait for the first bytes.
const ANSWER: Duration = Duration::from_secs(2);
/// The first bytes of a client of HTTP/2 without TLS: the preface, and an empty frame of settings (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Length of a frame's head; the server's first frame is one of settings, too.
const FRAME_HEAD: usize = 9;
/// Type of a frame of settings, and its place in the head.
const SETTINGS: (usize, u8) = (3, 4);
/// First byte of a record that ends TLS.
const TLS_ALERT: u8 = 0x15;

/// Security of a server's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    Plain,
    Tls,
}

/// Returns when a server of HTTP/2 listens at the address. The caller sets a time limit.
pub(super) async fn until_greeted(address: SocketAddr) -> Security {
    loop {
        if let Ok(Ok(Some(security))) = timeout(ANSWER, greet(address)).await {
            return security;
        }
        sleep(RETRY).await;
    }
}

/// `None` if the server speaks something else.
async fn greet(address: SocketAddr) -> std::io::Result<Option<Security>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(PREFACE).await?;
    let mut head = Vec::new();
    // A server that expects TLS may close the connection with a reset.
    let _ = stream.take(FRAME_HEAD as u64).read_to_end(&mut head).await;
    let (place, settings) = SETTINGS;
    Ok(match head.as_slice() {
        [] | [TLS_ALERT, ..] => Some(Security::Tls),
        head if head.len() == FRAME_HEAD && head[place] == settings => Some(Security::Plain),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::{Security, greet};

    /// Greets a server that answers with these bytes and closes the connection.
    async fn check(answer: &'static [u8], expected: Option<Security>) {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; 24]).await.unwrap();
            stream.write_all(answer).await.unwrap();
        };
        let ((), greeted) = tokio::join!(serve, greet(address));
        assert_eq!(greeted.unwrap(), expected, "{answer:?}");
    }

    #[tokio::test]
    async fn servers_are_told_apart_by_their_first_bytes() {
        check(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3], Some(Security::Plain)).await;
        check(&[0x15, 3, 1, 0, 2, 2, 70], Some(Security::Tls)).await;
        check(b"", Some(Security::Tls)).await;
        check(b"HTTP/1.1 400 Bad Request\r\n\r\n", None).await;
        check(b"220 a mail server\r\n", None).await;
    }
}
