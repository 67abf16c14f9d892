//! A part of an object that has no effect outside a cluster.

use crate::object::ObjectKey;

/// An object or a field of it that is left out, and what it does on a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    pub kind: String,
    pub key: ObjectKey,
    /// Path such as `spec.replicas`; empty for the object as a whole.
    pub field: String,
    /// Clause without a subject's name, such as `the kubelet follows it`.
    pub on_a_cluster: String,
}

impl Remark {
    #[must_use]
    pub fn new(
        kind: impl Into<String>,
        key: ObjectKey,
        field: impl Into<String>,
        on_a_cluster: impl Into<String>,
    ) -> Self {
        Self { kind: kind.into(), key, field: field.into(), on_a_cluster: on_a_cluster.into() }
    }
}
