//! Faults on demand: which faults a pod has, for which requests, and when. The flag, the request header and the live
//! endpoint share one type; a pod without faults pays for one look at a flag.
//!
//! ```text
//! --fault, POST /debug/faults ──► Rule ──► PodFaults ──► socket (connections) · http (answers) · engine (blocks)
//! x-mock-vllm-fault: for one request ──────────────────► http
//! ```

pub mod guide;
pub mod socket;
pub mod active;
pub mod page;
pub mod spec;
pub mod wave;

use http::StatusCode;
use serde::{Deserialize, Serialize};
use std::num::NonZeroI64;
use std::time::Duration;
use wave::Wave;

/// A fault. Its durations are virtual, like all times of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fault {
    /// The listener is closed: new connections are refused, open ones stay.
    Refuse {},
    /// New connections are accepted and reset at once.
    Drop {},
    /// Requests get an error instead of an answer, in vLLM's shape.
    Status {
        #[serde(with = "spec::status")]
        code: StatusCode,
        /// `Retry-After`; by default 1 s for 429 and 503, and none for others.
        #[serde(default, with = "spec::optional_duration", skip_serializing_if = "Option::is_none")]
        retry_after: Option<Duration>,
    },
    /// Nothing more is sent after `tokens` tokens, for a time or for ever.
    Stall {
        #[serde(default)]
        tokens: u32,
        #[serde(default, with = "spec::optional_duration", skip_serializing_if = "Option::is_none")]
        delay: Option<Duration>,
    },
    /// The connection is reset after `tokens` tokens.
    Reset {
        #[serde(default)]
        tokens: u32,
    },
    /// The connection is closed after `tokens` tokens, without the end of the body.
    Truncate {
        #[serde(default)]
        tokens: u32,
    },
    /// A plain answer declares `off` bytes more than it sends, or fewer.
    ContentLength { off: NonZeroI64 },
    /// All requests except those to `/debug` get 503 until `delay` after the start.
    SlowStart {
        #[serde(with = "spec::duration")]
        delay: Duration,
    },
    /// The pod dies: its connections and its engine end, and so does the process unless it has other pods.
    Crash {},
    /// This share of the KV blocks is taken, although no request holds them.
    KvPressure { share: f64 },
    /// `/metrics` shows the same numbers from then on.
    MetricsFreeze {},
    /// A metric has made-up values.
    MetricsLie { metric: String, value: Wave },
    /// `/metrics` leaves a metric out; `None` leaves all out, so that the page is empty.
    MetricsOmit {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        metric: Option<String>,
    },
}

/// A fault, the requests that it hits, and its time.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub fault: Fault,
    pub on: Endpoints,
    pub when: When,
    /// Name of the only pod of the process that has the fault; `None` for all pods.
    pub pod: Option<String>,
}

/// Requests that a rule hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoints {
    /// All requests except those below: text, tokens, models, …
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
    /// Time from setting the rule to its begin.
    pub from: Duration,
    /// Time from its begin to its end; `None` until the rule is removed.
    pub lasts: Option<Duration>,
    /// Number of matching requests that pass first.
    pub after: u64,
    /// Most requests that the rule hits.
    pub times: Option<u64>,
    /// Share of the requests that the rule hits, above 0 and at most 1.
    pub rate: Option<f64>,
}

/// Object that a fault applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One request: a header can set the fault too.
    Request,
    /// Requests or connections as they arrive; a request's header cannot set it.
    Arrivals,
    /// The pod, for a time.
    Pod,
}

// === impl Fault ===

impl Fault {
    /// Metric whose values the fault makes up, or that it leaves out of the page.
    pub fn metric(&self) -> Option<&str> {
        if let Self::MetricsLie { metric, .. } = self {
            Some(metric)
        } else if let Self::MetricsOmit { metric } = self {
            metric.as_deref()
        } else {
            None
        }
    }

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
    /// Returns the group of a path; `None` for `/debug`.
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
