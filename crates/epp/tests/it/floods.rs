//! Floods that one client can make the proxy send, cut however finely: no other stream of the connection suffers.

use std::net::SocketAddr;

use bytes::Bytes;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use h2::Reason;

use crate::fixtures::http2::{Connection, head, request_body, response_body, response_head};
use crate::fixtures::{Picker, Scenario, until};

const N_OTHERS: usize = 16;
/// Length of the body that is cut.
const BODY_BYTES: usize = 65_535;
/// Number of tiny chunks in a response.
const N_CHUNKS: usize = 20_000;

/// A completion of exactly `n_bytes`.
fn completion(n_bytes: usize) -> Vec<u8> {
    let (head, tail) = (r#"{"model":"/model/qwen","prompt":""#, r#""}"#);
    format!("{head}{}{tail}", "x".repeat(n_bytes - head.len() - tail.len())).into_bytes()
}

/// The body of a request in chunks of `size`, one per message.
fn cut(text: &[u8], size: usize) -> Vec<Bytes> {
    let n_chunks = text.len().div_ceil(size);
    text.chunks(size).enumerate().map(|(idx, chunk)| request_body(chunk, idx + 1 == n_chunks)).collect()
}

/// Runs `flood` on a connection on which other requests are half sent, then completes those; each must be answered.
async fn others_survive(
    what: &str,
    open: impl AsyncFnOnce(SocketAddr) -> Connection,
    flood: impl AsyncFnOnce(&Picker, &Connection),
) {
    let picker = Scenario::new(2).start().await;
    let connection = open(picker.ports.grpc).await;
    let text = completion(500);
    let (begin, end) = text.split_at(250);
    let mut others = Vec::new();
    for _ in 0..N_OTHERS {
        let mut stream = connection.stream().await;
        stream.send(head());
        stream.send(request_body(begin, false));
        others.push(stream);
    }
    flood(&picker, &connection).await;
    for (idx, other) in others.iter_mut().enumerate() {
        other.send(request_body(end, true));
        other.expect_pick(&format!("{what}: other stream {idx}")).await;
    }
}

/// Sends a whole request on one stream, in `frames`, as fast as the connection takes them.
async fn send_frames(connection: &Connection, what: &str, frames: impl IntoIterator<Item = Bytes>) {
    let mut stream = connection.stream().await;
    frames.into_iter().for_each(|frame| stream.send(frame));
    stream.expect_pick(what).await;
}

#[tokio::test]
async fn a_body_of_tiny_chunks_cuts_nobody_else() {
    if test_skips::skips_slow() {
        return;
    }
    // Control: chunks of 1,000 bytes never do harm.
    for size in [1_000, 16, 1] {
        let what = format!("chunks of {size}");
        others_survive(&what, Connection::open, async |_, connection| {
            let messages = [head()].into_iter().chain(cut(&completion(BODY_BYTES), size));
            send_frames(connection, &what, messages).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_response_of_tiny_chunks_cuts_nobody_else() {
    others_survive("tiny response chunks", Connection::open, async |_, connection| {
        let mut stream = connection.stream().await;
        stream.send(head());
        stream.send(request_body(&completion(500), true));
        stream.expect_pick("the request").await;
        stream.send(response_head());
        let chunk = response_body(b"x");
        (0..N_CHUNKS).for_each(|_| stream.send(chunk.clone()));
        let mut n_chunks = 0;
        while n_chunks < N_CHUNKS {
            let answer = stream.answer().await.unwrap().expect("the stream goes on");
            n_chunks += usize::from(matches!(answer.response, Some(Response::ResponseBody(_))));
        }
    })
    .await;
}

#[tokio::test]
async fn messages_in_other_frames_than_their_own_cut_nobody_else() {
    if test_skips::skips_slow() {
        return;
    }
    // Many messages in a frame, and a message in as many frames as it has bytes.
    others_survive("messages in one frame", Connection::open, async |_, connection| {
        let messages: Vec<Bytes> = [head()].into_iter().chain(cut(&completion(BODY_BYTES), 1)).collect();
        send_frames(connection, "messages in one frame", [messages.concat().into()]).await;
    })
    .await;
    others_survive("frames of a byte", Connection::open, async |_, connection| {
        let whole = request_body(&completion(BODY_BYTES), true);
        let frames = (0..whole.len()).map(|idx| whole.slice(idx..idx + 1));
        send_frames(connection, "frames of a byte", [head()].into_iter().chain(frames)).await;
    })
    .await;
}

#[tokio::test]
async fn requests_that_clients_give_up_at_once_cut_nobody_else() {
    others_survive("streams that are reset", Connection::relayed, async |_, connection| {
        connection.corked.send_replace(true);
        let mut given_up = Vec::new();
        for _ in 0..2_000 {
            given_up.push(connection.stream().await);
        }
        connection.flush().await;
        given_up.iter_mut().for_each(|stream| stream.frames.send_reset(Reason::CANCEL));
        connection.flush().await;
        connection.corked.send_replace(false);
    })
    .await;
}

#[tokio::test]
async fn streams_that_the_picker_ended_while_more_came_cut_nobody_else() {
    others_survive("streams that end early", Connection::relayed, async |picker, connection| {
        connection.deaf.send_replace(true);
        let mut ended = Vec::new();
        for _ in 0..1_500 {
            let mut stream = connection.stream().await;
            // A body without headers breaks the protocol, so the picker ends the stream.
            stream.send(request_body(b"x", false));
            ended.push(stream);
        }
        let open = format!("epp_streams {N_OTHERS}");
        until(async || picker.metrics().await.lines().any(|line| line == open)).await;
        ended.iter_mut().for_each(|stream| stream.send(request_body(b"x", false)));
        connection.flush().await;
        connection.deaf.send_replace(false);
        for stream in &mut ended {
            assert!(!matches!(stream.answer().await, Ok(Some(_))));
        }
    })
    .await;
}
