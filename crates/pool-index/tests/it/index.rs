//! Which pool selects which endpoint, which model wins, and which endpoint owns which slot.

use inference_api::condition::ConditionStatus;
use inference_api::pool::{Criticality, InferencePool, ModelServerRuntime, RoutingStrategy};
use pool_index::index::{Change, EndpointRecord, Index, Membership};
use pool_index::snapshot::{Reader, Slot};

use crate::fixtures::{POOL, apply, key, logged, model_yaml, pool_yaml, ports, record};

fn index() -> (Index, Reader) {
    let (mut index, reader) = Index::new();
    index.apply(apply(&pool_yaml(POOL, "PREFIX_CACHE")));
    (index, reader)
}

fn slot_of(reader: &Reader, name: &str) -> Slot {
    let snapshot = reader.snapshot();
    let endpoint = snapshot.endpoints.iter().find(|endpoint| endpoint.key == key(name));
    endpoint.unwrap_or_else(|| panic!("{name} is there")).slot
}

#[test]
fn a_pool_selects_ready_pods_by_label_and_namespace() {
    let labels = |app: &str| Membership::Labels([("app".to_owned(), app.to_owned())].into());
    let cases = [
        (record("a", 1), true),
        (EndpointRecord { ready: false, ..record("a", 1) }, false),
        (EndpointRecord { membership: labels("llama"), ..record("a", 1) }, false),
        (EndpointRecord { membership: Membership::Labels([].into()), ..record("a", 1) }, false),
        (EndpointRecord { membership: Membership::EveryPool, ..record("a", 1) }, true),
        (
            EndpointRecord { key: inference_api::object::ObjectKey::new("other", "a"), ..record("a", 1) },
            false,
        ),
    ];
    for (record, selected) in cases {
        let (mut index, reader) = index();
        index.apply([Change::ApplyEndpoint(record.clone())]);
        assert_eq!(ports(&reader.snapshot(), POOL).len(), usize::from(selected), "{record:?}");
        assert_eq!(reader.snapshot().endpoints.len(), usize::from(selected));
    }
}

#[test]
fn endpoints_of_two_pools_are_one() {
    let (mut index, reader) = index();
    index.apply(apply(&pool_yaml("second", "")));
    index.apply([Change::ApplyEndpoint(record("a", 1)), Change::ApplyEndpoint(record("b", 2))]);
    let snapshot = reader.snapshot_owned();
    assert_eq!((ports(&snapshot, POOL), ports(&snapshot, "second")), (vec![1, 2], vec![1, 2]));
    assert_eq!(snapshot.endpoints.len(), 2);
    assert_eq!(snapshot.pools[&key("second")].strategy, RoutingStrategy::Default);

    index.apply([Change::DeletePool(key(POOL))]);
    assert_eq!(reader.snapshot().removed_since(&snapshot), []);
    index.apply([Change::DeletePool(key("second"))]);
    assert_eq!(reader.snapshot().removed_since(&snapshot).len(), 2);
}

#[test]
fn one_address_under_two_names_is_one_endpoint() {
    let (mut index, reader) = index();
    let log = logged(|| {
        index.apply(["b", "a", "c"].map(|name| Change::ApplyEndpoint(record(name, 1))));
        index.apply([Change::ApplyEndpoint(record("d", 2))]);
    });
    let names = || -> Vec<String> {
        reader.snapshot().endpoints.iter().map(|endpoint| endpoint.key.name.clone()).collect()
    };
    assert_eq!(
        (names(), ports(&reader.snapshot(), POOL)),
        (vec!["a".to_owned(), "d".to_owned()], vec![1, 2])
    );
    assert_eq!(log.matches("Two endpoints have one address").count(), 2, "{log}");
    assert!(log.contains("pod=default/b") && log.contains("counted=default/a"), "{log}");
    // A pool that selects only the other name still gets the address.
    index.apply(apply(&pool_yaml("second", "").replace("app: qwen", "app: llama")));
    let labels = Membership::Labels([("app".to_owned(), "llama".to_owned())].into());
    index.apply([Change::ApplyEndpoint(EndpointRecord { membership: labels, ..record("e", 1) })]);
    assert_eq!(ports(&reader.snapshot(), "second"), [1]);
    // When the endpoint that counts goes, another one counts. Control: with addresses of their own both count.
    index.apply([Change::DeleteEndpoint(key("a"))]);
    assert_eq!(names(), ["b", "d"]);
    index.apply([Change::ApplyEndpoint(record("c", 3))]);
    assert_eq!(ports(&reader.snapshot(), POOL).len(), 3);
}

