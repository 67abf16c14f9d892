//! Faults on demand: what can go wrong with a pod on purpose, for which requests, and when. One type for the flag, the
//! request header and the live endpoint; a pod without faults pays for one look at a flag.
//!
//! ```text
//! --fault, POST /debug/faults ──► Rule ──► PodFaults ──► socket (connections) · http (answers) · engine (blocks)
//! x-mock-vllm-fault: for one request ──────────────────► http
//! ```

pub mod active;
pub mod guide;
pub mod page;
pub mod socket;
pub mod spec;
pub mod wave;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::num::NonZeroI64;
use std::time::Duration;
use wave::Wave;

/// What goes wrong. Durations are virtual, as all of a pod's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// The listener is closed: connections are refused; those that are open stay.
    Refuse {},
    /// New connections are accepted, and reset at once.
    Drop {},
    /// An error instead of an answer, in vLLM's shape.
    Status {
        #[serde(with = "spec::status")]
        code: StatusCode,
        /// `Retry-After`; 1 s for 429 and 503 unless given, none for others.
        #[serde(default, with = "spec::optional_duration", skip_serializing_if = "Option::is_none")]
        retry_after: Option<Duration>,
    },
    /// Nothing more is sent after so many tokens, for a time or for ever.
    Stall {
        #[serde(default)]
        tokens: u32,
        #[serde(default, with = "spec::optional_duration", skip_serializing_if = "Option::is_none")]
        delay: Option<Duration>,
    },
    /// TCP reset after so many tokens.
    Reset {
        #[serde(default)]
        tokens: u32,
    },
    /// The connection is closed after so many tokens, without the end of the body.
    Truncate {
        #[serde(default)]
        tokens: u32,
    },
    /// A plain answer declares so many bytes more, or less, than it sends.
    ContentLength { off: NonZeroI64 },
    /// Everything but `/debug` answers 503 until so long after the start.
    SlowStart {
        #[serde(with = "spec::duration")]
        delay: Duration,
    },
    /// The pod dies: its connections and its engine are gone, and the process unless it has other pods.
    Crash {},
    /// So much of the KV blocks is taken by nobody.
    KvPressure { share: f64 },
    /// `/metrics` shows the same numbers from now on.
    MetricsFreeze {},
    /// A metric has made-up values.
    MetricsLie { metric: String, value: Wave },
    /// `/metrics` leaves a metric out; `None`: every metric, so that the page is empty.
    MetricsOmit {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        metric: Option<String>,
    },
}

/// A fault, whom it hits, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub fault: Fault,
    pub on: Endpoints,
    pub when: When,
    /// Only this pod of the process; `None`: all.
    pub pod: Option<String>,
}

/// Which requests are hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoints {
    /// All but the others here: text, tokens, models, …
    #[default]
    Api,
    /// `/health` and `/ping`
    Health,
    Metrics,
    /// All of these. `/debug` is never hit.
    All,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct When {
    /// Since the rule was set.
    pub from: Duration,
    /// After `from`; `None`: until the rule is taken away.
    pub lasts: Option<Duration>,
    /// Matching requests that are let through first.
    pub after: u64,
    /// Most requests that are hit.
    pub times: Option<u64>,
    /// Share of the requests that are hit, above 0 and at most 1.
    pub rate: Option<f64>,
}

/// What a fault can be applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One request: also by header.
    Request,
    /// Requests or connections as they come, but not of a request's own choice.
    Arrivals,
    /// The pod, for a time.
    Pod,
}

// === impl Fault ===

impl Fault {
    pub fn scope(&self) -> Scope {
        match self {
            Self::Status { .. }
            | Self::Stall { .. }
            | Self::Reset { .. }
            | Self::Truncate { .. }
            | Self::ContentLength { .. } => Scope::Request,
            Self::Drop {} | Self::Crash {} => Scope::Arrivals,
            Self::Refuse {}
            | Self::SlowStart { .. }
            | Self::KvPressure { .. }
            | Self::MetricsFreeze {}
            | Self::MetricsLie { .. }
            | Self::MetricsOmit { .. } => Scope::Pod,
        }
    }
}

// === impl Endpoints ===

impl Endpoints {
    /// `None` for `/debug`.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/health" | "/ping" => Some(Self::Health),
            "/metrics" => Some(Self::Metrics),
            _ if path.starts_with("/metrics/") => Some(Self::Metrics),
            _ if path == "/debug" || path.starts_with("/debug/") => None,
            _ => Some(Self::Api),
        }
    }

    pub fn includes(self, other: Self) -> bool {
        self == other || self == Self::All
    }
}
