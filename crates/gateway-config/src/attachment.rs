//! The way in which a pool's picker is attached to the proxy.

use std::fmt;
use std::str::FromStr;

use inference_api::object::ObjectKey;
use inference_api::pool::{BodyMode, FailureMode};
use serde::{Deserialize, Serialize};

use crate::plan::{Names, PlannedPool};

/// The way of responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Responses {
    /// Through the picker, which can change them. If it hangs or dies, it cuts them.
    Through,
    /// Past the picker. An access log tells it how each has ended, and a filter of its own reports this share of them with
    /// their bodies. Neither waits for the picker.
    Observed(Share),
}

/// A share of all requests, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// Envoy counts shares in millionths, too.
    per_million: u32,
}

/// A text that names no way of responses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a way of responses, only `through`, `observed` and `observed=SHARE` with a share from 0 to 1 are"
)]
pub struct UnknownWay(String);

impl Share {
    pub const NONE: Self = Self { per_million: 0 };
    pub const ALL: Self = Self { per_million: 1_000_000 };
    /// A twentieth. At 10 requests per second the picker reads the `usage` of one response every two seconds.
    pub const TWENTIETH: Self = Self { per_million: 50_000 };

    #[must_use]
    pub fn per_million(self) -> u32 {
        self.per_million
    }

    /// The share that is written as `text`; `None` if it is not a number from 0 to 1.
    fn parse(text: &str) -> Option<Self> {
        let share: f64 = text.parse().ok().filter(|share| (0.0..=1.0).contains(share))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1,000,000")]
        let per_million = (share * 1e6).round() as u32;
        Some(Self { per_million })
    }
}

impl Default for Responses {
    /// Past the picker, with the bodies of a twentieth.
    fn default() -> Self {
        Self::Observed(Share::TWENTIETH)
    }
}

impl FromStr for Responses {
    type Err = UnknownWay;

    fn from_str(text: &str) -> Result<Self, UnknownWay> {
        let way = match text.split_once('=') {
            None if text == "through" => Some(Self::Through),
            None if text == "observed" => Some(Self::default()),
            Some(("observed", share)) => Share::parse(share).map(Self::Observed),
            Some(_) | None => None,
        };
        way.ok_or_else(|| UnknownWay(text.to_owned()))
    }
}

impl TryFrom<String> for Responses {
    type Error = UnknownWay;

    fn try_from(text: String) -> Result<Self, UnknownWay> {
        text.parse()
    }
}

impl From<Responses> for String {
    fn from(responses: Responses) -> Self {
        responses.to_string()
    }
}

impl fmt::Display for Responses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Through => f.write_str("through"),
            Self::Observed(share) => write!(f, "observed={}", f64::from(share.per_million) / 1e6),
        }
    }
}

/// The maker of a picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maker {
    /// This project: it answers a request's headers at once.
    Warmpath,
    /// Somebody else: it may answer them when it has read the body, as upstream's protocol allows. It takes bodies in this
    /// mode.
    Other(BodyMode),
}

/// A pool, and what goes through its picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment<'a> {
    pub pool: &'a ObjectKey,
    pub failure_mode: FailureMode,
    pub responses: Responses,
    pub maker: Maker,
}

impl<'a> Attachment<'a> {
    /// The attachment of `pool` if the operator wants `responses`. If models have other names in the engines, responses
    /// go through the picker, which restores the clients' names. Somebody else's picker gets the whole protocol.
    #[must_use]
    pub fn new(pool: PlannedPool<'a>, responses: Responses, maker: Maker) -> Self {
        let PlannedPool { key: pool, failure_mode, names } = pool;
        let responses = match (names, maker) {
            (Names::Kept, Maker::Warmpath) => responses,
            (Names::Changed, Maker::Warmpath) | (Names::Kept | Names::Changed, Maker::Other(_)) => {
                Responses::Through
            }
        };
        Self { pool, failure_mode, responses, maker }
    }

    /// True if Envoy holds bodies for the picker within the buffer of their connection: only a body that is held can go on
    /// without a pick.
    pub(crate) fn holds_bodies(&self) -> bool {
        self.failure_mode == FailureMode::FailOpen && self.maker == Maker::Warmpath
    }
}
