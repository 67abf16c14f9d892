//! Manifests of our own components: their pods keep to the Pod Security profile `restricted`, and to what a cluster needs
//! to run them well.

use serde_json::Value;

/// Kinds of volumes that the profile allows.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// The objects of a YAML or JSON text.
///
/// # Errors
/// If it is not YAML.
pub fn objects(text: &str) -> Result<Vec<Value>, serde_saphyr::Error> {
    let objects: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

/// Complaints about the pods that an object makes; none for an object that makes no pods.
#[must_use]
pub fn complaints(object: &Value) -> Vec<String> {
    let pod = &object["spec"]["template"]["spec"];
    if pod.is_null() {
        return Vec::new();
    }
    let name = object["metadata"]["name"].as_str().unwrap_or("an object without a name");
    let mut found = Vec::new();
    let mut expect = |holds: bool, rule: &str| {
        if !holds {
            found.push(format!("{name}: {rule}"));
        }
    };
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        expect(pod[shared].is_null() || pod[shared] == false, &format!("{shared} is set"));
    }
    for volume in list(&pod["volumes"]) {
        let is_allowed = VOLUMES.iter().any(|kind| volume.get(kind).is_some());
        expect(is_allowed, &format!("volume {} is of a kind that is not allowed", volume["name"]));
    }
    let containers: Vec<&Value> =
        list(&pod["containers"]).iter().chain(list(&pod["initContainers"])).collect();
    expect(!containers.is_empty(), "no container");
    for container in containers {
        for rule in container_complaints(container, &pod["securityContext"]) {
            expect(false, &rule);
        }
    }
    found
}

fn container_complaints(container: &Value, of_pod: &Value) -> Vec<String> {
    let name = container["name"].as_str().unwrap_or("a container without a name");
    let own = &container["securityContext"];
    let effective = |field: &str| if own[field].is_null() { &of_pod[field] } else { &own[field] };
    let dropped = list(&own["capabilities"]["drop"]);
    let n_added =
        list(&own["capabilities"]["add"]).iter().filter(|added| *added != "NET_BIND_SERVICE").count();
    let image = container["image"].as_str().unwrap_or_default();
    let has_tag = image.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    let requests = &container["resources"]["requests"];
    let seccomp = &effective("seccompProfile")["type"];
    let rules = [
        (*effective("runAsNonRoot") == true, "runAsNonRoot is not true"),
        (*effective("runAsUser") != 0, "runAsUser is 0"),
        (seccomp == "RuntimeDefault" || seccomp == "Localhost", "seccompProfile is not RuntimeDefault"),
        (own["allowPrivilegeEscalation"] == false, "allowPrivilegeEscalation is not false"),
        (own["privileged"].is_null() || own["privileged"] == false, "privileged is set"),
        (dropped.iter().any(|capability| capability == "ALL"), "not all capabilities are dropped"),
        (n_added == 0, "capabilities are added"),
        (own["readOnlyRootFilesystem"] == true, "readOnlyRootFilesystem is not true"),
        (list(&container["ports"]).iter().all(|port| port["hostPort"].is_null()), "a hostPort"),
        (!requests["cpu"].is_null() && !requests["memory"].is_null(), "no requests of CPU and memory"),
        (!container["resources"]["limits"]["memory"].is_null(), "no limit of memory"),
        (!container["readinessProbe"].is_null(), "no readinessProbe"),
        (!container["livenessProbe"].is_null(), "no livenessProbe"),
        (has_tag && !image.ends_with(":latest"), "an image without a tag of its own"),
    ];
    rules.iter().filter(|(holds, _)| !holds).map(|(_, rule)| format!("{name}: {rule}")).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
