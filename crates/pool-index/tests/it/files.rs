//! Files that are edited, broken and repaired while they are watched.

use std::time::{Duration, Instant};

use inference_api::pool::RoutingStrategy;
use pool_index::snapshot::{Reader, Snapshot};
use pool_index::source::files::{Config, Files, FilesError};
use pool_index::source::kept::SETTLE;
use pool_index::source::reading::MAX_BYTES;
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

/// Files that are polled at times that the test chooses.
struct Watch {
    dir: Dir,
    files: Files,
    reader: Reader,
    now: Instant,
}

impl Watch {
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn start() -> Self {
        let dir = dir();
        let (files, reader) = Files::load(dir.config()).expect("the files are valid");
        Self { dir, files, reader, now: Instant::now() }
    }

    /// Polls as often as it takes for a text to count.
    fn poll(&mut self) {
        for _ in 0..2 {
            self.now += Duration::from_millis(100);
            self.files.poll(self.now);
        }
    }

    fn write(&mut self, name: &str, text: &str) {
        self.dir.write(name, text);
        self.poll();
    }

    /// Polls for as long as something must be absent.
    fn settle(&mut self) {
        let end = self.now + SETTLE + Duration::from_millis(200);
        while self.now < end {
            self.poll();
        }
    }

    fn ports(&self) -> Vec<u16> {
        ports(&self.reader.snapshot(), POOL)
    }

    fn strategy(&self) -> RoutingStrategy {
        self.reader.snapshot().pools[&key(POOL)].strategy
    }
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
    let mut watch = Watch::start();
    watch.poll();
    assert_eq!(watch.strategy(), RoutingStrategy::PrefixCache);
    watch.write("pools.yaml", &pool_yaml(POOL, ""));
    assert_eq!(watch.strategy(), RoutingStrategy::Default);
    watch.write("pools.yaml", &pool_yaml(POOL, "PREFIX_CACHE"));
    assert_eq!(watch.strategy(), RoutingStrategy::PrefixCache);
    assert_eq!(watch.ports(), [18001, 18002]);
}

#[test]
fn an_invalid_version_keeps_the_old_one_and_is_reported_once() {
    let mut watch = Watch::start();
    let before = watch.reader.snapshot_owned();
    for (name, broken) in [
        ("pools.yaml", "kind: [".to_owned()),
        ("pools.yaml", pool_yaml(POOL, "").replace("selector:", "selectro:")),
        ("pools.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\n".to_owned()),
        ("endpoints.yaml", "- {name: qwen-0, address: nowhere}".to_owned()),
        ("endpoints.yaml", "- {name: qwen-0, address: 127.0.0.1:1, weight: 3}".to_owned()),
        ("endpoints.yaml", "{}".to_owned()),
    ] {
        watch.dir.write(name, &broken);
        let log = logged(|| (0..3).for_each(|_| watch.settle()));
        let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
        assert_eq!(errors.len(), 1, "{broken}: {log}");
        assert!(errors[0].contains(name), "{log}");
        assert_eq!(*watch.reader.snapshot_owned(), *before, "{broken}");
    }
    // The other file still counts, and a repaired file counts again.
    watch.write("endpoints.yaml", "- {name: qwen-0, address: 127.0.0.1:18001, labels: {app: qwen}}");
    watch.settle();
    assert_eq!(watch.ports(), [18001]);
    watch.write("pools.yaml", &pool_yaml(POOL, ""));
    assert_eq!(watch.strategy(), RoutingStrategy::Default);
}

#[test]
fn a_file_that_vanishes_keeps_its_last_version() {
    let mut watch = Watch::start();
    std::fs::remove_file(watch.dir.path("endpoints.yaml")).unwrap();
    let log = logged(|| (0..3).for_each(|_| watch.settle()));
    assert_eq!(log.matches("ERROR").count(), 1, "{log}");
    assert_eq!(watch.ports(), [18001, 18002]);
    watch.write("endpoints.yaml", "[]");
    watch.settle();
    assert_eq!(watch.ports(), [0u16; 0]);
}

