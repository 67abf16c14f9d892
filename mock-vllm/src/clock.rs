//! Virtual time: the time of the latency model, and its mapping to the wall clock.

use std::num::NonZeroU64;
use std::ops::Add;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Virtual time since the pod started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimTime(pub Duration);

/// Virtual seconds per wall second; finite and above 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimeScale(f64);

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("time scale must be a finite number above 0, got {0}")]
pub struct InvalidTimeScale(String);

/// Clock of a process, shared by drivers and HTTP handlers.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
    scale: TimeScale,
}

// === impl SimTime ===

impl SimTime {
    /// Returns the time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for SimTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

// === impl TimeScale ===

impl TimeScale {
    pub fn as_f64(self) -> f64 {
        self.0
    }
}

impl Default for TimeScale {
    fn default() -> Self {
        Self(1.0)
    }
}

impl std::str::FromStr for TimeScale {
    type Err = InvalidTimeScale;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let scale = text.parse().ok().filter(|scale: &f64| scale.is_finite() && *scale > 0.0);
        scale.map(Self).ok_or_else(|| InvalidTimeScale(text.to_owned()))
    }
}

impl From<NonZeroU64> for TimeScale {
    fn from(scale: NonZeroU64) -> Self {
        Self(scale.get() as f64)
    }
}

impl std::fmt::Display for TimeScale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

// === impl Clock ===

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the pod's clock is where wall time enters")]
    pub fn start(scale: TimeScale) -> Self {
        Self { start: Instant::now(), scale }
    }

    /// Returns the wall's time since the Unix epoch, at any scale.
    #[expect(clippy::disallowed_methods, reason = "the pod's clock is where wall time enters")]
    pub fn unix_now() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    pub fn now(&self) -> SimTime {
        SimTime(self.start.elapsed().mul_f64(self.scale.0))
    }

    /// Waits until `deadline` in virtual time.
    pub async fn sleep_until(&self, deadline: SimTime) {
        tokio::time::sleep(self.until(deadline)).await;
    }

    /// Returns the wall time between now and `moment`, which may be before or after now.
    pub fn distance(&self, moment: SimTime) -> Duration {
        let now = self.now();
        self.in_wall(now.since(moment).max(moment.since(now)))
    }

    /// Returns the virtual time that passes in a wall time.
    pub fn in_virtual(&self, wall: Duration) -> Duration {
        wall.mul_f64(self.scale.0)
    }

    /// Returns the wall time that a virtual time takes.
    pub fn in_wall(&self, span: Duration) -> Duration {
        span.div_f64(self.scale.0)
    }

    /// Returns the wall time until `deadline`; zero if it has passed.
    pub fn until(&self, deadline: SimTime) -> Duration {
        self.in_wall(deadline.since(self.now()))
    }
}
