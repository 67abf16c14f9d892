//! Ids of requests that bring none.

/// Makes an id like vLLM's `random_uuid`.
pub(super) fn random() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
