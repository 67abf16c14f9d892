//! Distance of tokens from their virtual time: 256 streams at time scale 1, each over a connection of its own, from the
//! program itself over real sockets. The server reports its lateness in /metrics; clients and server share the
//! machine's cores.
#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]

mod program;

use program::{Server, chat_request, count_tokens, is_complete};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const N_STREAMS: usize = 256;
const TOKENS_PER_STREAM: usize = 200;
/// Pause between reads. Clients that read seldom leave the cores to the server, like clients on another machine.
const PAUSE: Duration = Duration::from_secs(1);

fn main() {
    let server = Server::start("--mock-metrics --log-filter warn,mock_vllm=info");
    let mut streams: Vec<Stream> = (0..N_STREAMS).map(|idx| Stream::open(server.address, idx)).collect();
    while streams.iter().any(|stream| !stream.is_complete) {
        std::thread::sleep(PAUSE);
        streams.iter_mut().for_each(Stream::read);
    }
    let n_tokens: usize = streams.iter().map(|stream| count_tokens(&stream.received)).sum();
    assert_eq!(n_tokens, N_STREAMS * TOKENS_PER_STREAM, "every token came");
    let page = server.get("/metrics").expect("the server answers");
    println!("memory at most {:.0} MiB", server.memory_mib("VmHWM"));
    println!(
        "lateness of {n_tokens} tokens of {N_STREAMS} streams: p50 below {} ms, p90 below {} ms, p99 below {} ms, longest \
         {:.2} ms",
        quantile_ms(&page, 0.5),
        quantile_ms(&page, 0.9),
        quantile_ms(&page, 0.99),
        value(&page, "mock_vllm:token_lateness_max_seconds{") * 1e3,
    );
}

/// A conversation over a connection of its own. Nothing waits for the socket, so no token wakes the client.
struct Stream {
    socket: TcpStream,
    received: Vec<u8>,
    is_complete: bool,
}

impl Stream {
    fn open(address: SocketAddr, client_idx: usize) -> Self {
        let mut socket = TcpStream::connect(address).expect("the server accepts");
        let request = chat_request(client_idx, TOKENS_PER_STREAM);
        socket.write_all(request.as_bytes()).expect("the server reads");
        socket.set_nonblocking(true).expect("a socket can be read without waiting");
        Self { socket, received: Vec::new(), is_complete: false }
    }

    /// Takes what has arrived so far.
    fn read(&mut self) {
        while !self.is_complete {
            let mut buffer = [0; 16 << 10];
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("the server closed the stream: {}", String::from_utf8_lossy(&self.received)),
                Ok(n_read) => {
                    self.received.extend_from_slice(&buffer[..n_read]);
                    self.is_complete = is_complete(&self.received, n_read);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the server writes: {error}"),
            }
        }
    }
}

/// Returns the upper bound of the bucket that holds the quantile.
fn quantile_ms(page: &str, quantile: f64) -> f64 {
    let n_all = value(page, "mock_vllm:token_lateness_seconds_count{");
    let buckets = page.lines().filter(|line| line.starts_with("mock_vllm:token_lateness_seconds_bucket{"));
    let bucket = buckets.into_iter().find_map(|line| {
        let bound = line.split("le=\"").nth(1)?.split('"').next()?.parse().unwrap_or(f64::INFINITY);
        (number(line) >= quantile * n_all).then_some(bound)
    });
    bucket.expect("the last bucket holds all") * 1e3
}

fn value(page: &str, prefix: &str) -> f64 {
    number(page.lines().find(|line| line.starts_with(prefix)).expect("the metric is there"))
}

fn number(line: &str) -> f64 {
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a line ends with its value")
}