/// Whatever the files contain for a moment, the snapshot stays as it was; if it lasts, it counts.
#[test]
fn a_file_that_is_rewritten_in_place_loses_nothing() {
    let pools = [pool_yaml(POOL, "PREFIX_CACHE"), model_yaml("m", "/model/qwen", "")].join("---\n");
    let longer = format!("# {}\n{}", "a comment ".repeat(200), pool_yaml(POOL, "PREFIX_CACHE"));
    for (name, whole, moment) in [
        ("pools.yaml", &pools, String::new()),
        ("pools.yaml", &pools, "\n".to_owned()),
        ("pools.yaml", &pools, "# half a comment".to_owned()),
        ("pools.yaml", &pools, "---\n".to_owned()),
        // The first half of the file, which is valid alone.
        ("pools.yaml", &pools, pool_yaml(POOL, "PREFIX_CACHE")),
        ("pools.yaml", &pools, longer),
        ("endpoints.yaml", &TWO_PODS.to_owned(), "[]".to_owned()),
        ("endpoints.yaml", &TWO_PODS.to_owned(), TWO_PODS.lines().next().unwrap().to_owned()),
    ] {
        let mut watch = Watch::start();
        let before = watch.reader.snapshot_owned();
        for _ in 0..5 {
            // As long as a slow writer takes.
            watch.write(name, &moment);
            watch.now += SETTLE - Duration::from_millis(500);
            watch.poll();
            assert_eq!(*watch.reader.snapshot_owned(), *before, "{moment}");
            watch.write(name, whole);
        }
        assert_eq!(*watch.reader.snapshot_owned(), *before, "{moment}");
        // Control: if it lasts, it counts, and the log says what is gone.
        watch.dir.write(name, &moment);
        let log = logged(|| watch.settle());
        assert_ne!(*watch.reader.snapshot_owned(), *before, "{moment}");
        assert!(log.contains("if it stays so") && log.contains("INFO pool_index::index: Removing "), "{log}");
    }
}

#[test]
fn a_text_counts_when_two_reads_agree() {
    let mut watch = Watch::start();
    let mut poll = |text: &str| {
        watch.dir.write("pools.yaml", text);
        watch.now += Duration::from_millis(100);
        watch.files.poll(watch.now);
        watch.strategy()
    };
    // The annotation is written after the rest of the file.
    for text in [pool_yaml(POOL, ""), pool_yaml(POOL, "DEFAULT"), pool_yaml(POOL, "")] {
        assert_eq!(poll(&text), RoutingStrategy::PrefixCache);
    }
    // Control.
    assert_eq!(poll(&pool_yaml(POOL, "")), RoutingStrategy::Default);
}

#[test]
fn what_changes_beside_something_absent_counts_at_once() {
    let mut watch = Watch::start();
    let before = watch.reader.snapshot_owned();
    let edited = "- {name: qwen-1, address: 127.0.0.1:18002, labels: {app: qwen}}\n\
        - {name: qwen-3, address: 127.0.0.1:18005, labels: {app: qwen}}\n";
    watch.write("endpoints.yaml", edited);
    assert_eq!(watch.ports(), [18001, 18002, 18005]);
    // A removal does not wait until edits end.
    watch.now += SETTLE / 2;
    watch.write("endpoints.yaml", &edited.replace("18005", "18006"));
    assert_eq!(watch.ports(), [18001, 18002, 18006]);
    watch.now += SETTLE / 2;
    watch.poll();
    assert_eq!(watch.ports(), [18002, 18006]);
    // A record that is not ready is out at once, and one that stayed keeps its identity.
    watch.write(
        "endpoints.yaml",
        &edited.replace("18005, labels: {app: qwen}", "18006, labels: {app: qwen}, ready: false"),
    );
    assert_eq!(watch.ports(), [18002]);
    assert_eq!(watch.reader.snapshot().endpoints[0].slot, before.endpoints[1].slot);
}

#[test]
fn an_endpoint_under_another_name_is_not_kept_under_its_old_one() {
    let mut watch = Watch::start();
    watch.write("endpoints.yaml", "- {name: renamed, address: 127.0.0.1:18001, labels: {app: qwen}}\n");
    let names = |snapshot: &Snapshot| -> Vec<String> {
        snapshot.pools[&key(POOL)].endpoints.iter().map(|endpoint| endpoint.key.name.clone()).collect()
    };
    let mut found = names(&watch.reader.snapshot());
    found.sort();
    assert_eq!(found, ["qwen-1", "renamed"]);
}

