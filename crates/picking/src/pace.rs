//! The pace at which an endpoint computes prompts: learnt from the first tokens that the picker sees, and used for those
//! that it does not see.

use std::time::Duration;

use parking_lot::Mutex;

/// Weight that earlier first tokens keep after one more.
const KEPT: f64 = 0.9;

/// The pace of one endpoint. A new process behind the endpoint has the same hardware, so it keeps the pace.
#[derive(Debug, Default)]
pub struct Pace {
    seen: Mutex<Option<Seen>>,
}

/// The work before the first tokens that were seen, and the time for it; earlier ones count less and less.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    bytes: f64,
    seconds: f64,
}

impl Pace {
    /// Notes that a first token came `elapsed` after its request was sent, when the endpoint had `n_bytes` to compute.
    pub fn note(&self, n_bytes: u64, elapsed: Duration) {
        let mut seen = self.seen.lock();
        let Seen { bytes, seconds } = seen.unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
        let bytes = KEPT * bytes + n_bytes as f64;
        *seen = Some(Seen { bytes, seconds: KEPT * seconds + elapsed.as_secs_f64() });
    }

    /// The time in which the endpoint computes `n_bytes`; `None` before the first note.
    #[must_use]
    pub fn time_for(&self, n_bytes: u64) -> Option<Duration> {
        let Seen { bytes, seconds } = (*self.seen.lock())?;
        #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
        let seconds = seconds * n_bytes as f64 / bytes;
        Duration::try_from_secs_f64(seconds).ok()
    }
}
