//! The CustomResourceDefinitions of InferencePool and of the objects that refer to one, with the limits of the API.
//!
//! `manifests/crds` holds them as files. Their schemas have the fields of the wire forms in [`crate::pool`] and no
//! others: an API server drops what Warmpath does not know. Rules that need a field's old value, or two fields, are CEL.

use serde_json::{Value, json};

use crate::keys::{DEFAULT_PICKER_PORT, GATEWAY_GROUP, GROUP, GROUP_X};
use crate::pool::{MAX_MODEL_NAME, MAX_TARGET_MODELS, MAX_TARGET_PORTS, MAX_TARGET_WEIGHT};

/// Longest name of an object (RFC 1123 subdomain).
const MAX_NAME: usize = 253;
/// Most labels in a pool's selector.
const MAX_SELECTOR_LABELS: usize = 64;
/// Most rules of a rewrite, and most models of a rule. An API server wants a bound of what CEL looks at.
const MAX_REWRITE_LIST: usize = 16;
/// Most conditions of one object (Gateway API).
const MAX_CONDITIONS: usize = 8;
/// Most parents in a pool's status (Gateway API).
const MAX_PARENTS: usize = 32;
/// Review in which the Kubernetes API reviewers approved these kinds; an API server asks for it in groups of k8s.io.
const APPROVAL: &str = "https://github.com/kubernetes-sigs/gateway-api-inference-extension/pull/1173";
/// Annotation by which tools know the release of the Gateway API Inference Extension that a definition is of.
const BUNDLE_VERSION: &str = "inference.networking.k8s.io/bundle-version";
/// The release whose v1 InferencePool has the same schema. It has none of the other kinds.
const BUNDLE: &str = "v1.6.0";

/// Value of a label (Kubernetes: `IsValidLabelValue`).
const LABEL_VALUE: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
/// An API group; empty for the core group.
const GROUP_NAME: &str = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
/// Kind of an object.
const KIND_NAME: &str = "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$";
/// Reason of a condition (Kubernetes: `metav1.Condition`).
const REASON: &str = "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$";

/// A CustomResourceDefinition.
#[derive(Clone, Debug, PartialEq)]
pub struct Crd {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    short_name: &'static str,
    /// Columns that `kubectl get` shows, each with its JSON path.
    columns: Vec<(&'static str, &'static str)>,
    spec: Value,
    status: Value,
}

/// All that Warmpath serves.
#[must_use]
pub fn all() -> [Crd; 5] {
    [
        Crd {
            group: GROUP_X,
            version: "v1alpha2",
            kind: "InferencePool",
            short_name: "xinfpool",
            columns: vec![("Picker", ".spec.extensionRef.name"), ("Port", ".spec.targetPortNumber")],
            spec: pool_spec_v1alpha2(),
            status: pool_status("parent"),
        },
        Crd {
            group: GROUP,
            version: "v1",
            kind: "InferencePool",
            short_name: "infpool",
            columns: vec![
                ("Picker", ".spec.endpointPickerRef.name"),
                ("Ports", ".spec.targetPorts[*].number"),
            ],
            spec: pool_spec_v1(),
            status: pool_status("parents"),
        },
        Crd {
            group: GROUP_X,
            version: "v1alpha2",
            kind: "InferenceModel",
            short_name: "infmodel",
            columns: vec![
                ("Model Name", ".spec.modelName"),
                ("Inference Pool", ".spec.poolRef.name"),
                ("Criticality", ".spec.criticality"),
                ("Accepted", ".status.conditions[?(@.type==\"Accepted\")].status"),
            ],
            spec: model_spec(),
            status: object(&[], json!({ "conditions": conditions() })),
        },
        Crd {
            group: GROUP_X,
            version: "v1alpha2",
            kind: "InferenceObjective",
            short_name: "infobj",
            columns: vec![("Inference Pool", ".spec.poolRef.name"), ("Priority", ".spec.priority")],
            spec: objective_spec(),
            status: object(&[], json!({ "conditions": conditions() })),
        },
        Crd {
            group: GROUP_X,
            version: "v1alpha2",
            kind: "InferenceModelRewrite",
            short_name: "infrewrite",
            columns: vec![("Inference Pool", ".spec.poolRef.name")],
            spec: rewrite_spec(),
            status: object(&[], json!({ "conditions": conditions() })),
        },
    ]
}

