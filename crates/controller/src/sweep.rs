//! Objects that the controller has made and that no pool asks for any more.
//!
//! An owner reference cannot cross namespaces, so the API server does not remove what runs in the controller's.

use std::collections::BTreeSet;

use serde_json::Value;

/// Manager of the applied fields, and value of the label that marks an object as made by the controller.
pub const MANAGER: &str = "warmpath-controller";
/// Label with [`MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Group, kind, namespace and name of an object; a version is only a form of the same object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity([String; 4]);

impl Identity {
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let metadata = |name: &'static str| text(&object["metadata"][name]);
        let api_version = text(&object["apiVersion"]);
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        Self([group, text(&object["kind"]), metadata("namespace"), metadata("name")].map(str::to_owned))
    }
}

/// The objects of `found` that the controller has made and that are not among the `wanted` ones, in their order.
#[must_use]
pub fn unwanted<'a>(found: impl IntoIterator<Item = &'a Value>, wanted: &[Value]) -> Vec<&'a Value> {
    let wanted: BTreeSet<Identity> = wanted.iter().map(Identity::of).collect();
    let made = found.into_iter().filter(|object| is_made(object));
    made.filter(|object| !wanted.contains(&Identity::of(object))).collect()
}

/// True for an object that the controller has made.
#[must_use]
pub fn is_made(object: &Value) -> bool {
    object["metadata"]["labels"][MANAGED_BY] == MANAGER
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
