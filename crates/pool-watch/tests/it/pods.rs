//! Which pods are endpoints.

use std::collections::BTreeSet;

use inference_api::object::ObjectKey;
use k8s_openapi::api::core::v1::Pod;
use pool_watch::pods::PodState;
use serde_json::{Value, json};

use crate::source::pod;

/// `ip:port` of each record, with `!` if it is not ready.
fn records(pod: Value) -> Vec<String> {
    let state = PodState::new(serde_json::from_value::<Pod>(pod).unwrap());
    let (key, ports) = (ObjectKey::new("ai", "a"), BTreeSet::from([8000, 8001]));
    let shown = state.records(&key, &ports).map(|record| {
        assert_eq!(record.key, key);
        format!("{}{}", record.address, if record.ready { "" } else { "!" })
    });
    shown.collect()
}

#[test]
fn an_endpoint_is_each_target_port_of_a_ready_pod_with_an_address() {
    assert_eq!(records(pod("a", "10.0.0.1")), ["10.0.0.1:8000", "10.0.0.1:8001"]);
    assert_eq!(records(pod("a", "fd00::1")), ["[fd00::1]:8000", "[fd00::1]:8001"]);
}

#[test]
fn a_pod_that_is_not_ready_or_goes_is_not_ready() {
    let mut unready = pod("a", "10.0.0.1");
    unready["status"]["conditions"][1]["status"] = json!("False");
    assert_eq!(records(unready), ["10.0.0.1:8000!", "10.0.0.1:8001!"]);
    let mut goes = pod("a", "10.0.0.1");
    goes["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
    assert_eq!(records(goes), ["10.0.0.1:8000!", "10.0.0.1:8001!"]);
    let mut starts = pod("a", "10.0.0.1");
    starts["status"]["conditions"] = Value::Null;
    assert_eq!(records(starts), ["10.0.0.1:8000!", "10.0.0.1:8001!"]);
}

#[test]
fn a_pod_without_an_address_of_its_own_has_no_record() {
    for ip in [json!("0.0.0.0"), json!("nonsense"), Value::Null] {
        let mut addressless = pod("a", "");
        addressless["status"]["podIP"] = ip;
        assert_eq!(records(addressless), [] as [&str; 0]);
    }
    assert_eq!(records(json!({ "metadata": { "name": "a" } })), [] as [&str; 0]);
}
