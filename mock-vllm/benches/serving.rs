//! What a whole server does on this machine: how soon it is healthy, how many tokens it streams to 512 clients at once, and
//! how much memory it takes. The program itself over real sockets; clients and server share the machine's cores.
#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock and spawns its clients")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

const N_CLIENTS: usize = 512;
/// Enough that start-up of the streams is a small part.
const TOKENS_PER_CLIENT: usize = 400;
const N_STARTS: usize = 10;
/// In a bucket of its own in every frame that carries a token.
const TOKEN_FRAME: &[u8] = b"\"delta\":{\"content\"";
const LAST_FRAME: &[u8] = b"data: [DONE]";

/// Killed when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    /// The address is read from the log; then polls `/health` until it answers 200.
    fn start(flags: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mock-vllm"))
            .args(["serve", "Qwen/Qwen2.5-7B-Instruct", "--host", "127.0.0.1", "--port", "0"])
            .args(flags.split_whitespace())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut log = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).expect("the log is text") > 0, "the server ended");
            if let Some((_, rest)) = line.split_once("127.0.0.1:") {
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break format!("127.0.0.1:{port}").parse().expect("the log names the address");
            }
        };
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let server = Self { child, address };
        while !server.is_healthy() {}
        server
    }

    fn is_healthy(&self) -> bool {
        let Ok(mut socket) = TcpStream::connect(self.address) else { return false };
        let request = b"GET /health HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n";
        let mut answer = String::new();
        socket.write_all(request).is_ok()
            && socket.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    /// A line of /proc/PID/status in MiB.
    fn memory_mib(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.map_or(f64::NAN, |kib| kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn main() {
    start_to_health();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the runtime starts");
    streaming(&runtime);
}

fn start_to_health() {
    let mut times: Vec<Duration> = (0..N_STARTS)
        .map(|_| {
            let start = Instant::now();
            let _server = Server::start("");
            start.elapsed()
        })
        .collect();
    times.sort();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "start to /health 200: median {:.0} ms, slowest of {N_STARTS} {:.0} ms",
        milliseconds(times[N_STARTS / 2]),
        milliseconds(times[N_STARTS - 1])
    );
}

/// The virtual clock runs so fast that the server itself is what limits it.
fn streaming(runtime: &tokio::runtime::Runtime) {
    let server =
        Server::start("--max-num-seqs 512 --time-scale 1000 --jitter 0 --log-filter warn,mock_vllm=info");
    let idle = server.memory_mib("VmRSS");
    let start = Instant::now();
    let n_tokens: usize = runtime.block_on(async {
        let mut clients = JoinSet::new();
        (0..N_CLIENTS).for_each(|client_idx| {
            clients.spawn(stream(server.address, client_idx));
        });
        clients.join_all().await.into_iter().sum()
    });
    let elapsed = start.elapsed().as_secs_f64();
    assert_eq!(n_tokens, N_CLIENTS * TOKENS_PER_CLIENT, "every token came");
    println!(
        "streaming to {N_CLIENTS} clients: {n_tokens} tokens in {elapsed:.2} s = {:.0} tokens/s; \
         memory {idle:.0} MiB idle, {:.0} MiB at most",
        n_tokens as f64 / elapsed,
        server.memory_mib("VmHWM")
    );
}

/// One conversation over a connection of its own; the tokens that came.
async fn stream(address: SocketAddr, client_idx: usize) -> usize {
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("the server accepts");
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"I am client {client_idx}."}}],"max_tokens":{TOKENS_PER_CLIENT},"ignore_eos":true,"stream":true}}"#
    );
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.expect("the server reads");
    let (mut received, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        let n_read = socket.read(&mut buffer).await.expect("the server writes");
        assert!(n_read > 0, "the server closed the stream: {}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&buffer[..n_read]);
        let tail = &received[received.len().saturating_sub(n_read + LAST_FRAME.len())..];
        if count(tail, LAST_FRAME) > 0 {
            return count(&received, TOKEN_FRAME);
        }
    }
}

fn count(text: &[u8], word: &[u8]) -> usize {
    text.windows(word.len()).filter(|window| *window == word).count()
}
