//! The program follows an API server, and says what is wrong with the flags for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, Query};
use axum::response::{IntoResponse as _, Response};
use epp::server::{Server, Shutdown};
use epp::source::{Cluster, Config};
use pool_watch::view::{PoolScope, Pools};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::fixtures::{get, settings, until};

/// Answers lists with one pool and one pod of the namespace `ai`, and watches with silence.
async fn answer(OriginalUri(uri): OriginalUri, Query(query): Query<BTreeMap<String, String>>) -> Response {
    if query.contains_key("watch") {
        return Body::from_stream(futures::stream::pending::<Result<String, std::io::Error>>())
            .into_response();
    }
    let pool = json!({
        "metadata": { "name": "p", "namespace": "ai", "uid": "1" },
        "spec": { "targetPortNumber": 9, "selector": { "app": "qwen" }, "extensionRef": { "name": "picker" } },
    });
    let pod = json!({
        "metadata": { "name": "qwen-0", "namespace": "ai", "labels": { "app": "qwen" } },
        "status": { "podIP": "127.0.0.1", "conditions": [ { "type": "Ready", "status": "True" } ] },
    });
    let items: Vec<Value> = match uri.path() {
        "/api/v1/namespaces/ai/pods" => vec![pod],
        "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/ai/inferencepools" => vec![pool],
        _ => Vec::new(),
    };
    json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items })
        .to_string()
        .into_response()
}

fn kubeconfig(dir: &TempDir, server: &str) -> PathBuf {
    let path = dir.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [ { "name": "c", "cluster": { "server": server } } ],
        "contexts": [ { "name": "c", "context": { "cluster": "c", "user": "u" } } ],
        "users": [ { "name": "u", "user": {} } ],
    });
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

#[tokio::test]
async fn the_picker_follows_the_cluster_that_a_kubeconfig_names() {
    let (mut tasks, dir) = (JoinSet::new(), TempDir::new().unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let kubeconfig = kubeconfig(&dir, &format!("http://{}", listener.local_addr().unwrap()));
    tasks.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    for (picker, is_followed) in [("picker", true), ("somebody-else", false)] {
        let scope = PoolScope { namespace: "ai".to_owned(), pools: Pools::OfPicker(picker.to_owned()) };
        let mut settings = settings(Path::new(""), Path::new(""), 1 << 20);
        settings.source = Config::Cluster(Cluster { scope, kubeconfig: Some(kubeconfig.clone()) });
        let server = Server::bind(settings).await.unwrap();
        let (metrics, shutdown) = (server.ports().unwrap().metrics, Shutdown::default());
        let mut run = JoinSet::new();
        run.spawn(server.run(shutdown.clone()));
        until(async || get(metrics, "/metrics").await.contains("epp_kubernetes_listed 1")).await;
        until(async || get(metrics, "/debug/pools").await.contains("127.0.0.1:9") == is_followed).await;
        shutdown.abort.cancel();
        run.join_next().await.unwrap().unwrap().unwrap();
    }
}

#[test]
fn a_flag_that_does_not_go_with_another_is_an_error() {
    let said = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_epp")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = said(&[]);
    assert!(code == Some(2) && text.contains("--pool-file"), "{text}");
    let (code, text) = said(&["--watch-pool", "ai/p", "--pool-file", "x.yaml"]);
    assert!(code == Some(2) && text.contains("cannot be used with"), "{text}");
    let (code, text) = said(&["--watch-pool", "ai/p", "--watch-picker", "ai/e"]);
    assert!(code == Some(2) && text.contains("cannot be used with"), "{text}");
    let (code, text) = said(&["--watch-pool", "ai/p", "--kubeconfig", "/nowhere/config"]);
    assert!(code == Some(1) && text.contains("/nowhere/config: not a usable kubeconfig"), "{text}");
}
