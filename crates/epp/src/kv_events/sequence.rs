//! Which messages were applied, and what to do with the next one. Pure.

/// What to do with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Apply,
    /// It was applied before.
    Skip,
    /// Messages from this number on are missing.
    Missing {
        from: u64,
    },
}

/// What to do with messages that were asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// They go on where the last one that was applied ended.
    Continues,
    /// They reach back to the start of the process: what was known before is in them.
    Whole,
    /// Some before them are gone: what was known before may be wrong.
    Torn,
    /// There are none.
    Empty,
}

/// The messages of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// The number that is due; `None` before the first message.
    due: Option<u64>,
}

impl Sequence {
    /// The number that is due, 0 before the first message.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.due.unwrap_or(0)
    }

    /// Without a place to ask for earlier ones, the first message is where knowledge begins.
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

    /// The first and the last number of what was asked for again.
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

    /// Forgets everything: another process speaks, or nobody can say what was missed.
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
            // A process that began anew: it is behind.
            (Some(9), Some((2, 4)), Replayed::Torn),
            (Some(9), Some((0, 4)), Replayed::Whole),
        ] {
            let mut sequence = at(due);
            assert_eq!(sequence.take_replay(numbers), expected, "{due:?} {numbers:?}");
        }
    }
}
