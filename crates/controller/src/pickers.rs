//! The objects that managed pickers need around their processes: identity, rights and an address.

use std::collections::BTreeMap;

use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::InferencePool;
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::names::{INSTANCE, METRICS_PORT};
use crate::objects::owner;
use crate::resolve::{self, PickerService};
use crate::sweep;

/// The managed pickers that the pools ask for, each with its pools, which are in one namespace and name one Service.
#[must_use]
pub fn managed(facts: &Facts) -> BTreeMap<ObjectKey, Vec<&InferencePool>> {
    let mut pickers: BTreeMap<ObjectKey, Vec<&InferencePool>> = BTreeMap::new();
    for pool in &facts.pools {
        if let PickerService::Managed(picker) = resolve::picker(pool, facts) {
            pickers.entry(picker).or_default().push(pool);
        }
    }
    pickers
}

/// The ServiceAccount and the Service of a managed picker, in the controller's namespace, and in the namespace of `pools`
/// the Role and RoleBinding by which it reads them, their models and their pods. The API server removes these two with the
/// last of the pools.
///
/// The Service is headless: the proxies and the other pickers see each picker of several.
#[must_use]
pub fn around(picker: &ObjectKey, pools: &[&InferencePool]) -> Vec<Value> {
    let labels = json!({
        sweep::MANAGED_BY: sweep::MANAGER,
        "app.kubernetes.io/name": "epp",
        INSTANCE: picker.name,
    });
    let here = json!({ "name": picker.name, "namespace": picker.namespace, "labels": labels });
    let port = |name: &str, port: u16| json!({ "name": name, "port": port, "targetPort": port });
    let mut objects = vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": here }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": here,
            "spec": {
                "type": "ClusterIP",
                "clusterIP": "None",
                "selector": { INSTANCE: picker.name },
                "ports": [port("ext-proc", keys::DEFAULT_PICKER_PORT), port("metrics", METRICS_PORT)],
            },
        }),
    ];
    let Some(pool) = pools.first() else { return objects };
    let mut there = json!({ "name": picker.name, "namespace": pool.meta.namespace, "labels": labels });
    let owners: Vec<Value> = pools.iter().filter_map(|pool| owner(pool)).collect();
    if !owners.is_empty() {
        there["ownerReferences"] = json!(owners);
    }
    objects.extend(rights(picker, &there));
    objects
}

fn rights(picker: &ObjectKey, metadata: &Value) -> [Value; 2] {
    let read = |group: &str, resources: &[&str]| json!({ "apiGroups": [group], "resources": resources, "verbs": ["get", "list", "watch"] });
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata,
        "rules": [
            read("", &["pods"]),
            read(
                keys::GROUP_X,
                &["inferencepools", "inferencemodels", "inferenceobjectives", "inferencemodelrewrites"],
            ),
            read(keys::LLM_D_GROUP, &["inferenceobjectives", "inferencemodelrewrites"]),
            read(keys::GROUP, &["inferencepools"]),
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": picker.name },
        "subjects": [{ "kind": "ServiceAccount", "name": picker.name, "namespace": picker.namespace }],
    });
    [role, binding]
}
