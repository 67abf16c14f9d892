//! The way in which a pool's picker is attached to the proxy.

use std::str::FromStr;

use inference_api::object::ObjectKey;
use inference_api::pool::FailureMode;
use serde::{Deserialize, Serialize};

use crate::plan::{Names, Pool};

/// The way of responses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Responses {
    /// Through the picker, which can change them. If it hangs or dies, it cuts them.
    #[default]
    Through,
    /// Past the picker. A filter of its own reports them to it and waits for nothing.
    Observed,
}

/// A word that names no way of responses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a way of responses, only `through` and `observed` are")]
pub struct UnknownWay(String);

impl FromStr for Responses {
    type Err = UnknownWay;

    fn from_str(text: &str) -> Result<Self, UnknownWay> {
        match text {
            "through" => Ok(Self::Through),
            "observed" => Ok(Self::Observed),
            other => Err(UnknownWay(other.to_owned())),
        }
    }
}

/// A pool, and what goes through its picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment<'a> {
    pub pool: &'a ObjectKey,
    pub failure_mode: FailureMode,
    pub responses: Responses,
}

impl<'a> Attachment<'a> {
    /// The attachment of `pool` if the operator wants `responses`. If models have other names in the engines, responses
    /// go through the picker, which restores the clients' names.
    #[must_use]
    pub fn new(pool: Pool<'a>, responses: Responses) -> Self {
        let Pool { key: pool, failure_mode, names } = pool;
        let responses = match names {
            Names::Kept => responses,
            Names::Changed => Responses::Through,
        };
        Self { pool, failure_mode, responses }
    }
}
