//! A relay between Envoy and a picker, for faults of their connections while both are well.
//!
//! It copies bytes, and knows of HTTP/2 only where a frame ends, which frames are answers, and how a connection ends.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use tokio::io::{AsyncWriteExt as _, copy};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::cluster::ports::local;

/// The relay's way with what it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// Everything passes. Connections that have lost anything end.
    Open,
    /// The picker's answers wait until the relay opens. Everything else passes: Envoy can send, and finds the picker alive.
    Held,
    /// The connections end by GOAWAY, and what comes on later ones passes.
    GoAway,
    /// Nothing passes, and the connections stay.
    Closed,
}

/// A running relay; dropping it ends its connections.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    passage: watch::Sender<Passage>,
    _task: AbortOnDropHandle<()>,
}

impl Relay {
    /// Starts a relay to `picker` on a free port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub(super) fn start(picker: SocketAddr) -> Result<Self> {
        let bind = || {
            let listener = std::net::TcpListener::bind(local(0))?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        };
        let listener = bind().context("bind a relay's port")?;
        let address = listener.local_addr().context("read a relay's port")?;
        let (passage, orders) = watch::channel(Passage::Open);
        let task: JoinHandle<()> = TaskTracker::new().spawn(accept(listener, picker, orders));
        Ok(Self { address, passage, _task: AbortOnDropHandle::new(task) })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn order(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }
}

/// Relays every connection, until it is dropped.
async fn accept(listener: TcpListener, picker: SocketAddr, orders: watch::Receiver<Passage>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((proxy, _)) = accepted {
                    connections.spawn(relay(proxy, picker, orders.clone()));
                }
            }
            // Its peers know why it has ended.
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Relays one connection to its end.
async fn relay(
    proxy: TcpStream,
    picker: SocketAddr,
    mut orders: watch::Receiver<Passage>,
) -> std::io::Result<()> {
    let passage = *orders.borrow_and_update();
    if passage == Passage::Closed {
        let _ = orders.changed().await;
        return Ok(());
    }
    let picker = TcpStream::connect(picker).await?;
    let (mut from_proxy, mut to_proxy) = proxy.into_split();
    let (from_picker, mut to_picker) = picker.into_split();
    let mut frames = frames(from_picker);
    let mut last_stream = 0;
    let mut is_held = passage == Passage::Held;
    let mut held = Vec::new();
    {
        let forth = copy(&mut from_proxy, &mut to_picker);
        tokio::pin!(forth);
        loop {
            tokio::select! {
                // An order counts for all that is read after it.
                biased;
                changed = orders.changed() => match changed.map(|()| *orders.borrow_and_update()) {
                    Ok(Passage::GoAway) => return to_proxy.write_all(&go_away(last_stream)).await,
                    Ok(Passage::Closed) => break,
                    Ok(Passage::Held) => is_held = true,
                    Ok(Passage::Open) => {
                        is_held = false;
                        to_proxy.write_all(&std::mem::take(&mut held)).await?;
                    }
                    Err(_) => return Ok(()),
                },
                copied = &mut forth => return copied.map(drop),
                frame = frames.next() => {
                    let Some(frame) = frame.transpose()? else { return Ok(()) };
                    last_stream = last_stream.max(stream_of(&frame));
                    match is_held && is_answer(&frame) {
                        true => held.extend_from_slice(&frame),
                        false => to_proxy.write_all(&frame).await?,
                    }
                }
            }
        }
    }
    let _ = orders.changed().await;
    Ok(())
}

/// Reads HTTP/2 frames as they are: 9 bytes, of which the first 3 are the length of the payload, and the payload.
fn frames(picker: OwnedReadHalf) -> FramedRead<OwnedReadHalf, LengthDelimitedCodec> {
    LengthDelimitedCodec::builder().length_field_length(3).length_adjustment(9).num_skip(0).new_read(picker)
}