#[test]
fn an_object_may_move_to_another_file() {
    let dir = dir();
    dir.write("more.yaml", "");
    let config = Config { pool_files: vec![dir.path("pools.yaml"), dir.path("more.yaml")], ..dir.config() };
    let (files, reader) = Files::load(config).unwrap();
    let mut watch = Watch { files, reader, dir, ..Watch::start() };
    let before = watch.reader.snapshot_owned();
    watch.dir.write("pools.yaml", "");
    watch.dir.write(
        "more.yaml",
        &[pool_yaml(POOL, "PREFIX_CACHE"), model_yaml("m", "/model/qwen", "")].join("---\n"),
    );
    let log = logged(|| watch.settle());
    assert!(!log.contains("ERROR"), "{log}");
    assert_eq!(*watch.reader.snapshot_owned(), *before);
}

#[test]
fn a_config_map_is_swapped_by_its_link() {
    let dir = dir();
    for (version, strategy) in [("v1", "PREFIX_CACHE"), ("v2", "")] {
        std::fs::create_dir(dir.path(version)).unwrap();
        dir.write(&format!("{version}/pools.yaml"), &pool_yaml(POOL, strategy));
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, dir.path(name)).unwrap();
    link("v1", "..data");
    link("..data/pools.yaml", "linked.yaml");
    let config = Config { pool_files: vec![dir.path("linked.yaml")], ..dir.config() };
    let (files, reader) = Files::load(config).unwrap();
    let swap = |target: &str| {
        link(target, "..next");
        std::fs::rename(dir.path("..next"), dir.path("..data")).unwrap();
    };
    let mut watch = Watch { files, reader, ..Watch::start() };
    assert_eq!(watch.strategy(), RoutingStrategy::PrefixCache);
    swap("v2");
    watch.poll();
    assert_eq!(watch.strategy(), RoutingStrategy::Default);
    // A link to nothing counts as a missing file.
    swap("v3");
    watch.settle();
    assert_eq!(watch.strategy(), RoutingStrategy::Default);
}

#[test]
fn endpoints_come_and_go() {
    let mut watch = Watch::start();
    let before = watch.reader.snapshot_owned();
    watch.write("endpoints.yaml", &TWO_PODS.replace("ready: false", "ready: true").replace("18001", "19001"));
    let after = watch.reader.snapshot_owned();
    assert_eq!(ports(&after, POOL), [19001, 18002, 18004]);
    assert_eq!(after.removed_since(&before), [before.endpoints[0].slot]);
    assert_eq!(after.endpoints[0].slot.generation, 1);
}

fn mkfifo(path: &std::path::Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.is_ok_and(|status| status.success()));
}

#[test]
fn what_is_no_file_or_too_large_is_refused_and_holds_nothing_up() {
    let dir = dir();
    let max_bytes = usize::try_from(MAX_BYTES).unwrap();
    let pool = pool_yaml(POOL, "");
    let padded = |n_bytes: usize| format!("#{}\n{pool}", " ".repeat(n_bytes - pool.len() - 2));
    dir.write("largest.yaml", &padded(max_bytes));
    dir.write("huge.yaml", &padded(max_bytes + 1));
    mkfifo(&dir.path("fifo.yaml"));
    std::fs::write(dir.path("binary.yaml"), [0xff, 0xfe]).unwrap();
    let refused = [
        ("fifo.yaml", "is a FIFO"),
        ("huge.yaml", "more than 16777216 bytes"),
        ("", "is a directory"),
        ("binary.yaml", "is not UTF-8"),
    ];
    for (name, expected) in refused {
        check_refused(&dir, Config { pool_files: vec![dir.path(name)], ..dir.config() }, expected);
        check_refused(&dir, Config { endpoints_file: Some(dir.path(name)), ..dir.config() }, expected);
    }
    let device = Config { pool_files: vec!["/dev/zero".into()], ..dir.config() };
    assert!(Files::load(device).unwrap_err().to_string().starts_with("/dev/zero: is a device"));
    // Control: a file of exactly the largest size.
    Files::load(Config { pool_files: vec![dir.path("largest.yaml")], ..dir.config() }).unwrap();
    // The same files while the picker runs: the last good version stays, and the other file counts.
    for (name, expected) in refused {
        let mut watch = Watch::start();
        let target = watch.dir.path("pools.yaml");
        std::fs::remove_file(&target).unwrap();
        std::os::unix::fs::symlink(dir.path(name), &target).unwrap();
        watch.dir.write("endpoints.yaml", &TWO_PODS.replace("ready: false", "ready: true"));
        let log = logged(|| watch.settle());
        assert!(log.contains(expected), "{log}");
        assert_eq!((log.matches("ERROR").count(), watch.ports()), (1, vec![18001, 18002, 18004]), "{log}");
        // It is read again as soon as it is a regular file again.
        std::fs::remove_file(&target).unwrap();
        watch.write("pools.yaml", &pool_yaml(POOL, ""));
        assert_eq!(watch.strategy(), RoutingStrategy::Default);
    }
}

