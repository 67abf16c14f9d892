//! ZMTP 3.1 (rfc.zeromq.org/spec/37) as far as a PUB and a ROUTER socket need it: greeting, NULL handshake, frames and
//! commands. It handles only bytes; the owner of the connection reads and writes them.
//!
//! The `zeromq` crate 0.7 was measured and not used: it takes 3.9 MB per idle PUB socket, has a fixed high-water mark
//! and does not count what it drops, has no `tcp://*` and no reconnecting PUB, and disconnects at libzmq's heartbeats.

use bytes::{Buf, Bytes, BytesMut};

/// Longest frame. Subscriptions and replay requests are short: a longer frame is not from a subscriber.
const MAX_FRAME: usize = 64 * 1024;
/// Most frames of a message: an empty frame and a sequence number, with room for requests that get a polite refusal.
const MAX_PARTS: usize = 8;

const GREETING_LEN: usize = 64;
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketType {
    Pub,
    Router,
}

/// Message or command of a peer after the handshake.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PeerInput {
    /// All frames of a message.
    Message(Vec<Bytes>),
    Subscribe(Bytes),
    Cancel(Bytes),
    /// Context to send back.
    Ping(Bytes),
    /// A command that needs no reaction.
    Other,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ZmtpError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("the peer closed the connection during the handshake")]
    ClosedEarly,
    #[error("the peer speaks no ZMTP 3")]
    NotZmtp3,
    #[error("the peer wants the security mechanism {0:?}, only NULL is offered")]
    Mechanism(String),
    #[error("the peer's socket type {0:?} does not fit")]
    PeerSocketType(String),
    #[error("malformed {0}")]
    Malformed(&'static str),
    #[error("{0} exceeds its limit")]
    TooLong(&'static str),
}

/// Splits received bytes into messages and commands.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    pub(super) buffer: BytesMut,
    /// Frames of a message whose last one has not arrived.
    parts: Vec<Bytes>,
}

#[derive(Debug)]
struct Frame {
    flags: u8,
    body: Bytes,
}

/// Returns the greeting: version 3.1, mechanism NULL, no server role.
pub(super) fn greeting() -> [u8; GREETING_LEN] {
    let mut greeting = [0; GREETING_LEN];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[11] = 1;
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Appends one frame of a message.
pub(super) fn frame(out: &mut Vec<u8>, body: &[u8]) {
    head(out, 0, body.len());
    out.extend(body);
}

/// Appends one frame of a message that is not its last.
pub(super) fn frame_more(out: &mut Vec<u8>, body: &[u8]) {
    head(out, MORE, body.len());
    out.extend(body);
}

pub(super) fn ready(out: &mut Vec<u8>, socket_type: SocketType) {
    let name = socket_type.name();
    let mut body = b"\x05READY\x0bSocket-Type".to_vec();
    body.extend((u32::try_from(name.len()).expect("a socket type is a short word")).to_be_bytes());
    body.extend(name.bytes());
    command(out, &body);
}

pub(super) fn pong(out: &mut Vec<u8>, context: &[u8]) {
    command(out, &[b"\x04PONG", context].concat());
}

fn command(out: &mut Vec<u8>, body: &[u8]) {
    head(out, COMMAND, body.len());
    out.extend(body);
}

fn head(out: &mut Vec<u8>, flags: u8, len: usize) {
    match u8::try_from(len) {
        Ok(len) => out.extend([flags, len]),
        Err(_) => {
            out.push(flags | LONG);
            out.extend((len as u64).to_be_bytes());
        }
    }
}

// === impl SocketType ===

impl SocketType {
    fn name(self) -> &'static str {
        match self {
            Self::Pub => "PUB",
            Self::Router => "ROUTER",
        }
    }

    fn fits(self, peer: &[u8]) -> bool {
        match self {
            Self::Pub => matches!(peer, b"SUB" | b"XSUB"),
            Self::Router => matches!(peer, b"REQ" | b"DEALER" | b"ROUTER"),
        }
    }
}

// === impl Decoder ===

