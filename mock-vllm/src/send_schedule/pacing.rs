//! Learns from earlier sweeps how early a sweep must begin so that its tokens leave around their time.

use std::time::Duration;

/// Longest time that a token may leave early.
const MAX_LEAD: Duration = Duration::from_micros(900);
/// Longest delay of a wake-up that counts; a later one was caused by other work and says nothing about the next one.
const MAX_OVERSLEEP: Duration = Duration::from_millis(1);
/// Size of the smallest sweep that says something about the cost of a token.
const FEW_TOKENS: usize = 8;
/// Weight of a new sweep in each mean.
const WEIGHT: f64 = 0.125;

/// Learned times, in wall time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pacing {
    /// Mean time from the planned begin of a sweep to its begin.
    oversleep: Duration,
    /// Mean time to send one token of many.
    per_token: Duration,
}

// === impl Pacing ===

impl Default for Pacing {
    fn default() -> Self {
        Self { oversleep: Duration::from_micros(100), per_token: Duration::from_micros(4) }
    }
}

impl Pacing {
    /// Returns how early a sweep must begin, so that half of it is before its time and half after.
    pub fn lead(&self, n_tokens: usize) -> Duration {
        let half = self.per_token.mul_f64(n_tokens as f64 / 2.0);
        self.oversleep + half.min(MAX_LEAD)
    }

    /// Learns from a sweep that began `overslept` after its time and sent `n_tokens` in `spent`.
    pub fn observe(&mut self, overslept: Duration, spent: Duration, n_tokens: usize) {
        self.oversleep = blend(self.oversleep, overslept.min(MAX_OVERSLEEP));
        if n_tokens >= FEW_TOKENS {
            self.per_token = blend(self.per_token, spent.div_f64(n_tokens as f64));
        }
    }
}

fn blend(mean: Duration, new: Duration) -> Duration {
    mean.mul_f64(1.0 - WEIGHT) + new.mul_f64(WEIGHT)
}

#[cfg(test)]
mod tests {
    use super::Pacing;
    use std::time::Duration;

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn taught(overslept: Duration, spent: Duration, n_tokens: usize) -> Pacing {
        let mut pacing = Pacing::default();
        (0..100).for_each(|_| pacing.observe(overslept, spent, n_tokens));
        pacing
    }

    fn assert_near(actual: Duration, expected: Duration) {
        assert!(actual.abs_diff(expected) < us(5), "{actual:?}, expected {expected:?}");
    }

    #[test]
    fn a_sweep_is_centred_on_its_time() {
        let pacing = taught(us(200), us(1_000), 250);

        assert_near(pacing.lead(250), us(200 + 500));
        assert_near(pacing.lead(50), us(200 + 100));
        assert_near(pacing.lead(0), us(200));
    }

    #[test]
    fn nothing_leaves_more_than_a_millisecond_early() {
        let pacing = taught(us(0), us(10_000), 250);

        assert_near(pacing.lead(250), us(900));
    }

    #[test]
    fn small_sweeps_and_long_stalls_teach_little() {
        let pacing = taught(Duration::from_secs(1), us(900), 1);

        assert_near(pacing.lead(0), us(1_000));
        assert_near(pacing.lead(100), us(1_000 + 200));
    }
}