#[test]
fn aliases_do_not_multiply() {
    let dir = dir();
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    dir.write("bomb.yaml", &bomb);
    for config in [
        Config { pool_files: vec![dir.path("bomb.yaml")], ..dir.config() },
        Config { endpoints_file: Some(dir.path("bomb.yaml")), ..dir.config() },
    ] {
        check_refused(&dir, config, "bomb.yaml");
    }
    // Control: an alias of a single value.
    let aliased = "- {name: a, address: 127.0.0.1:1, labels: &qwen {app: qwen}}\n\
        - {name: b, address: 127.0.0.1:2, labels: *qwen}\n";
    dir.write("endpoints.yaml", aliased);
    let (_files, reader) = Files::load(dir.config()).unwrap();
    assert_eq!(ports(&reader.snapshot(), POOL), [1, 2]);
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

#[test]
fn an_endpoint_has_the_address_of_one_host() {
    let dir = dir();
    for (address, expected) in [
        ("127.0.0.1:0", "port 0"),
        ("'[::1]:0'", "port 0"),
        ("0.0.0.0:8000", "unspecified"),
        ("'[::]:8000'", "unspecified"),
        ("'[::ffff:0.0.0.0]:8000'", "unspecified"),
        ("224.0.0.1:8000", "multicast"),
        ("239.255.255.255:8000", "multicast"),
        ("'[ff02::1]:8000'", "multicast"),
        ("255.255.255.255:8000", "broadcast"),
    ] {
        for field in ["", "address: 10.0.0.1:1, kvEvents: ", "address: 10.0.0.1:1, kvReplay: "] {
            let field = if field.is_empty() { "address: " } else { field };
            dir.write("endpoints.yaml", &format!("- {{name: odd, {field}{address}}}\n"));
            let expected = format!("endpoint default/odd: {}", address.trim_matches('\''));
            check_refused(&dir, dir.config(), &expected);
        }
        dir.write("endpoints.yaml", &format!("- {{name: odd, address: {address}}}\n"));
        check_refused(&dir, dir.config(), expected);
        assert!(pool_index::address::parse(address.trim_matches('\'')).unwrap_err().contains(expected));
    }
    // Control: valid addresses, and one form for IPv4.
    let good = "- {name: a, address: '[::ffff:10.0.0.1]:1', labels: {app: qwen}}\n\
        - {name: b, address: '[fe80::1]:2', labels: {app: qwen}}\n";
    dir.write("endpoints.yaml", good);
    let (_files, reader) = Files::load(dir.config()).unwrap();
    let addresses: Vec<String> =
        reader.snapshot().endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:1", "[fe80::1]:2"]);
}

/// Asserts that the start fails with an error that names the file and contains `expected`.
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
    check_refused(&dir, Config { pool_files: twice, ..dir.config() }, "is defined twice");

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
        let waited = start.elapsed();
        assert!((SETTLE..SETTLE + Duration::from_secs(1)).contains(&waited), "{waited:?}");
        assert_eq!(ports(&reader.snapshot(), POOL), [0u16; 0]);
        drop(shutdown);
    };
    tokio::join!(files.run(async { drop(ended.await) }), edits);
}
