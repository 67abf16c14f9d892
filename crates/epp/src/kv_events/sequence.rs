//! Keeps track of which messages were applied, and decides what to do with the next one. Pure.

/// Treatment of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Apply,
    /// It was applied before.
    Skip,
    /// The messages from this number on are missing.
    Missing {
        from: u64,
    },
}

/// Relation of replayed messages to those applied before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// They start where the last applied message ended.
    Continues,
    /// They reach back to the start of the process, so they contain all that was known before.
    Whole,
    /// Messages before them are gone, so what was known before may be wrong.
    Torn,
    /// There are no messages.
    Empty,
}

/// The messages of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Number of the message that is due; `None` before the first message.
    due: Option<u64>,
}

impl Sequence {
    /// Number of the message that is due, 0 before the first message.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.due.unwrap_or(0)
    }

    /// Decides what to do with message `number`. The first message is applied whatever its number.
    pub fn take(&mut self, number: u64) -> Next {
        match self.due {
            Some(due) if number < due => Next::Skip,
            Some(due) if number > due => Next::Missing { from: due },
            Some(_) | None => {
                self.due = Some(number.saturating_add(1));
                Next::Apply
            }
        }
    }

    /// Decides what to do with replayed messages, given their first and last number.
    pub fn take_replay(&mut self, numbers: Option<(u64, u64)>) -> Replayed {
        let Some((first, last)) = numbers else { return Replayed::Empty };
        let replayed = match self.due {
            _ if first == 0 => Replayed::Whole,
            Some(due) if first <= due && due <= last.saturating_add(1) => Replayed::Continues,
            Some(_) | None => Replayed::Torn,
        };
        if replayed != Replayed::Continues {
            self.due = Some(first);
        }
        replayed
    }

    /// Forgets everything: messages come from another process, or it is unknown what was missed.
    pub fn reset(&mut self) {
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{Next, Replayed, Sequence};

    #[test]
    fn messages_are_applied_once_and_in_order() {
        let mut sequence = Sequence::default();
        assert_eq!(sequence.take(7), Next::Apply);
        assert_eq!(sequence.take(8), Next::Apply);
        assert_eq!(sequence.take(8), Next::Skip);
        assert_eq!(sequence.take(11), Next::Missing { from: 9 });
        assert_eq!(
            (sequence.take(9), sequence.take(10), sequence.take(11)),
            (Next::Apply, Next::Apply, Next::Apply)
        );
    }

    #[test]
    fn a_replay_says_whether_what_was_known_still_counts() {
        let at = |due: Option<u64>| Sequence { due };
        for (due, numbers, expected) in [
            (None, None, Replayed::Empty),
            (None, Some((0, 4)), Replayed::Whole),
            (None, Some((3, 4)), Replayed::Torn),
            (Some(9), Some((9, 12)), Replayed::Continues),
            (Some(9), Some((5, 12)), Replayed::Continues),
            (Some(9), Some((10, 12)), Replayed::Torn),
            // A process that started again: its numbers are lower.
            (Some(9), Some((2, 4)), Replayed::Torn),
            (Some(9), Some((0, 4)), Replayed::Whole),
        ] {
            let mut sequence = at(due);
            assert_eq!(sequence.take_replay(numbers), expected, "{due:?} {numbers:?}");
        }
    }
}
