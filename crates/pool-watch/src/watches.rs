//! Watches of an API server that are resumed when they break, and the state of the connection.

use std::fmt::{self, Display};
use std::hash::Hash;
use std::pin::Pin;
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _};
use kube::Error;
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_stream::StreamMap;
use tracing::{info, warn};

use crate::retry::{LONGEST, Retry};

/// Most events that are delivered at once: a rollout of a large Deployment is one snapshot, not hundreds.
const BATCH: usize = 256;
/// Time without a failure after which the API server counts as back. A failing watch tries again sooner.
const CALM: Duration = Duration::from_secs(2 * LONGEST.as_secs());

/// State of the connection to the API server, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchState {
    /// True once the first lists are in.
    pub is_listed: bool,
    /// True while the API server does not answer a watch as it should; the last snapshot stays in force.
    pub is_failing: bool,
    /// Failures since the start.
    pub n_failures: u64,
    /// Objects whose newest version cannot be taken.
    pub n_refused: usize,
}

/// Events of one watch.
pub type Events<E> = Pin<Box<dyn Stream<Item = Result<E, watcher::Error>> + Send>>;

/// Objects that a watch has delivered.
#[derive(Debug)]
pub enum Delivery<E> {
    Event(E),
    /// The API server does not have the kind: its definition is not installed.
    NoKind,
}

/// Running watches, each known by a `K` that is displayed as the kind of its objects.
pub struct Watches<K, E> {
    streams: StreamMap<K, Events<E>>,
    calm_at: Option<Instant>,
    watch_state: watch::Sender<WatchState>,
}

/// A failed watch's reason.
enum Failure {
    /// The API server does not have the kind.
    NoKind,
    /// The watch was too far behind, and lists again.
    Expired,
    Away,
}

/// Events of the objects behind `api` that `config` selects. A watch that breaks begins again by itself.
pub fn events<T>(api: Api<T>, config: watcher::Config) -> impl Stream<Item = Result<Event<T>, watcher::Error>>
where
    T: kube::Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
{
    watcher(api, config).backoff(Retry::default())
}

// === impl Watches ===

impl<K: fmt::Debug, E> fmt::Debug for Watches<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.streams.keys()).finish()
    }
}

impl<K: Clone + Display + Eq + Hash + Unpin, E> Watches<K, E> {
    /// No watches yet, and the state of the connection.
    #[must_use]
    pub fn new() -> (Self, watch::Receiver<WatchState>) {
        let (watch_state, receiver) = watch::channel(WatchState::default());
        (Self { streams: StreamMap::new(), calm_at: None, watch_state }, receiver)
    }

    /// Starts the `wanted` watches that do not run yet, and ends all others.
    pub fn follow(&mut self, wanted: &[K], start: impl Fn(&K) -> Events<E>) {
        let ended: Vec<K> = self.streams.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        for key in ended {
            self.streams.remove(&key);
        }
        for key in wanted {
            if !self.streams.contains_key(key) {
                self.streams.insert(key.clone(), start(key));
            }
        }
    }

    /// The next deliveries, in order; none if a watch has only failed.
    pub async fn next(&mut self) -> Vec<(K, Delivery<E>)> {
        let (key, result) = loop {
            tokio::select! {
                () = until(self.calm_at) => {
                    self.calm_at = None;
                    info!("The API server answers again");
                    self.watch_state.send_modify(|watch_state| watch_state.is_failing = false);
                }
                Some(next) = self.streams.next() => break next,
            }
        };
        let mut deliveries = Vec::new();
        self.take(key, result, &mut deliveries);
        for _ in 1..BATCH {
            let Some(Some((key, result))) = self.streams.next().now_or_never() else {
                break;
            };
            self.take(key, result, &mut deliveries);
        }
        deliveries
    }

    /// Tells the state whether all first lists are in, and how many objects cannot be taken.
    pub fn note(&self, is_listed: bool, n_refused: usize) {
        self.watch_state.send_if_modified(|watch_state| {
            let before = watch_state.clone();
            watch_state.is_listed |= is_listed;
            watch_state.n_refused = n_refused;
            *watch_state != before
        });
    }

    fn take(&mut self, key: K, result: Result<E, watcher::Error>, deliveries: &mut Vec<(K, Delivery<E>)>) {
        let error = match result {
            Ok(event) => return deliveries.push((key, Delivery::Event(event))),
            Err(error) => error,
        };
        match failure(&error) {
            Failure::NoKind => deliveries.push((key, Delivery::NoKind)),
            Failure::Expired => {}
            Failure::Away => {
                self.calm_at = Some(Instant::now() + CALM);
                self.watch_state.send_modify(|watch_state| {
                    if !watch_state.is_failing {
                        warn!(kind = %key, %error, "The API server fails, what is known stays in force");
                    }
                    watch_state.is_failing = true;
                    watch_state.n_failures += 1;
                });
            }
        }
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