#[test]
fn slots_stay_while_an_endpoint_lives_and_change_generation_after() {
    let (mut index, reader) = index();
    index.apply([("a", 1), ("b", 2), ("c", 3)].map(|(name, port)| Change::ApplyEndpoint(record(name, port))));
    let slots = ["a", "b", "c"].map(|name| slot_of(&reader, name));
    assert_eq!(slots.map(|slot| (slot.idx, slot.generation)), [(0, 0), (1, 0), (2, 0)]);
    let before = reader.snapshot_owned();

    index.apply([Change::DeleteEndpoint(key("b"))]);
    assert_eq!(slot_of(&reader, "c"), slots[2]);
    assert_eq!(reader.snapshot().removed_since(&before), [slots[1]]);

    index.apply([Change::ApplyEndpoint(record("b", 2))]);
    assert_eq!(slot_of(&reader, "b"), Slot { idx: 1, generation: 1 });
    assert_eq!(reader.snapshot().removed_since(&before), [slots[1]], "seen although a snapshot was skipped");

    index.apply([Change::ApplyEndpoint(record("c", 9))]);
    assert_eq!(slot_of(&reader, "c"), Slot { idx: 2, generation: 1 }, "another address is another endpoint");

    index.apply([Change::ApplyEndpoint(EndpointRecord { ready: false, ..record("a", 1) })]);
    index.apply([Change::ApplyEndpoint(record("a", 1))]);
    assert_eq!(slot_of(&reader, "a"), Slot { idx: 0, generation: 1 }, "it may have restarted");
}

/// A pool like the fixtures' with these target ports.
fn pool_with_ports(name: &str, ports: &[u16]) -> Change {
    let Some(Change::ApplyPool(pool)) = apply(&pool_yaml(name, "")).pop() else {
        panic!("a pool");
    };
    Change::ApplyPool(InferencePool { target_ports: ports.to_vec(), ..pool })
}

#[test]
fn a_pod_with_several_ports_gives_each_pool_the_ones_that_it_targets() {
    let labels = || Membership::LabelsAndPort([("app".to_owned(), "qwen".to_owned())].into());
    let pod = |port| EndpointRecord { membership: labels(), ..record("a", port) };
    let (mut index, reader) = index();
    let pools = [pool_with_ports(POOL, &[1, 2]), pool_with_ports("second", &[2])];
    index.apply(pools.into_iter().chain([Change::ReplaceEndpoints(vec![pod(1), pod(2), pod(3)])]));
    let before = reader.snapshot_owned();
    assert_eq!((ports(&before, POOL), ports(&before, "second")), (vec![1, 2], vec![2]));
    assert!(before.endpoints.iter().all(|endpoint| endpoint.key == key("a")), "each port is the pod's");

    index.apply([pool_with_ports("second", &[3])]);
    let after = reader.snapshot_owned();
    assert_eq!((ports(&after, POOL), ports(&after, "second")), (vec![1, 2], vec![3]));
    assert_eq!(after.removed_since(&before), [], "a port that is still targeted stays the same endpoint");

    // Control: labels alone give every pool every port.
    let any = [1, 2].map(|port| record("a", port)).to_vec();
    index.apply([Change::ReplaceEndpoints(any)]);
    assert_eq!(ports(&reader.snapshot(), "second").len(), 2);
    index.apply([Change::DeleteEndpoint(key("a"))]);
    assert_eq!(ports(&reader.snapshot(), POOL), [] as [u16; 0]);
}

#[test]
fn the_older_of_two_models_with_one_name_wins() {
    for (created_a, created_b, winner) in [
        ("2025-05-02T00:00:00Z", "2025-05-01T00:00:00Z", "b"),
        ("2025-05-01T00:00:00Z", "2025-05-02T00:00:00Z", "a"),
        ("2025-05-01T00:00:00Z", "2025-05-01T00:00:00Z", "a"),
        ("", "2025-05-01T00:00:00Z", "b"),
        ("", "", "a"),
    ] {
        let (mut index, reader) = index();
        let yaml = [model_yaml("a", "/model/qwen", created_a), model_yaml("b", "/model/qwen", created_b)];
        index.apply(apply(&yaml.join("---\n")));
        let models = &reader.snapshot().pools[&key(POOL)].models;
        assert_eq!(models.len(), 1);
        let model = &models["/model/qwen"];
        assert_eq!((&model.key, model.criticality), (&key(winner), Criticality::Critical));
        assert_eq!(model.targets[0].name, format!("target-of-{winner}"));

        let loser = if winner == "a" { "b" } else { "a" };
        let condition = |name: &str| {
            let accepted = reader.snapshot().models[&key(name)].accepted.clone();
            (accepted.kind, accepted.status, accepted.reason, accepted.message)
        };
        let (kind, status, reason, message) = condition(loser);
        assert_eq!((kind, status, reason), ("Accepted", ConditionStatus::False, "ModelNameInUse"));
        assert!(message.contains("/model/qwen") && message.contains(&key(winner).to_string()), "{message}");
        assert_eq!(condition(winner).1, ConditionStatus::True);

        index.apply([Change::DeleteModel(key(winner))]);
        assert_eq!(condition(loser).1, ConditionStatus::True);
        assert_eq!(reader.snapshot().pools[&key(POOL)].models["/model/qwen"].key, key(loser));
    }
}

