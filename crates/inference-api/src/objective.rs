//! InferenceObjective: how important requests are that name it in a header.

use serde::Deserialize;

use crate::field::FieldError;
use crate::object::{ObjectKey, ObjectMeta};
use crate::pool::{Criticality, PoolRef};

/// The importance of some requests of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceObjective {
    pub meta: ObjectMeta,
    /// Larger is more important.
    pub priority: i32,
    /// The pool, which is in the objective's namespace.
    pub pool: ObjectKey,
}

impl InferenceObjective {
    /// Treatment in a saturated pool: a negative priority is shed, any other is served.
    #[must_use]
    pub fn criticality(&self) -> Criticality {
        if self.priority < 0 { Criticality::Sheddable } else { Criticality::Critical }
    }
}

// === wire form ===

#[derive(Deserialize)]
pub(crate) struct ObjectiveV1Alpha2 {
    metadata: ObjectMeta,
    spec: ObjectiveSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectiveSpec {
    /// 0 if it is not set.
    #[serde(default)]
    priority: i32,
    pool_ref: PoolRef,
}

// === checks ===

impl TryFrom<ObjectiveV1Alpha2> for InferenceObjective {
    type Error = FieldError;

    fn try_from(ObjectiveV1Alpha2 { metadata, spec }: ObjectiveV1Alpha2) -> Result<Self, FieldError> {
        let ObjectiveSpec { priority, pool_ref } = spec;
        let pool = pool_ref.into_pool(&metadata)?;
        Ok(Self { meta: metadata, priority, pool })
    }
}