// === impl Crd ===

impl Crd {
    /// The definition's own name, `<plural>.<group>`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.plural(), self.group)
    }

    /// The schema of one object, in the subset of JSON Schema that an API server takes.
    #[must_use]
    pub fn schema(&self) -> Value {
        let Self { spec, status, .. } = self;
        let properties = json!({
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object" },
            "spec": spec,
            "status": status,
        });
        object(&["spec"], properties)
    }

    /// The object to apply to a cluster.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let Self { group, version, kind, short_name, columns, spec: _, status: _ } = self;
        let plural = self.plural();
        let mut annotations = json!({ "api-approved.kubernetes.io": APPROVAL });
        if *group == GROUP {
            annotations[BUNDLE_VERSION] = json!(BUNDLE);
        }
        let column = |(name, path): (&str, &str)| json!({ "name": name, "type": "string", "jsonPath": path });
        let mut columns: Vec<Value> = columns.iter().copied().map(column).collect();
        columns.push(json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }));
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": self.name(),
                "annotations": annotations,
            },
            "spec": {
                "group": group,
                "names": {
                    "kind": kind,
                    "listKind": format!("{kind}List"),
                    "plural": plural,
                    "singular": kind.to_lowercase(),
                    "shortNames": [short_name],
                },
                "scope": "Namespaced",
                "versions": [ {
                    "name": version,
                    "served": true,
                    "storage": true,
                    "additionalPrinterColumns": columns,
                    "schema": { "openAPIV3Schema": self.schema() },
                    "subresources": { "status": {} },
                } ],
            },
        })
    }

    fn plural(&self) -> String {
        format!("{}s", self.kind.to_lowercase())
    }
}

// === schemas ===

fn pool_spec_v1alpha2() -> Value {
    let mut extension_ref = picker_ref();
    extension_ref["portNumber"] = with(port(), "default", json!(DEFAULT_PICKER_PORT));
    object(
        &["selector", "targetPortNumber", "extensionRef"],
        json!({
            "selector": labels(),
            "targetPortNumber": port(),
            "extensionRef": object(&["name"], extension_ref),
        }),
    )
}

fn pool_spec_v1() -> Value {
    let numbered = || object(&["number"], json!({ "number": port() }));
    let mut endpoint_picker_ref = picker_ref();
    endpoint_picker_ref["port"] = numbered();
    let needs_port = cel(
        "self.kind != 'Service' || has(self.port)",
        "port is required when kind is 'Service' or unspecified",
    );
    object(
        &["selector", "targetPorts"],
        json!({
            "selector": object(&["matchLabels"], json!({ "matchLabels": labels() })),
            "targetPorts": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_TARGET_PORTS,
                "items": numbered(),
                "x-kubernetes-list-type": "atomic",
                "x-kubernetes-validations": cel(
                    "self.all(a, self.exists_one(b, a.number == b.number))",
                    "port number must be unique",
                ),
            },
            "appProtocol": { "type": "string", "enum": ["http", "kubernetes.io/h2c"], "default": "http" },
            "endpointPickerRef":
                with(object(&["name"], endpoint_picker_ref), "x-kubernetes-validations", needs_port),
        }),
    )
}

fn model_spec() -> Value {
    object(
        &["modelName", "poolRef"],
        json!({
            "modelName": with(
                text(1, MAX_MODEL_NAME),
                "x-kubernetes-validations",
                cel("self == oldSelf", "modelName is immutable"),
            ),
            "criticality": { "type": "string", "enum": ["Critical", "Standard", "Sheddable"] },
            "targetModels": targets("name"),
            "poolRef": pool_ref(GROUP_X),
        }),
    )
}

fn objective_spec() -> Value {
    let priority = json!({ "type": "integer", "format": "int32", "minimum": i32::MIN, "maximum": i32::MAX });
    object(&["poolRef"], json!({ "priority": priority, "poolRef": pool_ref(GROUP) }))
}

