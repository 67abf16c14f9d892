//! Pauses between attempts to reach an API server.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// First pause: an API server that restarts behind a balancer answers again at once.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause, and so the delay with which a picker notices that the API server is back.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);

/// Doubles from [`FIRST`] to [`LONGEST`], until the API server answers.
///
/// A watcher also succeeds when it begins a list, before it asks for it. So only the second success in a row is an answer:
/// a kind that is not installed begins a list again and again.
#[derive(Debug)]
pub(crate) struct Retry {
    next: Duration,
    has_succeeded: bool,
}

// === impl Retry ===

impl Default for Retry {
    fn default() -> Self {
        Self { next: FIRST, has_succeeded: false }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        self.has_succeeded = false;
        Some(pause)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        if self.has_succeeded {
            self.next = FIRST;
        }
        self.has_succeeded = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(retry: &mut Retry, n_successes: usize) -> [u128; 3] {
        [(); 3].map(|()| {
            (0..n_successes).for_each(|_| retry.reset());
            retry.next().unwrap().as_millis()
        })
    }

    #[test]
    fn pauses_grow_while_lists_only_begin() {
        let mut retry = Retry::default();
        assert_eq!(pauses(&mut retry, 1), [100, 200, 400]);
        assert_eq!(pauses(&mut retry, 0), [800, 1600, 3200]);
        assert_eq!(pauses(&mut retry, 1), [5000; 3]);
        assert_eq!(pauses(&mut retry, 2), [100; 3], "a list that is empty");
    }
}
