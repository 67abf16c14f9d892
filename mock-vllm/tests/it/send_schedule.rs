//! Bytes that were written ahead of their time: none leaves early, none is lost, all stay in order.

use crate::server_fixtures::take_arrived;
use mock_vllm::clock::{Clock, SimTime};
use mock_vllm::send_schedule::shared_stream::SharedStream;
use mock_vllm::send_schedule::{Accepted, Outbox, SendSchedule};
use std::future::poll_fn;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

/// Patterns of 251 bytes: far more than the buffers of two sockets take.
const N_PATTERNS: usize = (32 << 20) / 251;

struct Lab {
    send_schedule: Arc<SendSchedule>,
    outbox: Arc<Outbox>,
    client: TcpStream,
}

impl Lab {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let send_schedule = Arc::new(SendSchedule::new(Clock::start(Default::default()), None));
        let outbox = Arc::new(Outbox::new(SharedStream::new(server), send_schedule.clone()));
        Self { send_schedule, outbox, client }
    }

    async fn write(&self, bytes: &[u8]) -> Accepted {
        poll_fn(|ctx| self.outbox.poll_accept(ctx, &[IoSlice::new(bytes)])).await.unwrap()
    }

    fn sweep(&self, due: SimTime) {
        self.send_schedule.sweep(due, due);
    }

    /// Returns what has arrived so far.
    fn received(&self) -> Vec<u8> {
        take_arrived(&self.client).unwrap_or_default()
    }

    /// Returns what has arrived, once something has, without waiting for tokio's reactor, which may not know of it yet.
    fn has_received(&self) -> Vec<u8> {
        loop {
            let received = self.received();
            if !received.is_empty() {
                return received;
            }
            std::thread::yield_now();
        }
    }
}

const fn at(millis: u64) -> SimTime {
    SimTime(Duration::from_millis(millis))
}

#[tokio::test]
async fn bytes_wait_for_the_sweep_of_their_time() {
    let lab = Lab::new().await;
    lab.outbox.hold(at(10));
    assert_eq!(lab.write(b"one").await, Accepted::Held);
    lab.outbox.hold(at(20));
    assert_eq!(lab.write(b"two").await, Accepted::Held);

    lab.sweep(at(5));
    assert_eq!(lab.received(), b"");
    lab.sweep(at(10));
    assert_eq!(lab.has_received(), b"one");
    assert_eq!(lab.received(), b"");
    lab.sweep(at(20));
    assert_eq!(lab.has_received(), b"two");
}

#[tokio::test]
async fn who_comes_after_the_sweep_passes() {
    let lab = Lab::new().await;
    lab.sweep(at(10));
    lab.outbox.hold(at(10));

    assert_eq!(lab.write(b"late").await, Accepted::Passed);
}

#[tokio::test]
async fn a_token_that_was_announced_out_of_order_leaves_at_its_time() {
    let (early, late) = (Lab::new().await, Lab::new().await);
    let outbox = Arc::new(Outbox::new(SharedStream::new(early.client), late.send_schedule.clone()));
    late.outbox.hold(at(20));
    late.write(b"late").await;
    outbox.hold(at(10));
    poll_fn(|ctx| outbox.poll_accept(ctx, &[IoSlice::new(b"early")])).await.unwrap();

    late.sweep(at(10));
    assert_eq!(late.received(), b"");
    // Its outbox is empty, or this would be held.
    let accepted = poll_fn(|ctx| outbox.poll_accept(ctx, &[IoSlice::new(b"more")])).await.unwrap();
    assert_eq!(accepted, Accepted::Passed);
    late.sweep(at(20));
    assert_eq!(late.has_received(), b"late");
}

#[tokio::test]
async fn what_a_full_socket_did_not_take_follows_in_order() {
    let mut lab = Lab::new().await;
    let pattern = (0..=250).collect::<Vec<u8>>().repeat(N_PATTERNS);
    lab.outbox.hold(at(10));
    lab.write(&pattern).await;
    lab.sweep(at(10));
    let outbox = lab.outbox.clone();
    let mut received = vec![0; pattern.len()];
    let (rest, read) =
        tokio::join!(poll_fn(|ctx| outbox.poll_flush(ctx)), lab.client.read_exact(&mut received));
    rest.unwrap();
    read.unwrap();

    assert!(received == pattern, "bytes were lost or changed places");
    assert_eq!(lab.write(b"next").await, Accepted::Passed);
}

#[tokio::test]
async fn a_connection_that_ends_sends_what_waits() {
    let lab = Lab::new().await;
    lab.outbox.hold(at(10));
    lab.write(b"held").await;

    lab.outbox.abandon();

    assert_eq!(lab.has_received(), b"held");
}
