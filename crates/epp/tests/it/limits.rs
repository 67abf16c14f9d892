//! Bodies of any size and cut: which pass, which are refused, and how much memory they take.

use bytes::{Bytes, BytesMut};
use envoy_proto::service::ext_proc::v3::ProcessingResponse;
use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use ext_proc::reply::MAX_CHUNK;
use ext_proc::rewrite::Pieces;

use crate::conversation::{Mode, body, body_of, exchange, post, step};

const MIB: usize = 1 << 20;
/// Default of `--max-body-bytes`.
const LIMIT: usize = 64 * MIB;

/// A request of exactly `n_bytes`.
fn request(n_bytes: usize) -> String {
    let (head, tail) = (r#"{"model":"alias","prompt":""#, r#""}"#);
    format!("{head}{}{tail}", "x".repeat(n_bytes - head.len() - tail.len()))
}

/// The answers to a body that arrives in chunks of `size`.
fn send(mode: Mode, max_body_bytes: usize, text: &str, size: usize) -> Vec<ProcessingResponse> {
    let mut exchange = exchange(max_body_bytes);
    let mut answers = step(&mut exchange, mode, post()).unwrap();
    for start in (0..text.len()).step_by(size) {
        let end = (start + size).min(text.len());
        let chunk = body(&text[start..end], end == text.len());
        answers.extend(step(&mut exchange, mode, chunk).unwrap());
    }
    answers
}

fn refused(answers: &[ProcessingResponse]) -> Option<(i32, String)> {
    answers.iter().find_map(|answer| match answer.response.as_ref().unwrap() {
        Response::ImmediateResponse(refusal) => {
            Some((refusal.status.unwrap().code, String::from_utf8_lossy(&refusal.body).into_owned()))
        }
        _ => None,
    })
}

/// The chunks that go on: their lengths, their bytes together, and their end-of-stream flags.
fn sent_on(answers: &[ProcessingResponse]) -> (Vec<usize>, Vec<u8>, Vec<bool>) {
    let (mut lengths, mut text, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for answer in answers {
        let Some(Response::RequestBody(body)) = &answer.response else { continue };
        let mutation = body.response.as_ref().unwrap().body_mutation.as_ref().unwrap().mutation.as_ref();
        let Some(Mutation::StreamedResponse(chunk)) = mutation else { panic!("not a chunk: {mutation:?}") };
        lengths.push(chunk.body.len());
        text.extend_from_slice(&chunk.body);
        ends.push(chunk.end_of_stream);
    }
    (lengths, text, ends)
}

#[test]
fn messages_are_full_but_for_the_last() {
    for (n_bytes, expected) in [
        (0, vec![0]),
        (1, vec![1]),
        (MAX_CHUNK - 1, vec![MAX_CHUNK - 1]),
        (MAX_CHUNK, vec![MAX_CHUNK]),
        (MAX_CHUNK + 1, vec![MAX_CHUNK, 1]),
        (2 * MAX_CHUNK + 500, vec![MAX_CHUNK, MAX_CHUNK, 500]),
    ] {
        let text: Vec<u8> = (0..n_bytes).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for size in [usize::MAX, 65_536, 61_999, 16_384, 7] {
            let pieces = text.chunks(size).map(Bytes::copy_from_slice).collect();
            let messages = Pieces::new(pieces).into_messages(true);
            assert_eq!(messages.iter().map(|message| message.body.len()).collect::<Vec<_>>(), expected);
            let ends: Vec<bool> = messages.iter().map(|message| message.end_of_stream).collect();
            assert_eq!(ends.iter().filter(|end| **end).count(), 1);
            assert_eq!(ends.last(), Some(&true));
            assert!(messages.iter().flat_map(|message| &message.body).eq(&text), "the bytes changed");
        }
    }
}

#[test]
fn the_largest_body_goes_on_and_one_byte_more_is_refused() {
    if test_skips::skips_slow() {
        return;
    }
    let text = request(LIMIT);
    let answers = send(Mode::FULL_DUPLEX, LIMIT, &text, 65_536);
    let (lengths, sent, ends) = sent_on(&answers);
    assert!(
        sent == text.replacen(r#""alias""#, r#""target \"model\"""#, 1).into_bytes(),
        "other bytes changed"
    );
    assert!(lengths.iter().rev().skip(1).all(|length| *length == MAX_CHUNK));
    assert_eq!(ends.iter().position(|end| *end), Some(lengths.len() - 1));
    let answers = send(Mode::FULL_DUPLEX, LIMIT, &request(LIMIT + 1), 65_536);
    let (code, body) = refused(&answers).expect("a refusal");
    assert_eq!(code, 413);
    assert!(body.contains("the body is longer than 67108864 bytes"), "{body}");
    assert_eq!(sent_on(&answers).0, [0; 0]);
}

/// Most memory that a body takes on its way through, and the answers.
fn peak(mode: Mode, limit: usize, text: &str, size: usize) -> (u64, Vec<ProcessingResponse>) {
    let mut answers = Vec::new();
    let allocations = allocation_counter::measure(|| answers = send(mode, limit, text, size));
    (allocations.bytes_max, answers)
}

#[test]
fn a_body_that_trickles_in_takes_no_more_memory() {
    if test_skips::skips_slow() {
        return;
    }
    let text = request(MIB);
    let (at_once, _) = peak(Mode::FULL_DUPLEX, MIB, &text, 65_536);
    let (trickling, answers) = peak(Mode::FULL_DUPLEX, MIB, &text, 1);
    assert!(trickling < 2 * at_once, "{trickling} bytes, and {at_once} in large chunks");
    assert_eq!(refused(&answers), None);
    // If every chunk is answered, the answers count too.
    let (trickling, answers) = peak(Mode::STREAMED_AHEAD, MIB, &text, 1);
    assert_eq!(refused(&answers).unwrap().0, 413);
    assert!(trickling < 2 * at_once, "{trickling} bytes, and {at_once} in large chunks");
    assert_eq!(refused(&peak(Mode::STREAMED_AHEAD, MIB, &text, 65_536).1), None);
}

/// Memory that is used when all of a body but its end has arrived in chunks of `size`. The chunks are those of a
/// stream's reader: each is a slice of a buffer that was grown for it.
fn held(mode: Mode, n_bytes: usize, size: usize) -> u64 {
    let text = request(n_bytes);
    let mut exchange = exchange(n_bytes);
    let mut messages = Vec::new();
    let allocations = allocation_counter::measure(|| {
        messages.push(step(&mut exchange, mode, post()).unwrap());
        for chunk in text.as_bytes()[..n_bytes - 1].chunks(size) {
            let mut buffer = BytesMut::with_capacity(2 * size);
            buffer.extend_from_slice(chunk);
            messages.push(step(&mut exchange, mode, body_of(buffer.freeze())).unwrap());
        }
    });
    assert!(messages.iter().all(Vec::is_empty), "answered before the end");
    u64::try_from(allocations.bytes_current).unwrap()
}

#[test]
fn a_body_that_is_not_complete_takes_about_its_length() {
    for (mode, size) in [
        (Mode::FULL_DUPLEX, 4_000),
        (Mode::FULL_DUPLEX, 16_384),
        (Mode::FULL_DUPLEX, 65_536),
        (Mode::FULL_DUPLEX, 300_000),
        (Mode::STREAMED_AHEAD, 16_384),
    ] {
        let held = held(mode, 4 * MIB, size);
        assert!(held >= 4 * MIB as u64 - 1, "{held} bytes cannot be the body");
        assert!(held < 4 * MIB as u64 * 21 / 20, "{held} bytes in chunks of {size}, {mode:?}");
    }
}

#[test]
fn bombs_are_refused_with_a_reason() {
    let deep = format!(r#"{{"model":"m","prompt":{}"#, "[".repeat(MIB));
    let long_name = format!(r#"{{"model":"{}","prompt":"p"}}"#, "m".repeat(MIB));
    let mut two_documents = request(MIB);
    two_documents.push('\u{1}');
    for (text, expected) in [
        (deep, "the body is nested more than 128 levels deep at byte 149"),
        (long_name, "the field `model` is longer than 1024 bytes"),
        (two_documents, "more than one document at byte 1048576"),
    ] {
        let (peak, answers) = peak(Mode::FULL_DUPLEX, LIMIT, &text, 16_384);
        let (code, body) = refused(&answers).expect("a refusal");
        assert_eq!(code, 400);
        assert!(body.contains(expected), "{body}");
        assert!(peak < 4 * MIB as u64, "{peak} bytes");
    }
}