fn rewrite_spec() -> Value {
    let exact = json!({ "type": "string", "enum": ["Exact"], "default": "Exact" });
    let model = object(&["value"], json!({ "type": exact, "value": text(1, MAX_MODEL_NAME) }));
    let matcher = object(&["model"], json!({ "model": model }));
    let rule = json!({
        "matches": { "type": "array", "maxItems": MAX_REWRITE_LIST, "items": matcher },
        "targets": targets("modelRewrite"),
    });
    let rules = json!({ "type": "array", "maxItems": MAX_REWRITE_LIST, "items": object(&[], rule) });
    object(&["poolRef", "rules"], json!({ "poolRef": pool_ref(GROUP), "rules": rules }))
}

/// Models in the engines, each with its name in the field `name`.
fn targets(name: &str) -> Value {
    let weight = json!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": MAX_TARGET_WEIGHT });
    json!({
        "type": "array",
        "maxItems": MAX_TARGET_MODELS,
        "items": object(&[name], json!({ name: text(1, MAX_NAME), "weight": weight })),
        "x-kubernetes-validations": cel(
            "self.all(model, has(model.weight)) || self.all(model, !has(model.weight))",
            "set a weight on all target models or on none",
        ),
    })
}

fn pool_ref(default_group: &str) -> Value {
    let pool_ref = json!({
        "group": with(group_name(), "default", json!(default_group)),
        "kind": with(kind_name(), "default", json!("InferencePool")),
        "name": text(1, MAX_NAME),
    });
    object(&["name"], pool_ref)
}

/// Properties that the reference to a picker has in both versions.
fn picker_ref() -> Value {
    json!({
        "group": with(group_name(), "default", json!("")),
        "kind": with(kind_name(), "default", json!("Service")),
        "name": text(1, MAX_NAME),
        "failureMode": { "type": "string", "enum": ["FailClose", "FailOpen"], "default": "FailClose" },
    })
}

/// Status of a pool: one entry per Gateway, in the list of the name that the version has for it.
fn pool_status(list: &str) -> Value {
    let parent_ref = object(
        &["name"],
        json!({
            "group": with(group_name(), "default", json!(GATEWAY_GROUP)),
            "kind": with(kind_name(), "default", json!("Gateway")),
            "namespace": text(1, 63),
            "name": text(1, MAX_NAME),
        }),
    );
    let parent = object(
        &["parentRef"],
        json!({ "parentRef": parent_ref, "controllerName": text(1, MAX_NAME), "conditions": conditions() }),
    );
    let parents = json!({
        "type": "array",
        "maxItems": MAX_PARENTS,
        "items": parent,
        "x-kubernetes-list-type": "atomic",
    });
    object(&[], json!({ list: parents }))
}

fn conditions() -> Value {
    let condition = object(
        &["type", "status", "reason", "message", "lastTransitionTime"],
        json!({
            "type": text(1, 316),
            "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
            "reason": with(text(1, 1024), "pattern", json!(REASON)),
            "message": text(0, 32_768),
            "lastTransitionTime": { "type": "string", "format": "date-time" },
            "observedGeneration": { "type": "integer", "format": "int64", "minimum": 0 },
        }),
    );
    json!({
        "type": "array",
        "maxItems": MAX_CONDITIONS,
        "items": condition,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
    })
}

fn object(required: &[&str], properties: Value) -> Value {
    let object = json!({ "type": "object", "properties": properties });
    if required.is_empty() { object } else { with(object, "required", json!(required)) }
}

fn with(mut schema: Value, keyword: &str, value: Value) -> Value {
    schema[keyword] = value;
    schema
}

fn text(shortest: usize, longest: usize) -> Value {
    json!({ "type": "string", "minLength": shortest, "maxLength": longest })
}

fn port() -> Value {
    json!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": u16::MAX })
}

fn labels() -> Value {
    json!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": MAX_SELECTOR_LABELS,
        "additionalProperties": with(text(0, 63), "pattern", json!(LABEL_VALUE)),
    })
}

fn group_name() -> Value {
    with(text(0, MAX_NAME), "pattern", json!(GROUP_NAME))
}

fn kind_name() -> Value {
    with(text(1, 63), "pattern", json!(KIND_NAME))
}

fn cel(rule: &str, message: &str) -> Value {
    json!([ { "rule": rule, "message": message } ])
}
