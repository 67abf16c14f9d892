//! The last messages, framed as they were sent, for subscribers that missed some.

use bytes::Bytes;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct ReplayBuffer {
    /// Messages by sequence number. The numbers rise, with gaps for dropped batches.
    messages: VecDeque<(u64, Bytes)>,
    n_most: usize,
}

// === impl ReplayBuffer ===

impl ReplayBuffer {
    pub(super) fn new(n_most: usize) -> Self {
        Self { messages: VecDeque::new(), n_most }
    }

    pub(super) fn push(&mut self, seq: u64, message: Bytes) {
        if self.n_most == 0 {
            return;
        }
        if self.messages.len() == self.n_most {
            self.messages.pop_front();
        }
        self.messages.push_back((seq, message));
    }

    /// Returns every kept message from sequence number `start` on, in order.
    pub(super) fn since(&self, start: u64) -> Vec<Bytes> {
        let first = self.messages.partition_point(|(seq, _)| *seq < start);
        self.messages.range(first..).map(|(_, message)| message.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::ReplayBuffer;
    use bytes::Bytes;

    #[test]
    fn keeps_the_last_and_starts_where_asked() {
        let mut buffer = ReplayBuffer::new(3);
        for seq in [0_u8, 1, 2, 4, 5] {
            buffer.push(seq.into(), Bytes::from(vec![seq]));
        }
        let since = |start| buffer.since(start).concat();
        assert_eq!(since(0), [2, 4, 5]);
        assert_eq!(since(3), [4, 5]);
        assert_eq!(since(5), [5]);
        assert_eq!(since(6), [0_u8; 0]);
        let mut nothing = ReplayBuffer::new(0);
        nothing.push(0, Bytes::new());
        assert!(nothing.since(0).is_empty());
    }
}
