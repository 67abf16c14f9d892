//! The Services of pools.

use controller::facts::Facts;
use controller::objects;
use expect_test::expect;
use inference_api::object::ObjectKey;

use crate::fixtures::{alpha_pool, facts, pool, v1_pool};

#[test]
fn a_pool_gets_a_headless_service() {
    let service = objects::pods_service(&pool(v1_pool()), &facts()).unwrap();
    expect![[r#"
        {
          "apiVersion": "v1",
          "kind": "Service",
          "metadata": {
            "name": "qwen-pods",
            "namespace": "default",
            "labels": {
              "app.kubernetes.io/managed-by": "warmpath-controller",
              "inference.networking.x-k8s.io/pool": "qwen"
            },
            "ownerReferences": [
              {
                "apiVersion": "inference.networking.k8s.io/v1",
                "kind": "InferencePool",
                "name": "qwen",
                "uid": "1"
              }
            ]
          },
          "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": false,
            "selector": {
              "app": "qwen"
            },
            "ports": [
              {
                "name": "port-8000",
                "port": 8000,
                "targetPort": 8000,
                "protocol": "TCP"
              },
              {
                "name": "port-8001",
                "port": 8001,
                "targetPort": 8001,
                "protocol": "TCP"
              }
            ]
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&service).unwrap());
}

#[test]
fn a_service_of_somebody_else_is_not_taken_over() {
    let taken = Facts { services: [ObjectKey::new("default", "qwen-pods")].into(), ..facts() };
    let error = objects::pods_service(&pool(alpha_pool()), &taken).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Service default/qwen-pods exists already, so InferencePool default/qwen has no endpoints: rename one of them"
    );
    // Control: in another namespace the name is free.
    let free = Facts { services: [ObjectKey::new("other", "qwen-pods")].into(), ..facts() };
    assert!(objects::pods_service(&pool(alpha_pool()), &free).is_ok());
}

#[test]
fn a_pool_with_a_long_name_is_not_labelled_by_it() {
    let mut long = alpha_pool();
    long["metadata"]["name"] = "x".repeat(70).into();
    let service = objects::pods_service(&pool(long), &facts()).unwrap();
    assert!(service["metadata"]["labels"].get(objects::POOL_LABEL).is_none());
    assert!(service["metadata"]["name"].as_str().unwrap().len() <= 63);
}
