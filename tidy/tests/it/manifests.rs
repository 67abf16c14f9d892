//! The manifests of our components are objects that a cluster takes, all of them are listed, and their pods are restricted.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidy::{pods, tree};

/// Folders for `kubectl apply -k`.
const FOLDERS: [&str; 3] = ["manifests/crds", "manifests/components", "manifests/replicas"];

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(tree::workspace().join(folder)).expect("the folder");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    files
}

fn objects(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("a readable file");
    pods::objects(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name")
}

#[test]
fn every_file_is_listed_and_holds_named_objects() {
    for folder in FOLDERS {
        let (kustomization, others): (Vec<PathBuf>, Vec<PathBuf>) =
            files(folder).into_iter().partition(|path| name(path) == "kustomization.yaml");
        assert_eq!(kustomization.len(), 1, "{folder}");
        let listed = &objects(&kustomization[0])[0]["resources"];
        for path in others {
            let is_listed = listed.as_array().unwrap().iter().any(|entry| entry == name(&path));
            assert!(is_listed, "{} is not listed", path.display());
            for object in objects(&path) {
                for field in [&object["apiVersion"], &object["kind"], &object["metadata"]["name"]] {
                    assert!(field.is_string(), "{}: {object}", path.display());
                }
            }
        }
    }
}

#[test]
fn pods_of_components_are_restricted() {
    let objects: Vec<Value> =
        FOLDERS.iter().flat_map(|folder| files(folder)).flat_map(|path| objects(&path)).collect();
    let workloads = objects.iter().filter(|object| object["kind"] == "Deployment");
    assert!(workloads.count() >= 1);
    let found: Vec<String> = objects.iter().flat_map(pods::complaints).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// A cluster with the profile enforced refuses what lacks any of these.
#[test]
fn a_pod_that_is_not_restricted_is_found() {
    let folder = tree::workspace().join("manifests/components/controller.yaml");
    let good = objects(&folder).into_iter().find(|object| object["kind"] == "Deployment").unwrap();
    assert!(pods::complaints(&good).is_empty());
    let found = |pointer: &str, value: Value| {
        let mut object = good.clone();
        *object.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is not there")) = value;
        pods::complaints(&object)
    };
    let container = "/spec/template/spec/containers/0";
    let name = "warmpath-controller: controller";
    for (field, value, complaint) in [
        ("/securityContext/allowPrivilegeEscalation", json!(true), "allowPrivilegeEscalation is not false"),
        ("/securityContext/readOnlyRootFilesystem", json!(false), "readOnlyRootFilesystem is not true"),
        ("/securityContext/capabilities", json!({ "drop": [] }), "not all capabilities are dropped"),
        (
            "/securityContext/capabilities",
            json!({ "drop": ["ALL"], "add": ["SYS_ADMIN"] }),
            "capabilities are added",
        ),
        ("/ports/0", json!({ "containerPort": 1, "hostPort": 1 }), "a hostPort"),
        ("/resources/requests", json!({ "cpu": 1 }), "no requests of CPU and memory"),
        ("/resources/limits", json!({}), "no limit of memory"),
        ("/readinessProbe", json!(null), "no readinessProbe"),
        ("/livenessProbe", json!(null), "no livenessProbe"),
        ("/image", json!("localhost:5000/controller"), "an image without a tag of its own"),
    ] {
        assert_eq!(found(&format!("{container}{field}"), value), [format!("{name}: {complaint}")]);
    }
    let pod = "/spec/template/spec/securityContext";
    for (field, value, complaint) in [
        ("/runAsNonRoot", json!(false), "runAsNonRoot is not true"),
        ("/runAsUser", json!(0), "runAsUser is 0"),
        ("/seccompProfile", json!({ "type": "Unconfined" }), "seccompProfile is not RuntimeDefault"),
    ] {
        assert_eq!(found(&format!("{pod}{field}"), value), [format!("{name}: {complaint}")]);
    }
    let mut object = good.clone();
    object["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
    object["spec"]["template"]["spec"]["volumes"] = json!([{ "name": "v", "hostPath": { "path": "/" } }]);
    assert_eq!(pods::complaints(&object).len(), 2);
}
