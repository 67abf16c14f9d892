//! Objects from manifests, endpoint records, and a directory of watched files.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use inference_api::kinds::Object;
use inference_api::manifest;
use inference_api::object::ObjectKey;
use pool_index::index::{Change, EndpointRecord, Membership};
use pool_index::snapshot::{KvAddresses, Snapshot};
use pool_index::source::files::Config;
use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;

pub(crate) const POOL: &str = "vllm-qwen-pool";

/// Manifest of a pool that selects pods with `app: qwen`; `strategy` is the annotation's value, "" for none.
pub(crate) fn pool_yaml(name: &str, strategy: &str) -> String {
    let mut yaml = format!(
        "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferencePool\nmetadata:\n  name: {name}\n"
    );
    if !strategy.is_empty() {
        let _ = writeln!(
            yaml,
            "  annotations:\n    inference.networking.x-k8s.io/routing-strategy: {strategy:?}"
        );
    }
    yaml + "spec:\n  targetPortNumber: 8000\n  selector:\n    app: qwen\n  extensionRef:\n    name: epp\n"
}

pub(crate) fn model_yaml(name: &str, model: &str, created: &str) -> String {
    let mut yaml = format!(
        "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata:\n  name: {name}\n"
    );
    if !created.is_empty() {
        let _ = writeln!(yaml, "  creationTimestamp: {created:?}");
    }
    let _ = writeln!(
        yaml,
        "spec:\n  modelName: {model}\n  criticality: Critical\n  poolRef:\n    name: {POOL}\n  targetModels:\n  - name: target-of-{name}\n    weight: 100"
    );
    yaml
}

/// The changes that apply every object of a manifest.
pub(crate) fn apply(yaml: &str) -> Vec<Change> {
    let change = |object| match object {
        Object::InferencePool(pool) => Change::ApplyPool(pool),
        Object::InferenceModel(model) => Change::ApplyModel(model),
        other => panic!("{} in a fixture", other.kind()),
    };
    manifest::parse(yaml, "fixture").expect("fixtures are valid").into_iter().map(change).collect()
}

/// A ready pod `name` with the label `app: qwen`.
pub(crate) fn record(name: &str, port: u16) -> EndpointRecord {
    EndpointRecord {
        key: ObjectKey::new("default", name),
        address: ([127, 0, 0, 1], port).into(),
        kv: KvAddresses::default(),
        membership: Membership::Labels([("app".to_owned(), "qwen".to_owned())].into()),
        ready: true,
    }
}

pub(crate) fn key(name: &str) -> ObjectKey {
    ObjectKey::new("default", name)
}

/// Ports of one pool's endpoints, in the order of slots.
pub(crate) fn ports(snapshot: &Snapshot, pool: &str) -> Vec<u16> {
    snapshot.pools[&key(pool)].endpoints.iter().map(|endpoint| endpoint.address.port()).collect()
}

/// A directory of files under watch, deleted when this is dropped.
pub(crate) struct Dir {
    dir: TempDir,
}

impl Dir {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("the directory is writable");
    }

    /// Configuration that reads `pools.yaml` and `endpoints.yaml`.
    pub(crate) fn config(&self) -> Config {
        Config {
            pool_files: vec![self.path("pools.yaml")],
            endpoints_file: Some(self.path("endpoints.yaml")),
            static_endpoints: Vec::new(),
        }
    }
}

/// Returns what this thread logs while `run` runs.
pub(crate) fn logged(run: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("one thread writes").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl<'a> MakeWriter<'a> for Sink {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }
    let sink = Sink::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(sink.clone()).finish();
    tracing::subscriber::with_default(subscriber, run);
    let bytes = sink.0.lock().expect("one thread writes").clone();
    String::from_utf8(bytes).expect("logs are UTF-8")
}
