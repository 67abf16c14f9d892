//! Events of an API server become snapshots; faults of the API server change none.

use std::time::Duration;

use inference_api::object::ObjectKey;
use inference_api::pool::{Criticality, RoutingStrategy};
use pool_index::snapshot::{Pool, Reader, Snapshot};
use pool_watch::source::{Connected, Source};
use pool_watch::view::{PoolScope, Pools};
use pool_watch::watches::WatchState;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::api_server::{ApiServer, MODELS, OBJECTIVES, PODS, POOLS, POOLS_X, REWRITES};

/// Patience with the source; far longer than any pause between its attempts.
const PATIENCE: Duration = Duration::from_secs(30);

/// Time in which a list that fails is asked for at pauses of 0.1, 0.2, 0.4, 0.8 and 1.6 s.
const ASKED: Duration = Duration::from_secs(3);
/// Without longer pauses it would be asked for thirty times.
const MOST_ASKED: usize = 7;

/// A ready pod with the label `app: qwen`.
pub(crate) fn pod(name: &str, ip: &str) -> Value {
    let conditions =
        json!([ { "type": "PodScheduled", "status": "True" }, { "type": "Ready", "status": "True" } ]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "ai", "labels": { "app": "qwen", "pod-template-hash": "x" } },
        "spec": { "containers": [] },
        "status": { "phase": "Running", "podIP": ip, "conditions": conditions },
    })
}

fn labelled(app: &str, mut pod: Value) -> Value {
    pod["metadata"]["labels"]["app"] = json!(app);
    pod
}

fn pool(name: &str, app: &str, port: u16) -> Value {
    json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool",
        "metadata": { "name": name, "namespace": "ai", "managedFields": [], "annotations": {} },
        "spec": {
            "selector": { "app": app }, "targetPortNumber": port, "extensionRef": { "name": "picker", "new": true },
        },
    })
}

fn pool_v1(name: &str, app: &str, ports: &[u16]) -> Value {
    let ports: Vec<Value> = ports.iter().map(|number| json!({ "number": number })).collect();
    json!({
        "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool",
        "metadata": { "name": name, "namespace": "ai" },
        "spec": {
            "selector": { "matchLabels": { "app": app } }, "targetPorts": ports, "appProtocol": "http",
            "endpointPickerRef": { "name": "picker", "port": { "number": 9002 } },
        },
    })
}

fn model(name: &str) -> Value {
    json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModel",
        "metadata": { "name": name, "namespace": "ai", "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "modelName": name, "poolRef": { "name": "p" } },
    })
}

/// A source that follows a server.
struct Followed {
    server: ApiServer,
    reader: Reader,
    watch_state: watch::Receiver<WatchState>,
    task: JoinHandle<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    async fn start(collections: &[&str], pools: Pools, prepare: impl FnOnce(&ApiServer)) -> Self {
        let server = ApiServer::start(collections).await;
        prepare(&server);
        let scope = PoolScope { namespace: "ai".to_owned(), pools };
        let Connected { source, reader, watch_state } = Source::try_new(server.config(), scope).unwrap();
        let task = tokio::spawn(source.run(std::future::pending()));
        Self { server, reader, watch_state, task }
    }

    /// A server with every kind, the pool `p` on port 8000 of `app: qwen`, and two pods.
    async fn with_two_pods() -> Self {
        let followed = Self::start(&[PODS, POOLS, POOLS_X, MODELS], of_picker(), |server| {
            server.apply(POOLS_X, pool("p", "qwen", 8000));
            server.apply(PODS, pod("a", "10.0.0.1"));
            server.apply(PODS, pod("b", "10.0.0.2"));
        });
        let mut followed = followed.await;
        followed.endpoints("p", &["10.0.0.1:8000", "10.0.0.2:8000"]).await;
        followed
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Snapshot) -> bool) {
        let seen = timeout(PATIENCE, async {
            while !holds(&self.reader.snapshot()) {
                self.reader.changed().await.unwrap();
            }
        });
        assert!(seen.await.is_ok(), "{what}, but {:?}", self.reader.snapshot_owned().pools);
    }

    /// Waits until the pool has these endpoints.
    async fn endpoints(&mut self, pool: &str, expected: &[&str]) {
        self.until(&format!("{pool} has {expected:?}"), |snapshot| addresses(snapshot, pool) == expected)
            .await;
    }

    async fn watch_state(&mut self, holds: impl Fn(&WatchState) -> bool) {
        timeout(PATIENCE, self.watch_state.wait_for(|watch_state| holds(watch_state)))
            .await
            .unwrap()
            .unwrap();
    }
}

