//! Files that are edited, broken and repaired while they are watched.

use std::time::Duration;

use inference_api::pool::RoutingStrategy;
use pool_index::source::files::{Config, Files, FilesError};
use tokio::sync::oneshot;

use crate::fixtures::{Dir, POOL, key, logged, model_yaml, pool_yaml, ports};

const TWO_PODS: &str = "- {name: qwen-0, address: 127.0.0.1:18001, labels: {app: qwen}}\n\
    - {name: qwen-1, namespace: default, address: 127.0.0.1:18002, labels: {app: qwen, x: y}, ready: true}\n\
    - {name: llama-0, address: 127.0.0.1:18003, labels: {app: llama}}\n\
    - {name: qwen-2, address: 127.0.0.1:18004, labels: {app: qwen}, ready: false}\n";

fn dir() -> Dir {
    let dir = Dir::new();
    dir.write(
        "pools.yaml",
        &[pool_yaml(POOL, "PREFIX_CACHE"), model_yaml("m", "/model/qwen", "")].join("---\n"),
    );
    dir.write("endpoints.yaml", TWO_PODS);
    dir
}

#[test]
fn the_first_read_is_complete() {
    let (_files, reader) = Files::load(dir().config()).unwrap();
    let snapshot = reader.snapshot();
    assert_eq!(ports(&snapshot, POOL), [18001, 18002]);
    let pool = &snapshot.pools[&key(POOL)];
    assert_eq!(pool.strategy, RoutingStrategy::PrefixCache);
    assert_eq!(pool.models["/model/qwen"].key, key("m"));
}

#[test]
fn editing_the_annotation_swaps_the_strategy() {
    let dir = dir();
    let (mut files, reader) = Files::load(dir.config()).unwrap();
    let strategy = |files: &mut Files| {
        files.poll();
        reader.snapshot().pools[&key(POOL)].strategy
    };
    assert_eq!(strategy(&mut files), RoutingStrategy::PrefixCache);
    dir.write("pools.yaml", &pool_yaml(POOL, ""));
    assert_eq!(strategy(&mut files), RoutingStrategy::Default);
    dir.write("pools.yaml", &pool_yaml(POOL, "PREFIX_CACHE"));
    assert_eq!(strategy(&mut files), RoutingStrategy::PrefixCache);
    assert_eq!(ports(&reader.snapshot(), POOL), [18001, 18002]);
}

#[test]
fn an_invalid_version_keeps_the_old_one_and_is_reported_once() {
    let dir = dir();
    let (mut files, reader) = Files::load(dir.config()).unwrap();
    let before = reader.snapshot_owned();
    for (name, broken) in [
        ("pools.yaml", "kind: [".to_owned()),
        ("pools.yaml", pool_yaml(POOL, "").replace("selector:", "selectro:")),
        ("pools.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\n".to_owned()),
        ("endpoints.yaml", "- {name: qwen-0, address: nowhere}".to_owned()),
        ("endpoints.yaml", "- {name: qwen-0, address: 127.0.0.1:1, weight: 3}".to_owned()),
        ("endpoints.yaml", "{}".to_owned()),
    ] {
        dir.write(name, &broken);
        let log = logged(|| (0..3).for_each(|_| files.poll()));
        let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), 1, "{broken}: {log}");
        assert!(errors[0].contains(name), "{log}");
        assert_eq!(*reader.snapshot_owned(), *before, "{broken}");
    }
    // The other file still counts, and a repaired one counts again.
    dir.write("endpoints.yaml", "- {name: qwen-0, address: 127.0.0.1:18001, labels: {app: qwen}}");
    files.poll();
    assert_eq!(ports(&reader.snapshot(), POOL), [18001]);
    dir.write("pools.yaml", &pool_yaml(POOL, ""));
    files.poll();
    assert_eq!(reader.snapshot().pools[&key(POOL)].strategy, RoutingStrategy::Default);
}