impl Decoder {
    /// Takes the peer's greeting; `None` if it has not arrived completely.
    pub(super) fn take_greeting(&mut self) -> Result<Option<()>, ZmtpError> {
        if self.buffer.first().is_some_and(|first| *first != 0xff) {
            return Err(ZmtpError::NotZmtp3);
        }
        if self.buffer.len() < GREETING_LEN {
            return Ok(None);
        }
        let greeting = self.buffer.split_to(GREETING_LEN);
        if greeting[9] & 1 == 0 || greeting[10] < 3 {
            return Err(ZmtpError::NotZmtp3);
        }
        let mechanism = greeting[12..32].split(|byte| *byte == 0).next().unwrap_or_default();
        if mechanism != b"NULL" {
            return Err(ZmtpError::Mechanism(String::from_utf8_lossy(mechanism).into_owned()));
        }
        Ok(Some(()))
    }

    /// Takes the peer's READY and checks that its socket fits; `None` if it has not arrived completely.
    pub(super) fn take_ready(&mut self, own: SocketType) -> Result<Option<()>, ZmtpError> {
        let Some(Frame { flags, body }) = self.take_frame()? else { return Ok(None) };
        let mut properties = body
            .strip_prefix(b"\x05READY")
            .filter(|_| flags & COMMAND != 0)
            .ok_or(ZmtpError::Malformed("READY"))?;
        let mut peer = &b""[..];
        while !properties.is_empty() {
            let (name, value) = take_property(&mut properties).ok_or(ZmtpError::Malformed("READY"))?;
            if name.eq_ignore_ascii_case(b"Socket-Type") {
                peer = value;
            }
        }
        if own.fits(peer) {
            Ok(Some(()))
        } else {
            Err(ZmtpError::PeerSocketType(String::from_utf8_lossy(peer).into_owned()))
        }
    }

    /// Takes the next message or command; `None` if it has not arrived completely.
    pub(super) fn take_incoming(&mut self) -> Result<Option<PeerInput>, ZmtpError> {
        while let Some(Frame { flags, body }) = self.take_frame()? {
            if flags & COMMAND != 0 {
                return read_command(body).map(Some);
            }
            if self.parts.len() == MAX_PARTS {
                return Err(ZmtpError::TooLong("message"));
            }
            self.parts.push(body);
            if flags & MORE == 0 {
                return Ok(Some(PeerInput::Message(std::mem::take(&mut self.parts))));
            }
        }
        Ok(None)
    }

    fn take_frame(&mut self) -> Result<Option<Frame>, ZmtpError> {
        let (flags, n_head, len) = match *self.buffer {
            [flags, len, ..] if flags & LONG == 0 => (flags, 2, u64::from(len)),
            [flags, a, b, c, d, e, f, g, h, ..] => (flags, 9, u64::from_be_bytes([a, b, c, d, e, f, g, h])),
            _ => return Ok(None),
        };
        let len =
            usize::try_from(len).ok().filter(|len| *len <= MAX_FRAME).ok_or(ZmtpError::TooLong("frame"))?;
        if self.buffer.len() < n_head + len {
            return Ok(None);
        }
        self.buffer.advance(n_head);
        Ok(Some(Frame { flags, body: self.buffer.split_to(len).freeze() }))
    }
}

fn read_command(mut body: Bytes) -> Result<PeerInput, ZmtpError> {
    let n_name = usize::from(*body.first().ok_or(ZmtpError::Malformed("command"))?);
    if body.len() <= n_name {
        return Err(ZmtpError::Malformed("command"));
    }
    let name = body.split_to(1 + n_name);
    match &name[1..] {
        b"SUBSCRIBE" => Ok(PeerInput::Subscribe(body)),
        b"CANCEL" => Ok(PeerInput::Cancel(body)),
        // Two bytes of time to live come first.
        b"PING" if body.len() >= 2 => Ok(PeerInput::Ping(body.split_off(2))),
        b"PING" => Err(ZmtpError::Malformed("PING")),
        _ => Ok(PeerInput::Other),
    }
}

