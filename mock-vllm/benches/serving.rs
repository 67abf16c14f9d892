//! Figures of a whole server on this machine: how soon it is healthy, how many tokens it streams to 512 clients at
//! once, how much memory it takes, and what a hundred idle pods cost. The program runs over real sockets; clients and
//! server share the machine's cores.
#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock and spawns its clients")]

mod program;

use program::{Server, chat_request, count_tokens, is_complete};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

const N_CLIENTS: usize = 512;
/// Tokens per client, enough to make the start of the streams a small part.
const TOKENS_PER_CLIENT: usize = 400;
const N_STARTS: usize = 10;
const N_IDLE_PODS: usize = 100;
const IDLE_TIME: Duration = Duration::from_secs(10);

fn main() {
    start_to_health();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the runtime starts");
    streaming(&runtime);
    idle_pods();
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

/// Returns user and system time since the start, of all threads.
fn cpu_seconds(server: &Server) -> f64 {
    /// Value of `getconf CLK_TCK` on Linux.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = server.proc_file("stat");
    // The name is in parentheses and may contain spaces. After it, state is field 3, and the times are 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

fn idle_pods() {
    let server = Server::start(&format!("--pods {N_IDLE_PODS}"));
    let before = cpu_seconds(&server);
    std::thread::sleep(IDLE_TIME);
    let share = (cpu_seconds(&server) - before) / IDLE_TIME.as_secs_f64();
    println!(
        "{N_IDLE_PODS} idle pods: {:.0} MiB, {:.2} % of a core over {} s",
        server.memory_mib("VmRSS"),
        share * 100.0,
        IDLE_TIME.as_secs()
    );
}

/// Streams with so fast a virtual clock that the server itself is the limit.
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

/// Runs one conversation over a connection of its own, and returns the tokens that arrived.
async fn stream(address: SocketAddr, client_idx: usize) -> usize {
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("the server accepts");
    let request = chat_request(client_idx, TOKENS_PER_CLIENT);
    socket.write_all(request.as_bytes()).await.expect("the server reads");
    let (mut received, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        let n_read = socket.read(&mut buffer).await.expect("the server writes");
        assert!(n_read > 0, "the server closed the stream: {}", String::from_utf8_lossy(&received));
        received.extend_from_slice(&buffer[..n_read]);
        if is_complete(&received, n_read) {
            return count_tokens(&received);
        }
    }
}
