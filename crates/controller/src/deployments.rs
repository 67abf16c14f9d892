//! The processes of managed pickers.

use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::InferencePool;
use serde_json::{Value, json};

use crate::facts::Place;
use crate::names::{self, INSTANCE, METRICS_PORT};
use crate::setup::Setup;
use crate::sweep;

/// Directory in the picker's container with its certificate.
const CERTIFICATES: &str = "/etc/epp/certificates";

/// The Deployment at `place` of a managed picker for `pools`, which name one Service. Its pods fit the Pod Security Standard
/// `restricted`.
#[must_use]
pub fn deployment(
    picker: &ObjectKey,
    pools: &[&InferencePool],
    place: &Place,
    setup: &Setup,
) -> Option<Value> {
    let pool = pools.first()?;
    let named = ObjectKey::new(&pool.meta.namespace, &pool.picker.as_ref()?.name);
    let labels = json!({
        sweep::MANAGED_BY: sweep::MANAGER,
        "app.kubernetes.io/name": "epp",
        INSTANCE: picker.name,
    });
    let mut deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": picker.name, "namespace": picker.namespace, "labels": labels },
        "spec": {
            "selector": { "matchLabels": { INSTANCE: picker.name } },
            "template": { "metadata": { "labels": labels }, "spec": pod(picker, (&named, place), setup) },
        },
    });
    if let Some(replicas) = setup.replicas {
        deployment["spec"]["replicas"] = json!(replicas);
    }
    Some(deployment)
}

fn pod(picker: &ObjectKey, (named, place): (&ObjectKey, &Place), setup: &Setup) -> Value {
    let Setup { image, replicas: _, arguments: further, explains } = setup;
    let mut arguments = vec![
        format!("--watch-picker={named}"),
        "--host=0.0.0.0".to_owned(),
        "--metrics-host=0.0.0.0".to_owned(),
        "--secure-serving".to_owned(),
        format!("--cert-path={CERTIFICATES}"),
        format!("--peer={}:{METRICS_PORT}", names::address(picker, &place.domain)),
    ];
    arguments.extend(explains.then(|| "--explain-to-clients".to_owned()));
    arguments.extend(further.iter().cloned());
    let probe = |path: &str, period: u32| json!({ "httpGet": { "path": path, "port": "metrics" }, "periodSeconds": period });
    let port = |name: &str, port: u16| json!({ "name": name, "containerPort": port, "protocol": "TCP" });
    let container = json!({
        "name": "epp",
        "image": image,
        "args": arguments,
        "ports": [port("ext-proc", keys::DEFAULT_PICKER_PORT), port("metrics", METRICS_PORT)],
        "readinessProbe": probe("/readyz", 1),
        "livenessProbe": probe("/healthz", 10),
        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "2Gi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
        },
        "volumeMounts": [{ "name": "certificates", "mountPath": CERTIFICATES, "readOnly": true }],
    });
    json!({
        "serviceAccountName": picker.name,
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [container],
        "volumes": [{ "name": "certificates", "secret": { "secretName": picker.name } }],
    })
}
