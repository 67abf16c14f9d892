//! Templates of pods in objects of kinds that nothing here knows, such as a StormService, a Rollout or a DaemonSet.

use serde_json::{Map, Value, json};

/// A template of pods, as a Deployment of it alone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template {
    /// Name among the templates of its object; empty if the object's own.
    pub(super) name: String,
    pub(super) deployment: Value,
}

/// The templates of an object, in the order of the object.
pub(super) fn of(object: &Value) -> Vec<Template> {
    let mut found = Vec::new();
    if let Some(Value::Object(spec)) = object.get("spec") {
        add(spec, (object.get("metadata"), "", 1), &mut found);
    }
    found
}

/// Adds the templates below `fields`. Replicas of parts of replicas are multiplied.
fn add(
    fields: &Map<String, Value>,
    (metadata, name, replicas): (Option<&Value>, &str, u64),
    found: &mut Vec<Template>,
) {
    let own = fields.get("replicas").and_then(Value::as_u64).unwrap_or(1);
    let replicas = replicas.saturating_mul(own);
    let name = fields.get("name").and_then(Value::as_str).unwrap_or(name);
    for (field, value) in fields {
        match value {
            Value::Object(template) if field == "template" && has_containers(template) => {
                let spec = json!({ "replicas": replicas, "selector": {}, "template": template });
                let (api_version, kind) = ("apps/v1", "Deployment");
                let deployment =
                    json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec });
                found.push(Template { name: name.to_owned(), deployment });
            }
            Value::Object(inner) => add(inner, (metadata, name, replicas), found),
            Value::Array(elements) => {
                for inner in elements.iter().filter_map(Value::as_object) {
                    add(inner, (metadata, name, replicas), found);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

fn has_containers(template: &Map<String, Value>) -> bool {
    let containers = template.get("spec").and_then(|spec| spec.get("containers"));
    containers.and_then(Value::as_array).is_some_and(|containers| !containers.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::of;

    #[test]
    fn templates_are_found_with_their_replicas() {
        let template =
            json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c" }] } });
        let role =
            |name: &str, replicas: u32| json!({ "name": name, "replicas": replicas, "template": template });
        let inner = json!({ "spec": { "roles": [role("prefill", 2), role("decode", 3)] } });
        let object = json!({ "metadata": { "name": "s" }, "spec": { "replicas": 2, "template": inner } });
        let seen = |object| {
            let replicas = |template: &super::Template| template.deployment["spec"]["replicas"].as_u64();
            of(&object).iter().map(|found| (found.name.clone(), replicas(found))).collect::<Vec<_>>()
        };
        assert_eq!(seen(object), [("prefill".to_owned(), Some(4)), ("decode".to_owned(), Some(6))]);
        let plain = json!({ "metadata": { "name": "d" }, "spec": { "replicas": 5, "template": template } });
        assert_eq!(seen(plain), [(String::new(), Some(5))]);
        assert_eq!(seen(json!({ "spec": { "template": { "spec": { "containers": [] } } } })), []);
    }
}