fn of_picker() -> Pools {
    Pools::OfPicker("picker".to_owned())
}

fn addresses(snapshot: &Snapshot, pool: &str) -> Vec<String> {
    let pool = snapshot.pools.get(&ObjectKey::new("ai", pool));
    let endpoints = pool.into_iter().flat_map(|pool| pool.endpoints.iter());
    let mut addresses: Vec<String> = endpoints.map(|endpoint| endpoint.address.to_string()).collect();
    addresses.sort();
    addresses
}

#[tokio::test]
async fn endpoints_follow_pods_that_come_go_and_change() {
    let mut followed = Followed::with_two_pods().await;
    let server = followed.server.clone();
    server.apply(PODS, pod("c", "10.0.0.3"));
    followed.endpoints("p", &["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]).await;
    server.delete(PODS, "b");
    followed.endpoints("p", &["10.0.0.1:8000", "10.0.0.3:8000"]).await;
    let mut unready = pod("a", "10.0.0.1");
    unready["status"]["conditions"][1]["status"] = json!("False");
    server.apply(PODS, unready);
    followed.endpoints("p", &["10.0.0.3:8000"]).await;
    server.apply(PODS, pod("a", "10.0.0.9"));
    followed.endpoints("p", &["10.0.0.3:8000", "10.0.0.9:8000"]).await;
    server.apply(PODS, labelled("other", pod("c", "10.0.0.3")));
    followed.endpoints("p", &["10.0.0.9:8000"]).await;
}

#[tokio::test]
async fn a_pool_gets_only_what_its_selector_selects() {
    let mut followed = Followed::with_two_pods().await;
    let server = followed.server.clone();
    server.apply(PODS, labelled("other", pod("o", "10.0.1.1")));
    server.apply(POOLS, pool_v1("q", "other", &[8000, 8001]));
    followed.endpoints("q", &["10.0.1.1:8000", "10.0.1.1:8001"]).await;
    assert_eq!(addresses(&followed.reader.snapshot(), "p"), ["10.0.0.1:8000", "10.0.0.2:8000"]);
    let mut asked: Vec<String> = server
        .requests()
        .into_iter()
        .filter(|(path, _)| path == PODS)
        .map(|(_, selector)| selector)
        .collect();
    asked.sort();
    asked.dedup();
    assert_eq!(asked, ["app=other", "app=qwen"], "the API server is asked for no other pods");
}

#[tokio::test]
async fn an_edited_pool_counts_at_once() {
    let mut followed = Followed::with_two_pods().await;
    let server = followed.server.clone();
    let mut edited = pool("p", "qwen", 9000);
    edited["metadata"]["annotations"] =
        json!({ "inference.networking.x-k8s.io/routing-strategy": "PREFIX_CACHE" });
    server.apply(POOLS_X, edited);
    followed.endpoints("p", &["10.0.0.1:9000", "10.0.0.2:9000"]).await;
    let strategy = followed.reader.snapshot().pools[&ObjectKey::new("ai", "p")].strategy;
    assert_eq!(strategy, RoutingStrategy::PrefixCache);

    server.apply(PODS, labelled("other", pod("o", "10.0.1.1")));
    server.apply(POOLS_X, pool("p", "other", 8000));
    followed.endpoints("p", &["10.0.1.1:8000"]).await;
    server.apply(MODELS, model("m"));
    followed.until("the model", |snapshot| snapshot.models.contains_key(&ObjectKey::new("ai", "m"))).await;
    server.delete(POOLS_X, "p");
    followed.until("no pool", |snapshot| snapshot.pools.is_empty()).await;
}

/// Objects of both groups change the pool as they come, change and go. Of two with one name, the newer group's counts.
#[tokio::test]
async fn objectives_and_rewrites_count_at_once() {
    let kinds = [PODS, POOLS_X, OBJECTIVES[0], OBJECTIVES[1], REWRITES[0], REWRITES[1]];
    let prepare = |server: &ApiServer| server.apply(POOLS_X, pool("p", "qwen", 8000));
    let mut followed = Followed::start(&kinds, of_picker(), prepare).await;
    let server = followed.server.clone();
    let objective = |priority: i32| json!({ "metadata": { "name": "batch", "namespace": "ai" }, "spec": { "priority": priority, "poolRef": { "name": "p" } } });
    for (collection, priority, expected) in [
        (OBJECTIVES[0], -1, Criticality::Sheddable),
        (OBJECTIVES[1], 1, Criticality::Critical),
        (OBJECTIVES[1], -1, Criticality::Sheddable),
    ] {
        server.apply(collection, objective(priority));
        followed
            .until("the objective", |snapshot| {
                served(snapshot).is_some_and(|pool| pool.objectives.get("batch") == Some(&expected))
            })
            .await;
    }
    for collection in OBJECTIVES {
        server.delete(collection, "batch");
    }
    let is_empty = |pool: &Pool| pool.objectives.is_empty();
    followed.until("no objective", |snapshot| served(snapshot).is_some_and(is_empty)).await;
    for (collection, target) in [(REWRITES[0], "older"), (REWRITES[1], "newer")] {
        let rules = json!([{ "matches": [{ "model": { "value": "alias" } }], "targets": [{ "modelRewrite": target }] }]);
        server.apply(collection, json!({ "metadata": { "name": "w", "namespace": "ai" }, "spec": { "poolRef": { "name": "p" }, "rules": rules } }));
        let is_target = |pool: &Pool| {
            pool.rewrites.by_model.get("alias").is_some_and(|targets| targets[0].name == target)
        };
        followed.until("the rewrite", |snapshot| served(snapshot).is_some_and(is_target)).await;
    }
}

fn served(snapshot: &Snapshot) -> Option<&Pool> {
    snapshot.pools.get(&ObjectKey::new("ai", "p")).map(|pool| &**pool)
}

#[tokio::test]
async fn pools_of_other_pickers_are_left_alone() {
    let foreign = || {
        let mut foreign = pool("foreign", "qwen", 8000);
        foreign["spec"]["extensionRef"]["name"] = json!("somebody-else");
        foreign
    };
    let collections = [PODS, POOLS, POOLS_X, MODELS];
    let prepare = |server: &ApiServer| {
        server.apply(POOLS_X, foreign());
        server.apply(POOLS_X, pool("p", "qwen", 8000));
    };
    let mut followed = Followed::start(&collections, of_picker(), prepare).await;
    followed.until("pools", |snapshot| !snapshot.pools.is_empty()).await;
    assert!(followed.reader.snapshot().pools.keys().all(|key| key.name == "p"));
    // Control: the other pool by its name.
    let named = Pools::Named("foreign".to_owned());
    let mut followed = Followed::start(&collections, named, prepare).await;
    followed.until("pools", |snapshot| !snapshot.pools.is_empty()).await;
    assert!(followed.reader.snapshot().pools.keys().all(|key| key.name == "foreign"));
}

#[tokio::test]
async fn a_broken_watch_is_resumed_and_what_happened_meanwhile_is_seen() {
    let mut followed = Followed::with_two_pods().await;
    let server = followed.server.clone();
    let n_lists = |server: &ApiServer| server.requests().len();
    let before = n_lists(&server);
    server.break_watches();
    server.apply(PODS, pod("c", "10.0.0.3"));
    followed.endpoints("p", &["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]).await;
    assert!(n_lists(&server) > before);
}

#[tokio::test]
async fn after_410_the_source_lists_again_and_forgets_what_is_gone() {
    let mut followed = Followed::with_two_pods().await;
    let server = followed.server.clone();
    let slot = |followed: &Followed| followed.reader.snapshot().endpoints[0].slot;
    let kept = slot(&followed);
    server.set_down(true);
    followed.watch_state(|watch_state| watch_state.is_failing).await;
    server.delete(PODS, "b");
    server.compact();
    server.set_down(false);
    followed.endpoints("p", &["10.0.0.1:8000"]).await;
    assert_eq!(slot(&followed), kept, "the pod that stayed is the same endpoint");
}

#[tokio::test]
async fn while_the_api_server_is_away_the_last_snapshot_stays_in_force() {
    if test_skips::skips_slow() {
        return;
    }
    let mut followed = Followed::with_two_pods().await;
    let server = followed.server.clone();
    assert!(!followed.watch_state.borrow().is_failing);
    let version = followed.reader.snapshot().version;
    server.set_down(true);
    followed.watch_state(|watch_state| watch_state.is_failing && watch_state.n_failures > 3).await;
    assert_eq!(followed.reader.snapshot().version, version);
    server.apply(PODS, pod("c", "10.0.0.3"));
    server.set_down(false);
    followed.endpoints("p", &["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]).await;
    followed.watch_state(|watch_state| !watch_state.is_failing).await;
}

#[tokio::test]
async fn nothing_is_published_before_every_list_is_in() {
    let server = ApiServer::start(&[PODS, POOLS, POOLS_X, MODELS]).await;
    server.apply(POOLS_X, pool("p", "qwen", 8000));
    server.set_down(true);
    let scope = PoolScope { namespace: "ai".to_owned(), pools: of_picker() };
    let Connected { source, reader, watch_state } = Source::try_new(server.config(), scope).unwrap();
    let task = tokio::spawn(source.run(std::future::pending()));
    let mut followed = Followed { server: server.clone(), reader, watch_state, task };
    followed.watch_state(|watch_state| watch_state.is_failing).await;
    assert!(!followed.watch_state.borrow().is_listed);
    assert_eq!(followed.reader.snapshot().version, 0);
    server.set_down(false);
    followed.watch_state(|watch_state| watch_state.is_listed).await;
    assert_eq!(followed.reader.snapshot().pools.len(), 1);
}

#[tokio::test]
async fn a_kind_that_is_not_installed_is_empty() {
    let mut followed = Followed::start(&[PODS, POOLS_X], of_picker(), |server| {
        server.apply(POOLS_X, pool("p", "qwen", 8000));
        server.apply(PODS, pod("a", "10.0.0.1"));
    })
    .await;
    followed.endpoints("p", &["10.0.0.1:8000"]).await;
    assert!(!followed.watch_state.borrow().is_failing);
}

/// Lists of a kind that is not installed are asked for less and less often, and those of an API server that is away.
#[tokio::test]
async fn what_does_not_answer_is_asked_less_and_less_often() {
    let followed = Followed::with_two_pods().await;
    let server = followed.server.clone();
    let n_asked = |path: &str| server.requests().iter().filter(|(asked, _)| asked == path).count();
    sleep(ASKED).await;
    let n_missing = n_asked(OBJECTIVES[1]);
    assert!((2..=MOST_ASKED).contains(&n_missing), "{n_missing}");
    let before = n_asked(POOLS_X);
    server.set_down(true);
    sleep(ASKED).await;
    let n_failed = n_asked(POOLS_X) - before;
    assert!((2..=MOST_ASKED).contains(&n_failed), "{n_failed}");
}

#[tokio::test]
async fn a_bad_object_is_reported_and_its_last_good_version_kept() {
    let mut followed = Followed::with_two_pods().await;
    let server = followed.server.clone();
    let mut bad = pool("p", "qwen", 9000);
    bad["spec"]["targetPortNumber"] = json!("eight");
    server.apply(POOLS_X, bad.clone());
    followed.watch_state(|watch_state| watch_state.n_refused == 1).await;
    server.apply(PODS, pod("c", "10.0.0.3"));
    followed.endpoints("p", &["10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"]).await;
    bad["metadata"]["name"] = json!("never-good");
    server.apply(POOLS_X, bad);
    followed.watch_state(|watch_state| watch_state.n_refused == 2).await;
    assert_eq!(followed.reader.snapshot().pools.len(), 1);
    server.apply(POOLS_X, pool("p", "qwen", 9000));
    followed.endpoints("p", &["10.0.0.1:9000", "10.0.0.2:9000", "10.0.0.3:9000"]).await;
    followed.watch_state(|watch_state| watch_state.n_refused == 1).await;
}
