//! Server-sent events as they arrive: splits a byte stream into `data:` frames and keeps the time when each was
//! complete.
//! It accepts only what vLLM writes: one `data: ` line per frame, a blank line after it, and comments.

use std::time::Duration;

use thiserror::Error;

/// Bytes of the longest frame, so that a server which never ends a frame cannot fill the memory. vLLM's frames are a
/// few hundred bytes.
const MAX_FRAME_BYTES: usize = 1 << 20;

/// One `data:` frame, and the time from sending the request to its arrival.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub data: String,
    pub at: Duration,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum SseError {
    #[error("line `{0}` is neither a `data: ` line nor a comment")]
    UnknownLine(String),
    #[error("a frame has more than one data line")]
    SeveralDataLines,
    #[error("a frame is not UTF-8")]
    NotUtf8,
    #[error("the stream ends inside a frame: `{0}`")]
    Truncated(String),
    #[error("a frame exceeds {MAX_FRAME_BYTES} bytes")]
    TooLong,
}

/// Collects the frames of one response.
#[derive(Debug, Default)]
pub struct SseReader {
    pending: Vec<u8>,
    frames: Vec<Frame>,
}

impl SseReader {
    /// Takes the bytes that arrived at `at`. A frame's time is that of the bytes that complete it.
    pub fn push(&mut self, bytes: &[u8], at: Duration) -> Result<(), SseError> {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = find_blank_line(&self.pending) {
            let block: Vec<u8> = self.pending.drain(..end + 2).collect();
            let block = std::str::from_utf8(&block[..end]).map_err(|_| SseError::NotUtf8)?;
            if let Some(data) = read_block(block)? {
                self.frames.push(Frame { data: data.to_owned(), at });
            }
        }
        if self.pending.len() > MAX_FRAME_BYTES {
            return Err(SseError::TooLong);
        }
        Ok(())
    }

    /// Returns the frames. The stream is over, so an unfinished frame is an error.
    pub fn finish(self) -> Result<Vec<Frame>, SseError> {
        if !self.pending.is_empty() {
            return Err(SseError::Truncated(String::from_utf8_lossy(&self.pending).into_owned()));
        }
        Ok(self.frames)
    }
}

fn find_blank_line(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|pair| pair == b"\n\n")
}

/// Returns the data of one block of lines; `None` for a block of comments.
fn read_block(block: &str) -> Result<Option<&str>, SseError> {
    let mut data = None;
    for line in block.split('\n') {
        match line.strip_prefix("data: ") {
            Some(_) if data.is_some() => return Err(SseError::SeveralDataLines),
            Some(text) => data = Some(text),
            None if line.starts_with(':') => {}
            None => return Err(SseError::UnknownLine(line.to_owned())),
        }
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Frame, SseError, SseReader};

    fn read(pieces: &[&str]) -> Result<Vec<Frame>, SseError> {
        let mut reader = SseReader::default();
        for (piece, millis) in pieces.iter().zip(1..) {
            reader.push(piece.as_bytes(), Duration::from_millis(millis))?;
        }
        reader.finish()
    }

    fn frame(data: &str, millis: u64) -> Frame {
        Frame { data: data.to_owned(), at: Duration::from_millis(millis) }
    }

    #[test]
    fn a_frame_arrives_with_the_bytes_that_complete_it() {
        let frames = read(&["data: a\n\ndata: ", "b\n", "\n: ping\n\ndata: [DONE]\n\n"]);
        assert_eq!(frames, Ok(vec![frame("a", 1), frame("b", 3), frame("[DONE]", 3)]));
    }

    #[test]
    fn what_is_not_an_event_stream_is_refused() {
        let cases = [
            (vec!["event: x\ndata: a\n\n"], SseError::UnknownLine("event: x".to_owned())),
            (vec!["data: a\ndata: b\n\n"], SseError::SeveralDataLines),
            (vec!["data: a\n\ndata: b\n"], SseError::Truncated("data: b\n".to_owned())),
            (vec!["data:a\n\n"], SseError::UnknownLine("data:a".to_owned())),
        ];
        for (pieces, expected) in cases {
            assert_eq!(read(&pieces), Err(expected));
        }
    }

    #[test]
    fn an_endless_frame_is_cut_off() {
        let long = "x".repeat(super::MAX_FRAME_BYTES + 1);
        assert_eq!(read(&[&long]), Err(SseError::TooLong));
    }
}
