//! Asks an engine for past messages.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use tokio::time::timeout;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::wire::{self, Message};

/// Number of the message that ends an answer.
const END: u64 = u64::MAX;
/// Longest wait for the next message of an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Upper bound on the messages of an answer: more than any engine keeps (vLLM: `buffer_steps`, 10,000).
const MAX_MESSAGES: usize = 1_000_000;

/// The messages from number `from` on that the engine still has, in order.
///
/// # Errors
/// If the engine cannot be reached, falls silent, or gives an invalid answer.
pub async fn replay(address: SocketAddr, from: u64) -> anyhow::Result<Vec<Message>> {
    let mut socket = DealerSocket::new();
    let connected = timeout(PATIENCE, socket.connect(&format!("tcp://{address}"))).await;
    connected.context("no connection")?.context("connect")?;
    let mut request = ZmqMessage::from(Bytes::new());
    request.push_back(Bytes::copy_from_slice(&from.to_be_bytes()));
    socket.send(request).await.context("ask")?;
    let mut messages = Vec::new();
    loop {
        let answer = timeout(PATIENCE, socket.recv()).await.context("silence")?.context("read the answer")?;
        let Some(message) = read(&answer.into_vec())? else { return Ok(messages) };
        ensure!(messages.len() < MAX_MESSAGES, "more than {MAX_MESSAGES} messages");
        messages.push(message);
    }
}

/// Reads a message; `None` at the end. After an empty frame the engine sends a topic (only since vLLM 0.12), the number
/// and the batch.
fn read(frames: &[Bytes]) -> anyhow::Result<Option<Message>> {
    let [empty, .., number, batch] = frames else { bail!("{} frames in an answer", frames.len()) };
    ensure!(empty.is_empty(), "an answer that does not begin with an empty frame");
    let number = wire::number_of(number)?;
    Ok((number != END).then(|| Message { number, batch: batch.clone() }))
}
