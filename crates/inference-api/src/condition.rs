//! Conditions: what a controller reports about an object in its `status`.

use serde::Serialize;

/// One entry of `status.conditions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub status: ConditionStatus,
    /// Reason in one word, CamelCase.
    pub reason: &'static str,
    /// Explanation for people.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

/// `Accepted` of an InferenceModel, with the reasons of Gateway API Inference Extension v0.4.
pub mod accepted {
    use super::{Condition, ConditionStatus};
    use crate::object::ObjectKey;

    const KIND: &str = "Accepted";

    /// Requests for the model are served.
    #[must_use]
    pub fn yes() -> Condition {
        let message = "the model is served".to_owned();
        Condition { kind: KIND, status: ConditionStatus::True, reason: "Accepted", message }
    }

    /// The older `winner` already has the name.
    #[must_use]
    pub fn name_in_use(model_name: &str, winner: &ObjectKey) -> Condition {
        let message = format!("modelName {model_name} belongs to InferenceModel {winner}, which is older");
        Condition { kind: KIND, status: ConditionStatus::False, reason: "ModelNameInUse", message }
    }

    /// The pool does not exist yet.
    #[must_use]
    pub fn pending(pool: &ObjectKey) -> Condition {
        let message = format!("waiting for InferencePool {pool}");
        Condition { kind: KIND, status: ConditionStatus::Unknown, reason: "Pending", message }
    }
}
