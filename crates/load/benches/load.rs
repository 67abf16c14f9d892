//! Measures how well the load client keeps time with two thousand open event streams: how late requests leave, and how
//! late tokens are noticed; and for comparison the same with the runtime's timers. The server runs in this process on
//! its own thread, and both share the machine's cores. Run it with `cargo bench -p load --bench load`.
#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]
#![expect(clippy::disallowed_methods, reason = "a bench spawns its clients")]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use load::client::Client;
use load::clock::Stopwatch;
use load::pacer::Pacer;
use load::sse::SseReader;
use load::stats::{millis, quantile};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Requests per second. Each gets [`TOKENS`] tokens at an even pace, so 2,000 streams are open once the first one ends.
const RATE: u32 = 200;
const TOKENS: u32 = 100;
const TOKEN_PERIOD: Duration = Duration::from_millis(100);
/// Time until all streams are open; requests sent in it do not count.
const RAMP: Duration = Duration::from_secs(10);
const RUN: Duration = Duration::from_secs(30);
const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const BODY: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#;

/// Delays of one request, in milliseconds.
struct Lateness {
    /// Delay from its due time until it was handed to the connection.
    sent: f64,
    /// Delay from its due time until the server had read it.
    read: f64,
    /// Delays from the server's write of each token until the client had it.
    tokens: Vec<f64>,
}

/// The timer that wakes the sender.
#[derive(Clone, Copy, Debug)]
enum Waker {
    Pacer,
    Timers,
}

fn main() {
    let stopwatch = Stopwatch::start();
    let address = serve(stopwatch);
    let url = format!("http://{address}/v1/chat/completions");
    for waker in [Waker::Timers, Waker::Pacer] {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the runtime starts");
        let measured = runtime.block_on(load(&url, stopwatch, waker));
        let n_streams = TOKENS / 10 * RATE;
        println!("{waker:?}: {} requests at {RATE} per second, {n_streams} streams open", measured.len());
        let of = |part: fn(&Lateness) -> f64| measured.iter().map(part).collect::<Vec<f64>>();
        tell("sent after it was due", &of(|one| one.sent));
        tell("read by the server after it was due", &of(|one| one.read));
        let tokens: Vec<f64> = measured.into_iter().flat_map(|one| one.tokens).collect();
        tell("token noticed after it was written", &tokens);
    }
}

fn tell(what: &str, sample: &[f64]) {
    let at = |q: f64| quantile(sample, q).expect("something was measured");
    println!("  {what}: p50 {:.3} ms, p99 {:.3} ms, longest {:.2} ms", at(0.5), at(0.99), at(1.0));
}

/// Sends at an even pace, whether earlier requests are answered or not.
async fn load(url: &str, stopwatch: Stopwatch, waker: Waker) -> Vec<Lateness> {
    let client = Client::default();
    let mut pacer = Pacer::start(stopwatch).expect("a thread starts");
    let mut requests = JoinSet::new();
    let start = stopwatch.elapsed();
    let mut due = start;
    while due < start + RAMP + RUN {
        match waker {
            Waker::Pacer => pacer.until(due).await,
            Waker::Timers => tokio::time::sleep(due.saturating_sub(stopwatch.elapsed())).await,
        }
        let (client, url) = (client.clone(), url.to_owned());
        requests.spawn(async move {
            let lateness = request(&client, &url, (stopwatch, due)).await;
            (due >= start + RAMP).then_some(lateness)
        });
        due += Duration::from_secs(1) / RATE;
    }
    requests.join_all().await.into_iter().flatten().collect()
}

async fn request(client: &Client, url: &str, (stopwatch, due): (Stopwatch, Duration)) -> Lateness {
    let sent = stopwatch.elapsed();
    let mut reader = SseReader::default();
    let read = |bytes: &[u8], _at| reader.push(bytes, stopwatch.elapsed()).map_err(|error| error.to_string());
    let posted = client.post_and_read(url, &[], Bytes::from_static(BODY), read).await;
    let (status, text) = posted.expect("the server answers");
    assert!(status.is_success(), "{status}: {text}");
    let frames = reader.finish().expect("an event stream");
    assert_eq!(frames.len(), TOKENS as usize);
    let micros = |text: &str| Duration::from_micros(text.parse().expect("a number"));
    let late = |at: Duration, since: Duration| millis(at) - millis(since);
    let (mut read, mut tokens) = (0.0, Vec::new());
    for frame in frames {
        let (request_read, written) = frame.data.split_once(' ').expect("two numbers");
        read = late(micros(request_read), due);
        tokens.push(late(frame.at, micros(written)));
    }
    Lateness { sent: late(sent, due), read, tokens }
}

/// Starts a server whose tokens say, in microseconds of `stopwatch`, when the request was read and when they were
/// written.
fn serve(stopwatch: Stopwatch) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the runtime starts");
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, stopwatch));
            }
        });
    });
    address
}

/// Answers the requests of one connection until the client closes it.
async fn answer(mut stream: TcpStream, stopwatch: Stopwatch) {
    stream.set_nodelay(true).expect("a TCP socket");
    let mut buffer = Vec::new();
    while stream.read_buf(&mut buffer).await.is_ok_and(|n_bytes| n_bytes > 0) {
        if !buffer.ends_with(BODY) {
            continue;
        }
        buffer.clear();
        let read = stopwatch.elapsed();
        let mut head = HEAD;
        let start = tokio::time::Instant::now();
        for token in 1..=TOKENS {
            tokio::time::sleep_until(start + token * TOKEN_PERIOD).await;
            let data = format!("data: {} {}\n\n", read.as_micros(), stopwatch.elapsed().as_micros());
            let chunk = format!("{:x}\r\n{data}\r\n", data.len());
            let chunk = [std::mem::take(&mut head), chunk.as_bytes()].concat();
            if stream.write_all(&chunk).await.is_err() {
                return;
            }
        }
        if stream.write_all(b"0\r\n\r\n").await.is_err() {
            return;
        }
    }
}