#[test]
fn models_of_other_pools_stay_away() {
    let (mut index, reader) = index();
    index.apply(apply(&pool_yaml("second", "")));
    index.apply(apply(&model_yaml("a", "/model/qwen", "")));
    assert_eq!(reader.snapshot().pools[&key(POOL)].models.len(), 1);
    assert_eq!(reader.snapshot().pools[&key("second")].models.len(), 0);
}

#[test]
fn a_model_waits_for_its_pool_and_its_status_is_logged_once() {
    let (mut index, reader) = Index::new();
    let accepted = || reader.snapshot().models[&key("a")].accepted.clone();
    let log = logged(|| {
        index.apply(apply(&model_yaml("a", "/model/qwen", "")));
        index.apply(apply(&model_yaml("a", "/model/qwen", "")));
    });
    assert_eq!((accepted().status, accepted().reason), (ConditionStatus::Unknown, "Pending"));
    assert_eq!(log.lines().filter(|line| line.contains("Model is not served")).count(), 1, "{log}");
    let log = logged(|| index.apply(apply(&pool_yaml(POOL, ""))));
    assert_eq!((accepted().status, accepted().reason), (ConditionStatus::True, "Accepted"));
    assert!(log.contains("Serving model"), "{log}");
    let json = serde_json::to_value(accepted()).expect("a condition is JSON");
    assert_eq!(json["type"], "Accepted");
    assert_eq!(json["status"], "True");
}

#[test]
fn the_runtime_is_the_annotations() {
    let runtime = |value: &str| {
        let (mut index, reader) = Index::new();
        let annotation = format!(
            "metadata:\n  annotations:\n    inference.networking.x-k8s.io/model-server-runtime: {value:?}"
        );
        index.apply(apply(&pool_yaml(POOL, "").replace("metadata:", &annotation)));
        let snapshot = reader.snapshot();
        let pool = &snapshot.pools[&key(POOL)];
        (pool.runtime, pool.problems.clone())
    };
    assert_eq!(runtime("vllm"), (ModelServerRuntime::Vllm, vec![]));
    assert_eq!(runtime("sglang"), (ModelServerRuntime::Sglang, vec![]));
    for name in ["trt-llm", "tensorrt-llm", "trtllm"] {
        assert_eq!(runtime(name), (ModelServerRuntime::TrtLlm, vec![]));
    }
    assert_eq!(runtime("trtllm-serve"), (ModelServerRuntime::TrtllmServe, vec![]));
    let problem = "inference.networking.x-k8s.io/model-server-runtime: tgi is not known, using vllm";
    assert_eq!(runtime("tgi"), (ModelServerRuntime::Vllm, vec![problem.to_owned()]));
}

#[test]
fn nothing_is_published_when_nothing_changed() {
    let (mut index, reader) = index();
    let version = reader.snapshot().version;
    index.apply(apply(&pool_yaml(POOL, "PREFIX_CACHE")));
    index.apply([Change::ApplyEndpoint(EndpointRecord { ready: false, ..record("a", 1) })]);
    assert_eq!(reader.snapshot().version, version);
    index.apply([Change::ApplyEndpoint(record("a", 1))]);
    assert_eq!(reader.snapshot().version, version + 1);
}

#[test]
fn an_unknown_strategy_is_default_and_warned_of_once() {
    let (mut index, reader) = index();
    let log = logged(|| {
        index.apply(apply(&pool_yaml(POOL, "PREFIX_CASH")));
        index.apply(apply(&pool_yaml(POOL, "PREFIX_CASH")));
    });
    assert_eq!(reader.snapshot().pools[&key(POOL)].strategy, RoutingStrategy::Default);
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(warnings[0].contains("PREFIX_CASH") && warnings[0].contains("default/vllm-qwen-pool"), "{log}");

    let log = logged(|| index.apply(apply(&pool_yaml(POOL, "PREFIX_CACHE"))));
    assert_eq!(reader.snapshot().pools[&key(POOL)].strategy, RoutingStrategy::PrefixCache);
    assert!(!log.contains("WARN") && log.contains("Changing strategy"), "{log}");
}

#[tokio::test]
async fn readers_are_told_of_changes_and_of_the_end() {
    let (mut index, mut reader) = index();
    reader.changed().await.unwrap();
    assert_eq!(ports(&reader.snapshot(), POOL), [0u16; 0]);
    let mut other = reader.clone();
    let waiting = tokio::join!(
        async {
            other.changed().await.unwrap();
            ports(&other.snapshot(), POOL)
        },
        async { index.apply([Change::ApplyEndpoint(record("a", 7))]) },
    );
    assert_eq!(waiting.0, [7]);
    drop(index);
    assert!(reader.changed().await.is_ok(), "the last change is still seen");
    assert!(reader.changed().await.is_err());
    assert_eq!(ports(&reader.snapshot(), POOL), [7]);
}