/// Returns the number of a frame's stream, 0 for a frame of the connection.
fn stream_of(frame: &[u8]) -> u32 {
    frame[5..9].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// True if the frame is a part of an answer, and not only of its connection's upkeep.
fn is_answer(frame: &[u8]) -> bool {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const CONTINUATION: u8 = 9;
    matches!(frame[3], DATA | HEADERS | RST_STREAM | CONTINUATION)
}

/// The frame that ends a connection because its peer asks for too much; the streams up to `last_stream` were heard.
fn go_away(last_stream: u32) -> Vec<u8> {
    const ENHANCE_YOUR_CALM: u32 = 11;
    let head = [0, 0, 8, 7, 0, 0, 0, 0, 0];
    [&head[..], &last_stream.to_be_bytes(), &ENHANCE_YOUR_CALM.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::{Passage, Relay, go_away};
    use crate::cluster::ports::local;

    /// Longest wait for anything; only a hang reaches it.
    const HANG: Duration = Duration::from_secs(60);
    /// Time in which what can pass would have passed.
    const MOMENT: Duration = Duration::from_millis(100);
    /// HEADERS of stream 3 with a payload of two bytes.
    const FRAME: [u8; 11] = [0, 0, 2, 1, 4, 0, 0, 0, 3, 7, 7];
    /// WINDOW_UPDATE of the connection, by one byte.
    const UPKEEP: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];

    /// Connects to a relay. Returns it, and the sides of the proxy and the picker.
    async fn connected() -> (Relay, TcpStream, TcpStream) {
        let listener = TcpListener::bind(local(0)).await.unwrap();
        let relay = Relay::start(listener.local_addr().unwrap()).unwrap();
        let mut proxy = TcpStream::connect(relay.address()).await.unwrap();
        proxy.write_all(b"hello").await.unwrap();
        let (mut picker, _) = listener.accept().await.unwrap();
        assert_eq!(read(&mut picker, 5).await, b"hello");
        picker.write_all(&FRAME).await.unwrap();
        assert_eq!(read(&mut proxy, FRAME.len()).await, FRAME);
        (relay, proxy, picker)
    }

    async fn read(stream: &mut TcpStream, n_bytes: usize) -> Vec<u8> {
        let mut bytes = vec![0; n_bytes];
        timeout(HANG, stream.read_exact(&mut bytes)).await.expect("it comes").unwrap();
        bytes
    }

    async fn rest(stream: &mut TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        timeout(HANG, stream.read_to_end(&mut bytes)).await.expect("it ends").unwrap();
        bytes
    }

    #[tokio::test]
    async fn goaway_comes_between_two_frames_and_ends_the_connection() {
        let (relay, mut proxy, mut picker) = connected().await;
        picker.write_all(&FRAME[..10]).await.unwrap();
        tokio::time::sleep(MOMENT).await;
        relay.order(Passage::GoAway);
        assert_eq!(rest(&mut proxy).await, go_away(3));
        assert_eq!(rest(&mut picker).await, b"", "the picker's side ends, too");
    }

    #[tokio::test]
    async fn answers_wait_while_they_are_held_and_requests_pass() {
        let (relay, mut proxy, mut picker) = connected().await;
        relay.order(Passage::Held);
        tokio::time::sleep(MOMENT).await;
        proxy.write_all(b"again").await.unwrap();
        assert_eq!(read(&mut picker, 5).await, b"again");
        picker.write_all(&[&FRAME[..], &UPKEEP].concat()).await.unwrap();
        assert_eq!(read(&mut proxy, UPKEEP.len()).await, UPKEEP);
        assert!(timeout(MOMENT, proxy.read_u8()).await.is_err(), "the answer waits");
        relay.order(Passage::Open);
        assert_eq!(read(&mut proxy, FRAME.len()).await, FRAME);
        picker.write_all(&FRAME).await.unwrap();
        assert_eq!(read(&mut proxy, FRAME.len()).await, FRAME, "nothing waits any more");
    }

    #[tokio::test]
    async fn nothing_passes_a_closed_relay_and_the_connection_stays() {
        let (relay, mut proxy, mut picker) = connected().await;
        relay.order(Passage::Closed);
        tokio::time::sleep(MOMENT).await;
        proxy.write_all(b"lost").await.unwrap();
        picker.write_all(&FRAME).await.unwrap();
        for side in [&mut proxy, &mut picker] {
            assert!(timeout(MOMENT, side.read_u8()).await.is_err(), "it neither ends nor gets anything");
        }
        // Control: the connection ends when the relay opens.
        relay.order(Passage::Open);
        assert!(timeout(HANG, proxy.read_u8()).await.expect("it ends").is_err());
    }
}
