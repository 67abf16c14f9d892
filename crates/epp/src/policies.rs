//! The tuning of each pool, from flags, file and annotations. Changes count from the next pick on.
//!
//! A file or an annotation that is not valid changes nothing: the last valid version stays in force, and the log
//! reports it once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use inference_api::keys;
use inference_api::object::ObjectKey;
use parking_lot::Mutex;
use pool_index::snapshot::Snapshot;
use pool_index::source::kept::Kept;
use pool_index::source::watched::{Content, Unreadable, Watched, poll_blocking};
use thiserror::Error;
use tracing::{error, info};

use crate::tuning::{Knob, KnobSource, Patch, Tuning, TuningError};

/// Tunings by pool. Readers never wait.
#[derive(Debug)]
pub struct Policies {
    in_force: ArcSwap<InForce>,
    layers: Mutex<Layers>,
}

#[derive(Debug, Default)]
struct InForce {
    /// Tuning of pools that no layer knows yet.
    default: Arc<Tuning>,
    pools: BTreeMap<ObjectKey, Arc<Tuning>>,
}

#[derive(Debug)]
struct Layers {
    flags: Patch,
    file: Patch,
    /// Annotations by pool: the last text, valid or not, and the last valid patch.
    annotations: BTreeMap<ObjectKey, (Option<String>, Patch)>,
}

/// The policy file, read again whenever its content changes.
#[derive(Debug)]
pub struct WatchedFile(Watched<Knobs>);

/// Reason why the policy file was refused; the message names it.
#[derive(Debug, Error)]
pub enum PolicyFileError {
    #[error(transparent)]
    Read(#[from] Unreadable),
    #[error("{}: {error}", path.display())]
    Policy { path: PathBuf, error: TuningError },
}

/// The knobs that the file sets.
#[derive(Debug)]
struct Knobs(Kept<Knob, f64>);

// === impl Policies ===

impl Policies {
    #[must_use]
    pub fn new(flags: Patch) -> Self {
        let layers = Layers { flags, file: Patch::default(), annotations: BTreeMap::new() };
        Self { in_force: ArcSwap::from_pointee(layers.resolve()), layers: Mutex::new(layers) }
    }

    #[must_use]
    pub fn of(&self, pool: &ObjectKey) -> Arc<Tuning> {
        let in_force = self.in_force.load();
        Arc::clone(in_force.pools.get(pool).unwrap_or(&in_force.default))
    }

    /// The tuning of every pool.
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

    /// Puts the knobs of another version of the file in force.
    pub fn set_file(&self, file: Patch) {
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
        let default = Tuning::default().with(flags, KnobSource::Flag).with(file, KnobSource::File);
        let pool = |(key, (_, annotation)): (&ObjectKey, &(Option<String>, Patch))| {
            (key.clone(), Arc::new(default.clone().with(annotation, KnobSource::Annotation)))
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
    /// If it cannot be read or is not valid.
    pub fn load(path: PathBuf, policies: &Policies) -> Result<Self, PolicyFileError> {
        let file = Self(Watched::load(path)?);
        policies.set_file(file.0.content().in_force());
        Ok(file)
    }

    /// Polls until `shutdown` resolves, in a thread that may block.
    pub async fn run(mut self, policies: Arc<Policies>, shutdown: impl Future<Output = ()>) {
        poll_blocking(move |now| self.poll(&policies, now), shutdown).await;
    }

    /// Reads the file again and puts a change in force.
    pub fn poll(&mut self, policies: &Policies, now: Instant) {
        if self.0.poll(now) {
            policies.set_file(self.0.content().in_force());
        }
    }
}

// === impl Knobs ===

impl Knobs {
    fn in_force(&self) -> Patch {
        let Self(kept) = self;
        let knobs = kept.present().chain(kept.absent()).map(|(knob, value)| (*knob, *value));
        Patch::try_new(knobs.collect()).expect("each knob was in its range when the file was parsed")
    }
}

impl From<Patch> for Knobs {
    fn from(patch: Patch) -> Self {
        Self(patch.knobs().collect::<BTreeMap<_, _>>().into())
    }
}

impl Content for Knobs {
    type Parsed = Patch;
    type Error = PolicyFileError;

    fn parse(text: &str, path: &Path) -> Result<Patch, PolicyFileError> {
        Patch::parse_file(text).map_err(|error| PolicyFileError::Policy { path: path.to_owned(), error })
    }

    fn update(&mut self, patch: Patch, now: Instant) -> usize {
        self.0.update(patch.knobs().collect(), now)
    }

    fn settle(&mut self, now: Instant) -> bool {
        self.0.settle(now)
    }
}
