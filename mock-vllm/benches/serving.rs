//! What a whole server does on this machine: how soon it is healthy, how many tokens it streams to 512 clients at once, and
//! how much memory it takes. The program itself over real sockets; clients and server share the machine's cores.
#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock and spawns its clients")]

mod program;

use program::{Server, stream};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

const N_CLIENTS: usize = 512;
/// Enough that start-up of the streams is a small part.
const TOKENS_PER_CLIENT: usize = 400;
const N_STARTS: usize = 10;

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
            clients.spawn(stream(server.address, client_idx, TOKENS_PER_CLIENT));
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
