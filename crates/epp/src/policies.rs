//! The tuning in force for each pool, as flags, file and annotations make it. Changes count from the next pick on.
//!
//! A file or an annotation that is not valid changes nothing: what was good last stays in force, and the log says so once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use inference_api::keys;
use inference_api::object::ObjectKey;
use parking_lot::Mutex;
use pool_index::snapshot::Snapshot;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use crate::tuning::{Patch, PolicyFile, Source, Tuning, TuningError};

/// How often the file is read, as the pools' files are.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Tunings by pool. Readers never wait.
#[derive(Debug)]
pub struct Policies {
    in_force: ArcSwap<InForce>,
    layers: Mutex<Layers>,
}

#[derive(Debug, Default)]
struct InForce {
    /// For pools that no layer knows yet.
    default: Arc<Tuning>,
    pools: BTreeMap<ObjectKey, Arc<Tuning>>,
}

#[derive(Debug)]
struct Layers {
    flags: Patch,
    file: PolicyFile,
    /// By pool, each with the text seen last, good or bad, and what was good last.
    annotations: BTreeMap<ObjectKey, (Option<String>, Patch)>,
}

/// The policy file, read again whenever its content changes.
#[derive(Debug)]
pub struct WatchedFile {
    path: PathBuf,
    /// What reading gave last, good or bad.
    seen: Result<String, String>,
}

// === impl Policies ===

impl Policies {
    #[must_use]
    pub fn new(flags: Patch) -> Self {
        let layers = Layers { flags, file: PolicyFile::default(), annotations: BTreeMap::new() };
        Self { in_force: ArcSwap::from_pointee(layers.resolve()), layers: Mutex::new(layers) }
    }

    #[must_use]
    pub fn of(&self, pool: &ObjectKey) -> Arc<Tuning> {
        let in_force = self.in_force.load();
        Arc::clone(in_force.pools.get(pool).unwrap_or(&in_force.default))
    }

    /// Every pool's tuning.
    #[must_use]
    pub fn all(&self) -> BTreeMap<ObjectKey, Arc<Tuning>> {
        self.in_force.load().pools.clone()
    }

    /// Follows the pools and their annotations.
    pub fn follow(&self, snapshot: &Snapshot) {
        let mut layers = self.layers.lock();
        layers.annotations.retain(|pool, _| snapshot.pools.contains_key(pool));
        for (key, pool) in &snapshot.pools {
            let (seen, good) = layers.annotations.entry(key.clone()).or_default();
            if *seen == pool.routing_policy {
                continue;
            }
            seen.clone_from(&pool.routing_policy);
            match Patch::parse(pool.routing_policy.as_deref().unwrap_or_default()) {
                Ok(patch) => *good = patch,
                Err(error) => error!(
                    pool = %key,
                    annotation = keys::ROUTING_POLICY,
                    %error,
                    "Keeping the last good policy"
                ),
            }
        }
        self.publish(&layers);
    }

    /// Puts another file in force.
    pub fn set_file(&self, file: PolicyFile) {
        let mut layers = self.layers.lock();
        layers.file = file;
        self.publish(&layers);
    }

    fn publish(&self, layers: &Layers) {
        let (before, after) = (self.in_force.load_full(), layers.resolve());
        for (pool, tuning) in &after.pools {
            if before.pools.get(pool).unwrap_or(&before.default) != tuning {
                let settings = serde_json::to_string(tuning.settings()).unwrap_or_default();
                info!(%pool, settings, "Changing policy");
            }
        }
        self.in_force.store(Arc::new(after));
    }
}

impl Layers {
    fn resolve(&self) -> InForce {
        let Self { flags, file, annotations } = self;
        let default = Tuning::default().with(flags, Source::Flag).with(&file.default, Source::File);
        let nothing = Patch::default();
        let pool = |(key, (_, annotation)): (&ObjectKey, &(Option<String>, Patch))| {
            let of_file = file.pools.get(key).unwrap_or(&nothing);
            let tuning = default.clone().with(of_file, Source::FilePool).with(annotation, Source::Annotation);
            (key.clone(), Arc::new(tuning))
        };
        let pools = annotations.iter().map(pool).collect();
        InForce { default: Arc::new(default), pools }
    }
}

// === impl WatchedFile ===

impl WatchedFile {
    /// Reads the file and puts it in force.
    ///
    /// # Errors
    /// When it cannot be read or is not valid; the message names it.
    pub fn load(path: PathBuf, policies: &Policies) -> Result<Self, String> {
        let mut file = Self { path, seen: Ok(String::new()) };
        file.seen = file.read();
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", file.path.display());
        let text = file.seen.clone().map_err(|error| named(&error))?;
        policies.set_file(PolicyFile::parse(&text).map_err(|error| named(&error))?);
        Ok(file)
    }

    /// Polls until `shutdown` resolves.
    pub async fn run(mut self, policies: Arc<Policies>, shutdown: impl Future<Output = ()>) {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                _ = ticks.tick() => self.poll(&policies),
            }
        }
    }

    /// Reads the file again. An error is logged once for each content that causes it.
    pub fn poll(&mut self, policies: &Policies) {
        let seen = self.read();
        if seen == self.seen {
            return;
        }
        let parsed = seen.clone().map_err(TuningError::Syntax).and_then(|text| PolicyFile::parse(&text));
        self.seen = seen;
        match parsed {
            Ok(file) => {
                info!(file = %self.path.display(), "Reading changed file");
                policies.set_file(file);
            }
            Err(error) => {
                error!(file = %self.path.display(), %error, "Keeping the last good version");
            }
        }
    }

    fn read(&self) -> Result<String, String> {
        std::fs::read_to_string(&self.path).map_err(|error| format!("cannot be read: {error}"))
    }
}
