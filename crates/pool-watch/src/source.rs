//! The watches, and the index that they feed.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Config, Error};
use pool_index::index::Index;
use pool_index::snapshot::Reader;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamMap;
use tracing::{info, warn};

use crate::retry::{LONGEST, Retry};
use crate::world::{Scope, Seen, Watch, World};

/// Most events that are applied before the index is told: a rollout of a large Deployment is one snapshot, not hundreds.
const BATCH: usize = 256;
/// Time without a failure after which the API server counts as back. A failing watch tries again sooner.
const CALM: Duration = Duration::from_secs(2 * LONGEST.as_secs());

/// Longest wait for a connection to the API server, which is in the same network.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// State of the connection to the API server, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// True once the first lists are in.
    pub is_listed: bool,
    /// True while the API server does not answer a watch as it should; the last snapshot stays in force.
    pub is_failing: bool,
    /// Failures since the start.
    pub n_failures: u64,
    /// Pools and models whose newest version cannot be taken.
    pub n_refused: usize,
}

/// A source of pools, models and endpoints.
pub struct Source {
    client: Client,
    world: World,
    index: Index,
    standing: watch::Sender<Standing>,
}

/// A source, and what it feeds.
#[derive(Debug)]
pub struct Connected {
    pub source: Source,
    pub reader: Reader,
    pub standing: watch::Receiver<Standing>,
}

type Watches = StreamMap<Watch, Pin<Box<dyn Stream<Item = Result<Seen, watcher::Error>> + Send>>>;

/// A failed watch's reason.
enum Failure {
    /// The API server does not have the kind: its definition is not installed.
    NoKind,
    /// The watch was too far behind, and lists again.
    Expired,
    Away,
}

// === impl Source ===

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("world", &self.world).finish_non_exhaustive()
    }
}

impl Source {
    /// A source that connects as `config` says.
    ///
    /// # Errors
    /// If no client can be made of the configuration, for example because it names a certificate that is none.
    pub fn try_new(mut config: Config, scope: Scope) -> Result<Connected, Error> {
        // Every watch tries again by itself, and says so.
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let (index, reader) = Index::new();
        let (sender, standing) = watch::channel(Standing::default());
        let source =
            Self { client: Client::try_from(config)?, world: World::new(scope), index, standing: sender };
        Ok(Connected { source, reader, standing })
    }

    /// Follows the API server until `shutdown` resolves.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut watches = Watches::new();
        let mut calm_at = None;
        tokio::pin!(shutdown);
        loop {
            self.follow(&mut watches);
            tokio::select! {
                () = &mut shutdown => return,
                () = until(calm_at) => {
                    calm_at = None;
                    info!("The API server answers again");
                    self.standing.send_modify(|standing| standing.is_failing = false);
                }
                Some((watch, result)) = watches.next() => {
                    let mut failed = self.apply(&watch, result);
                    for _ in 1..BATCH {
                        let Some(Some((watch, result))) = watches.next().now_or_never() else {
                            break;
                        };
                        failed |= self.apply(&watch, result);
                    }
                    if failed {
                        calm_at = Some(Instant::now() + CALM);
                    }
                    self.publish();
                }
            }
        }
    }

    /// Starts the watches that are needed, and ends the others.
    fn follow(&self, watches: &mut Watches) {
        let wanted = self.world.watches();
        let ended: Vec<Watch> = watches.keys().filter(|watch| !wanted.contains(watch)).cloned().collect();
        for watch in ended {
            watches.remove(&watch);
        }
        for watch in wanted {
            if !watches.contains_key(&watch) {
                let stream = self.stream(&watch);
                watches.insert(watch, stream);
            }
        }
    }

    fn stream(&self, watch: &Watch) -> Pin<Box<dyn Stream<Item = Result<Seen, watcher::Error>> + Send>> {
        let (client, namespace) = (self.client.clone(), &self.world.scope().namespace);
        match watch {
            Watch::Pods(selector) => {
                let config = watcher::Config::default().labels(selector);
                let pods = watcher(Api::<Pod>::namespaced(client, namespace), config);
                pods.backoff(Retry::default())
                    .map(|event| event.map(|event| Seen::Pod(Box::new(event))))
                    .boxed()
            }
            Watch::PoolsV1Alpha2 | Watch::PoolsV1 | Watch::Models => {
                let (api_version, kind) = watch.kind();
                let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
                let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
                let api = Api::<DynamicObject>::namespaced_with(client, namespace, &resource);
                let objects = watcher(api, watcher::Config::default());
                objects
                    .backoff(Retry::default())
                    .map(|event| event.map(|event| Seen::Object(Box::new(event))))
                    .boxed()
            }
        }
    }

    /// Applies what a watch has delivered. Returns true if it has failed.
    fn apply(&mut self, watch: &Watch, result: Result<Seen, watcher::Error>) -> bool {
        let error = match result {
            Ok(seen) => {
                self.world.apply(watch, seen);
                return false;
            }
            Err(error) => error,
        };
        match failure(&error) {
            Failure::NoKind => {
                self.world.clear(watch);
                false
            }
            Failure::Expired => false,
            Failure::Away => {
                self.standing.send_modify(|standing| {
                    if !standing.is_failing {
                        let (_, kind) = watch.kind();
                        warn!(kind, %error, "The API server fails, what is known stays in force");
                    }
                    standing.is_failing = true;
                    standing.n_failures += 1;
                });
                true
            }
        }
    }

    /// Tells the index what is known, unless a list is still missing.
    fn publish(&mut self) {
        let is_listed = self.world.is_listed();
        if is_listed {
            self.index.apply(self.world.changes());
        }
        let n_refused = self.world.refused().count();
        self.standing.send_if_modified(|standing| {
            let before = standing.clone();
            standing.is_listed |= is_listed;
            standing.n_refused = n_refused;
            *standing != before
        });
    }
}

fn failure(error: &watcher::Error) -> Failure {
    match error {
        watcher::Error::InitialListFailed(Error::Api(status)) if status.code == 404 => Failure::NoKind,
        watcher::Error::WatchError(status) if status.code == 410 => Failure::Expired,
        watcher::Error::WatchStartFailed(Error::Api(status)) if status.code == 410 => Failure::Expired,
        _ => Failure::Away,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