#[test]
fn a_file_that_vanishes_keeps_its_last_version() {
    let dir = dir();
    let (mut files, reader) = Files::load(dir.config()).unwrap();
    std::fs::remove_file(dir.path("endpoints.yaml")).unwrap();
    let log = logged(|| (0..3).for_each(|_| files.poll()));
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
    assert_eq!(ports(&reader.snapshot(), POOL), [18001, 18002]);
    dir.write("endpoints.yaml", "[]");
    files.poll();
    assert_eq!(ports(&reader.snapshot(), POOL), [0u16; 0]);
}

#[test]
fn endpoints_come_and_go() {
    let dir = dir();
    let (mut files, reader) = Files::load(dir.config()).unwrap();
    let before = reader.snapshot_owned();
    dir.write("endpoints.yaml", &TWO_PODS.replace("ready: false", "ready: true").replace("18001", "19001"));
    files.poll();
    let after = reader.snapshot_owned();
    assert_eq!(ports(&after, POOL), [19001, 18002, 18004]);
    assert_eq!(after.removed_since(&before), [before.endpoints[0].slot]);
    assert_eq!(after.endpoints[0].slot.generation, 1);
}

#[test]
fn endpoints_by_address_belong_to_every_pool() {
    let dir = dir();
    dir.write("pools.yaml", &[pool_yaml(POOL, ""), pool_yaml("second", "")].join("---\n"));
    let config = Config {
        endpoints_file: None,
        static_endpoints: vec!["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()],
        ..dir.config()
    };
    let (_files, reader) = Files::load(config).unwrap();
    let snapshot = reader.snapshot();
    assert_eq!((ports(&snapshot, POOL), ports(&snapshot, "second")), (vec![1, 2], vec![1, 2]));
    assert_eq!(snapshot.endpoints[0].key, key("127.0.0.1:1"));
}

/// The start fails, naming the file, with an error that contains `expected`.
#[track_caller]
fn check_refused(dir: &Dir, config: Config, expected: &str) {
    let error = Files::load(config).map(|_| ()).expect_err("the start is refused");
    let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    let message = format!("{error}: {source}");
    assert!(message.contains(expected), "{message}");
    assert!(message.contains(&dir.path("").display().to_string()), "{message}");
}

#[test]
fn a_start_with_an_invalid_file_is_refused() {
    let dir = dir();
    check_refused(
        &dir,
        Config { pool_files: vec![dir.path("missing.yaml")], ..dir.config() },
        "No such file",
    );
    let twice = vec![dir.path("pools.yaml"), dir.path("pools.yaml")];
    check_refused(
        &dir,
        Config { pool_files: twice, ..dir.config() },
        "default/vllm-qwen-pool is defined twice",
    );

    dir.write("pools.yaml", "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\nspec:\n  selector:\n    app: qwen\n  ports:\n  - port: 80\n");
    check_refused(&dir, dir.config(), "Service default/x does not belong here");
    dir.write("pools.yaml", "kind: [");
    check_refused(&dir, dir.config(), "not valid YAML");
    dir.write("pools.yaml", &pool_yaml(POOL, ""));
    Files::load(dir.config()).unwrap();
    dir.write("endpoints.yaml", "- {name: a, address: 127.0.0.1:1}\n- {name: a, address: 127.0.0.1:2}");
    check_refused(&dir, dir.config(), "endpoint default/a is defined twice");
    dir.write("endpoints.yaml", "- {name: a, address: nowhere}");
    assert!(matches!(Files::load(dir.config()), Err(FilesError::Endpoints { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_poll_loop_sees_an_edit_and_ends_on_shutdown() {
    let dir = dir();
    let (files, mut reader) = Files::load(dir.config()).unwrap();
    reader.changed().await.unwrap();
    let (shutdown, ended) = oneshot::channel::<()>();
    let edits = async {
        let start = tokio::time::Instant::now();
        tokio::time::sleep(Duration::from_millis(350)).await;
        dir.write("endpoints.yaml", "[]");
        reader.changed().await.unwrap();
        assert!(start.elapsed() <= Duration::from_millis(550));
        assert_eq!(ports(&reader.snapshot(), POOL), [0u16; 0]);
        drop(shutdown);
    };
    tokio::join!(files.run(async { drop(ended.await) }), edits);
}
