//! `/debug/clock`: what time it is for the pods of this process. `/debug/clock/advance`: moves a detached clock.

use crate::driver::clock::{Clock, SimTime};
use crate::driver::timeline::{Goal, Holder, Pace, Status, Timeline};
use crate::http::error::ApiError;
use http::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Of the wall's clock, for an `advance` that waits for something that does not come.
const DEFAULT_TIMEOUT: Duration = Duration::from_mins(1);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAdvance {
    to: Option<f64>,
    by: Option<f64>,
    until_idle: Option<bool>,
    #[serde(default)]
    requests: u64,
    timeout: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSettings {
    clients: usize,
}

/// Times are seconds since the start.
#[derive(Debug, Serialize)]
#[serde(tag = "mode", rename_all = "lowercase")]
pub(super) enum ClockView {
    Wall {
        now: f64,
        time_scale: f64,
    },
    Virtual {
        #[serde(flatten)]
        pace: Pace,
        now: f64,
        next_event: Option<f64>,
        arrived: u64,
        open: usize,
        held_by: Option<Holder>,
    },
}

pub(super) fn show(clock: &Clock) -> ClockView {
    match (clock.timeline(), clock.scale()) {
        (Some(timeline), _) => timeline.status().into(),
        (None, scale) => ClockView::Wall {
            now: clock.now().0.as_secs_f64(),
            time_scale: scale.unwrap_or_default().as_f64(),
        },
    }
}

/// # Errors
/// Fails if the clock is the wall's, the body does not say how far, that is in the past, or nothing comes of it.
pub(super) async fn advance(clock: &Clock, body: &[u8]) -> Result<ClockView, ApiError> {
    let timeline = detached(clock)?;
    let raw: RawAdvance = parse(body)?;
    let (goal, timeout) = (raw.goal()?, raw.timeout()?);
    match tokio::time::timeout(timeout, timeline.advance(goal, raw.requests)).await {
        Ok(Ok(status)) => Ok(status.into()),
        Ok(Err(past)) => Err(ApiError::bad_request(past.to_string(), None)),
        Err(_elapsed) => Err(stuck(timeline, raw.requests)),
    }
}

/// # Errors
/// Fails if the clock does not wait for clients, or the body does not say for how many.
pub(super) fn set(clock: &Clock, body: &[u8]) -> Result<ClockView, ApiError> {
    let timeline = detached(clock)?;
    let RawSettings { clients } = parse(body)?;
    if timeline.wait_for_clients(clients) {
        Ok(timeline.status().into())
    } else {
        Err(ApiError::bad_request("only --virtual-clock=auto waits for clients", Some("clients")))
    }
}

fn detached(clock: &Clock) -> Result<&Timeline, ApiError> {
    clock.timeline().ok_or_else(|| {
        ApiError::bad_request("the clock follows the wall's; start the server with --virtual-clock", None)
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(body))
        .map_err(|error| ApiError::bad_request(error.to_string(), None))
}

/// What the caller waits for in vain.
fn stuck(timeline: &Timeline, n_requests: u64) -> ApiError {
    let Status { now, arrived, held_by, open, pace, .. } = timeline.status();
    let why = match (held_by, pace) {
        _ if arrived < n_requests => format!("{arrived} of {n_requests} requests have reached an engine"),
        (Some(Holder::UnreadAnswer), _) => "a client does not read its answer".to_owned(),
        (Some(Holder::Clients), Pace::Auto { clients }) => {
            format!("{open} requests are open, and --clock-clients asks for {clients}")
        }
        (Some(Holder::Clients | Holder::Work | Holder::Limit) | None, _) => {
            "there was more to do than the timeout allows".to_owned()
        }
    };
    ApiError {
        status: StatusCode::CONFLICT,
        kind: "Conflict",
        older: None,
        message: format!("the clock stands at {} s: {why}", now.0.as_secs_f64()),
        param: None,
    }
}

// === impl RawAdvance ===

impl RawAdvance {
    fn goal(&self) -> Result<Goal, ApiError> {
        match (self.to, self.by, self.until_idle) {
            (Some(to), None, None | Some(false)) => Ok(Goal::To(SimTime(seconds("to", to)?))),
            (None, Some(by), None | Some(false)) => Ok(Goal::By(seconds("by", by)?)),
            (None, None, Some(true)) => Ok(Goal::Idle),
            _ => Err(ApiError::bad_request(
                "give one of \"to\": seconds, \"by\": seconds, \"until_idle\": true",
                None,
            )),
        }
    }

    fn timeout(&self) -> Result<Duration, ApiError> {
        self.timeout.map_or(Ok(DEFAULT_TIMEOUT), |timeout| seconds("timeout", timeout))
    }
}

fn seconds(name: &str, seconds: f64) -> Result<Duration, ApiError> {
    Duration::try_from_secs_f64(seconds).map_err(|error| {
        ApiError::bad_request(format!("{name} {seconds} is no number of seconds: {error}"), Some(name))
    })
}

// === impl ClockView ===

impl From<Status> for ClockView {
    fn from(status: Status) -> Self {
        let Status { pace, now, next_event, arrived, open, held_by } = status;
        let seconds = |time: SimTime| time.0.as_secs_f64();
        Self::Virtual { pace, now: seconds(now), next_event: next_event.map(seconds), arrived, open, held_by }
    }
}
