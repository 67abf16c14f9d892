//! Objects that the controller has made and that no pool asks for any more.
//!
//! An owner reference cannot cross namespaces, so the API server does not remove what runs in the controller's.

use std::collections::BTreeSet;

use serde_json::Value;

/// Manager of the applied fields, and value of the label that marks an object as made by the controller.
pub const MANAGER: &str = "warmpath-controller";
/// Label with [`MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// The objects of `found` that the controller has made and that are not among the `wanted` ones, in their order.
#[must_use]
pub fn unwanted<'a>(found: &'a [Value], wanted: &[Value]) -> Vec<&'a Value> {
    let wanted: BTreeSet<[&str; 4]> = wanted.iter().map(identity).collect();
    found
        .iter()
        .filter(|object| is_made(object))
        .filter(|object| !wanted.contains(&identity(object)))
        .collect()
}

/// True for an object that the controller has made.
#[must_use]
pub fn is_made(object: &Value) -> bool {
    object["metadata"]["labels"][MANAGED_BY] == MANAGER
}

/// Group, kind, namespace and name; a version is only a form of the same object.
fn identity(object: &Value) -> [&str; 4] {
    let text = |value: &'static str| object["metadata"][value].as_str().unwrap_or_default();
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    [group, object["kind"].as_str().unwrap_or_default(), text("namespace"), text("name")]
}