/// Takes a property: a name with a length of one byte, and a value with a length of four.
fn take_property<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (n_name, after) = rest.split_first()?;
    let (name, after) = after.split_at_checked(usize::from(*n_name))?;
    let (n_value, after) = after.split_first_chunk::<4>()?;
    let (value, after) = after.split_at_checked(u32::from_be_bytes(*n_value) as usize)?;
    *rest = after;
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::{Decoder, MAX_FRAME, PeerInput, SocketType, frame, frame_more, greeting, pong, ready};
    use bytes::Bytes;

    fn decoder(bytes: &[u8]) -> Decoder {
        let mut decoder = Decoder::default();
        decoder.buffer.extend_from_slice(bytes);
        decoder
    }

    #[track_caller]
    fn check_error(bytes: &[u8], expected: &str) {
        let error = decoder(bytes).take_incoming().unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn reads_what_it_writes_byte_by_byte() {
        let mut wire = Vec::new();
        frame_more(&mut wire, b"");
        frame_more(&mut wire, &[7; 300]);
        frame(&mut wire, b"end");
        let mut decoder = Decoder::default();
        for byte in &wire[..wire.len() - 1] {
            decoder.buffer.extend_from_slice(&[*byte]);
            assert_eq!(decoder.take_incoming().unwrap(), None);
        }
        decoder.buffer.extend_from_slice(&wire[wire.len() - 1..]);
        let parts = vec![Bytes::new(), Bytes::from(vec![7; 300]), Bytes::from_static(b"end")];
        assert_eq!(decoder.take_incoming().unwrap(), Some(PeerInput::Message(parts)));
        assert_eq!(decoder.take_incoming().unwrap(), None);
    }

    #[test]
    fn handshakes_with_a_socket_that_fits() {
        let mut wire = greeting().to_vec();
        ready(&mut wire, SocketType::Router);
        let mut router = decoder(&wire);
        router.take_greeting().unwrap().unwrap();
        // A router accepts another router.
        router.take_ready(SocketType::Router).unwrap().unwrap();
        let mut publisher = decoder(&wire);
        publisher.take_greeting().unwrap().unwrap();
        let error = publisher.take_ready(SocketType::Pub).unwrap_err();
        assert_eq!(error.to_string(), "the peer's socket type \"ROUTER\" does not fit");
        assert_eq!(decoder(&wire[..63]).take_greeting().unwrap(), None);
    }

    #[test]
    fn refuses_other_protocols_and_mechanisms() {
        let error = decoder(b"GET / HTTP/1.1\r\n").take_greeting().unwrap_err();
        assert_eq!(error.to_string(), "the peer speaks no ZMTP 3");
        let mut old = greeting();
        old[10] = 1;
        assert!(decoder(&old).take_greeting().is_err());
        let mut curve = greeting();
        curve[12..17].copy_from_slice(b"CURVE");
        let error = decoder(&curve).take_greeting().unwrap_err();
        assert_eq!(
            error.to_string(),
            "the peer wants the security mechanism \"CURVE\", only NULL is offered"
        );
    }

    #[test]
    fn commands_subscribe_cancel_and_ping() {
        let read = |body: &[u8]| decoder(body).take_incoming().unwrap().unwrap();
        assert_eq!(read(b"\x04\x0b\x09SUBSCRIBEt"), PeerInput::Subscribe(Bytes::from_static(b"t")));
        assert_eq!(read(b"\x04\x07\x06CANCEL"), PeerInput::Cancel(Bytes::new()));
        assert_eq!(read(b"\x04\x09\x04PING\x00\x01hi"), PeerInput::Ping(Bytes::from_static(b"hi")));
        let mut answer = Vec::new();
        pong(&mut answer, b"hi");
        assert_eq!(answer, b"\x04\x07\x04PONGhi");
        assert_eq!(read(&answer), PeerInput::Other);
    }

    #[test]
    fn bounds_what_a_peer_may_send() {
        let mut wire = vec![2];
        wire.extend((MAX_FRAME as u64 + 1).to_be_bytes());
        check_error(&wire, "frame exceeds its limit");
        check_error(&[1, 0].repeat(9), "message exceeds its limit");
        check_error(&[4, 0], "malformed command");
        check_error(&[4, 3, 9, 0, 0], "malformed command");
        check_error(b"\x04\x05\x04PING", "malformed PING");
    }
}
