//! A broken proxy: HTTP/2 frames by the hundred thousand, on a connection of its own. Other connections are served, and
//! neither memory nor the processor is taken for long.

use std::time::Duration;

use crate::fixtures::http2::{Connection, Kind, Peer, Stream, frame, head, header_block, request_body};
use crate::fixtures::program::Program;
use crate::fixtures::until;

const N_FRAMES: u32 = 100_000;
/// Flags and codes of HTTP/2.
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;
/// Less than any flood takes that is read to its end.
const BUSY: Duration = Duration::from_millis(20);
/// More than the picker's heap takes while it reads any flood, and less than the frames would take if it kept them.
const MOST_BYTES: usize = 24 << 20;
const COMPLETION: &[u8] = br#"{"model":"m","prompt":"hello"}"#;
const HALF: usize = 10;
/// Time for which a flood waits to be read.
const PATIENCE: Duration = Duration::from_secs(2);

/// Memory bound for streams that are reset at once: 40,000 may wait to be accepted, and take about 1.2 kB each. All of the
/// flood's would take more than twice as much.
const MOST_BYTES_OF_RESETS: usize = 80 << 20;

/// Frames that a broken proxy sends.
struct Flood {
    name: &'static str,
    first: Vec<u8>,
    rest: Vec<u8>,
    outcome: Outcome,
    most_bytes: usize,
}

/// Outcome of a flood at the picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It reads all of it.
    Reads,
    /// It ends the connection.
    Closes,
}

fn floods() -> [Flood; 6] {
    let repeat = |frame: &dyn Fn(u32) -> Vec<u8>| (0..N_FRAMES).flat_map(frame).collect::<Vec<u8>>();
    let open = frame(Kind::Headers, END_HEADERS, 1, &header_block());
    // A header block without its end.
    let begun = frame(Kind::Headers, 0, 1, &header_block());
    let field = b"\x00\x01x\x01y";
    let reset = |idx: u32| {
        let stream = 2 * idx + 1;
        let headers = frame(Kind::Headers, END_HEADERS, stream, &header_block());
        [headers, frame(Kind::RstStream, 0, stream, &CANCEL.to_be_bytes())].concat()
    };
    let ping = |idx: u32| frame(Kind::Ping, 0, 0, &u64::from(idx).to_be_bytes());
    let flood = |name, first, rest, outcome| Flood { name, first, rest, outcome, most_bytes: MOST_BYTES };
    let settings = repeat(&|idx| frame(Kind::Settings, 0, 0, &settings(idx)));
    let resets = flood("RST_STREAM", Vec::new(), repeat(&reset), Outcome::Reads);
    [
        flood("PING", Vec::new(), repeat(&ping), Outcome::Reads),
        flood("SETTINGS", Vec::new(), settings, Outcome::Reads),
        flood(
            "CONTINUATION",
            begun.clone(),
            repeat(&|_| frame(Kind::Continuation, 0, 1, field)),
            Outcome::Closes,
        ),
        flood(
            "empty CONTINUATION",
            begun,
            repeat(&|_| frame(Kind::Continuation, 0, 1, b"")),
            Outcome::Closes,
        ),
        flood("empty DATA", open, repeat(&|_| frame(Kind::Data, 0, 1, b"")), Outcome::Closes),
        Flood { most_bytes: MOST_BYTES_OF_RESETS, ..resets },
    ]
}

/// Another first window each time, which all streams would have to follow.
fn settings(idx: u32) -> Vec<u8> {
    [&4_u16.to_be_bytes()[..], &(65_535 + idx % 2).to_be_bytes()].concat()
}

async fn half_sent(connection: &Connection) -> Stream {
    let mut stream = connection.stream().await;
    stream.send(head());
    stream.send(request_body(&COMPLETION[..HALF], false));
    stream
}

/// Waits until the program computes nothing any more.
async fn until_idle(program: &Program) {
    until(async || {
        let before = program.cpu();
        tokio::time::sleep(Duration::from_millis(300)).await;
        program.cpu() - before < Duration::from_millis(60)
    })
    .await;
}

/// Sends the flood on a connection of its own, half of it while answers are read.
async fn attack(program: &Program, flood: &Flood) {
    let Flood { name, first, rest, outcome, .. } = flood;
    let before = program.cpu();
    let mut peer = Peer::connect(program.address("grpc")).await;
    peer.write(first, PATIENCE).await;
    let (read, unread) = rest.split_at(rest.len() / N_FRAMES as usize * (N_FRAMES as usize / 2));
    peer.write_and_read(read, PATIENCE).await;
    peer.write(unread, PATIENCE).await;
    until_idle(program).await;
    match outcome {
        Outcome::Reads => assert!(program.cpu() - before > BUSY, "{name}: the flood was not read"),
        Outcome::Closes => assert!(peer.is_closed().await, "{name}: the connection goes on"),
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn floods_of_frames_take_neither_memory_nor_other_connections() {
    if test_skips::skips_slow() {
        return;
    }
    let program = Program::start(1024);
    let at_rest = program.peak_bytes();
    let others = Connection::open(program.address("grpc")).await;
    for flood in floods() {
        let mut half_sent = half_sent(&others).await;
        let (mut others_during, attack) = (others.stream().await, attack(&program, &flood));
        let during = async {
            others_during.send(head());
            others_during.send(request_body(COMPLETION, true));
            others_during.expect_pick(flood.name).await;
        };
        tokio::join!(attack, during);
        half_sent.send(request_body(&COMPLETION[HALF..], true));
        half_sent.expect_pick(flood.name).await;
        let taken = program.peak_bytes() - at_rest;
        assert!(taken < flood.most_bytes, "{}: {taken} bytes", flood.name);
    }
}

/// The control: what the picker does keep is seen.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_body_that_is_kept_is_seen_in_memory() {
    if test_skips::skips_slow() {
        return;
    }
    let program = Program::start(1024);
    let connection = Connection::open(program.address("grpc")).await;
    let mut stream = connection.stream().await;
    let before = program.resident_bytes();
    stream.send(head());
    let chunk = vec![b' '; 1 << 20];
    (0..30).for_each(|_| stream.send(request_body(&chunk, false)));
    until(async || program.resident_bytes() > before + MOST_BYTES).await;
}
