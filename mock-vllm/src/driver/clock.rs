//! Virtual time: what the latency model counts in, and how it maps to the wall clock, or that it does not.

use super::timeline::{Pace, Timeline};
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

/// One per process, shared by drivers and HTTP handlers.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Wall { start: Instant, scale: TimeScale },
    Virtual(Timeline),
}

/// The Unix time at which a virtual clock starts: 2026-01-01, so that equal runs write equal dates.
const VIRTUAL_EPOCH: Duration = Duration::from_secs(1_767_225_600);

// === impl SimTime ===

impl SimTime {
    /// Zero when `earlier` is later.
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
        Self(Kind::Wall { start: Instant::now(), scale })
    }

    /// A clock of its own, which nothing but its events moves.
    pub fn detached(pace: Pace) -> Self {
        Self(Kind::Virtual(Timeline::new(pace)))
    }

    /// The wall's time since the Unix epoch, whatever the clock.
    #[expect(clippy::disallowed_methods, reason = "the pod's clock is where wall time enters")]
    pub fn unix_now() -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    pub fn now(&self) -> SimTime {
        match &self.0 {
            Kind::Wall { start, scale } => SimTime(start.elapsed().mul_f64(scale.0)),
            Kind::Virtual(timeline) => timeline.now(),
        }
    }

    /// Time since the Unix epoch: the wall's, whatever the scale; of a detached clock the virtual one.
    pub fn unix_time(&self) -> Duration {
        match &self.0 {
            Kind::Wall { .. } => Self::unix_now(),
            Kind::Virtual(timeline) => VIRTUAL_EPOCH + timeline.now().0,
        }
    }

    /// Lets virtual time pass.
    pub async fn sleep_until(&self, deadline: SimTime) {
        match &self.0 {
            Kind::Wall { .. } => tokio::time::sleep(self.until(deadline)).await,
            Kind::Virtual(timeline) => timeline.sleep_until(deadline).await,
        }
    }

    /// Never goes on; time does.
    pub async fn stall(&self) -> ! {
        match &self.0 {
            Kind::Wall { .. } => std::future::pending().await,
            Kind::Virtual(timeline) => timeline.stall().await,
        }
    }

    /// `None` for a clock that follows the wall's.
    pub fn timeline(&self) -> Option<&Timeline> {
        match &self.0 {
            Kind::Wall { .. } => None,
            Kind::Virtual(timeline) => Some(timeline),
        }
    }

    /// Virtual seconds per wall second; `None` for a detached clock.
    pub fn scale(&self) -> Option<TimeScale> {
        match &self.0 {
            Kind::Wall { scale, .. } => Some(*scale),
            Kind::Virtual(_) => None,
        }
    }

    /// Wall time between now and `moment`, which may lie behind or ahead. Of a detached clock the virtual time.
    pub fn distance(&self, moment: SimTime) -> Duration {
        let now = self.now();
        self.in_wall(now.since(moment).max(moment.since(now)))
    }

    /// What passes of virtual time in so much wall time; none of a detached clock's.
    pub fn in_virtual(&self, wall: Duration) -> Duration {
        self.scale().map_or(Duration::ZERO, |scale| wall.mul_f64(scale.0))
    }

    /// How much wall time so much virtual time takes; of a detached clock the same.
    pub fn in_wall(&self, span: Duration) -> Duration {
        span.div_f64(self.scale().unwrap_or_default().0)
    }

    /// Wall time until `deadline`; zero when it has passed. Of a detached clock the virtual time.
    pub fn until(&self, deadline: SimTime) -> Duration {
        self.in_wall(deadline.since(self.now()))
    }
}
