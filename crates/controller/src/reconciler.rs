//! Follows the API server, and turns what it shows into facts for the hooks and work for the writer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use inference_api::pool::BodyMode;
use kube::Client;
use kube::api::{Api, ApiResource};
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event};
use pool_index::index::{Change, Index, Objects};
use pool_index::snapshot::Reader;
use pool_watch::watches::{self, Delivery, Events, Watches};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::certificates::Authority;
use crate::cluster::{Cluster, Kind, Reach};
use crate::facts::{Facts, Place};
use crate::metrics::Metrics;
use crate::names;
use crate::pickers;
use crate::plan::{Plan, View, Work};
use crate::probes::{self, Found};
use crate::resolve;
use crate::setup::Setup;
use crate::sweep::{MANAGED_BY, MANAGER};

/// Time after which everything is looked at again although nothing has changed: certificates grow old.
const AGAIN: Duration = Duration::from_secs(3600);

/// Watches of everything that the controller follows.
pub type Followed = Watches<Kind, Box<Event<DynamicObject>>>;

/// State that the reconciler shares with the others; `None` until the first lists are in.
#[derive(Debug)]
pub struct Told {
    pub facts: watch::Sender<Option<Arc<Facts>>>,
    pub authority: watch::Sender<Option<Arc<Authority>>>,
    pub work: watch::Sender<Option<Arc<Work>>>,
    /// Told by others: how the pickers of others take bodies.
    pub found: watch::Sender<Found>,
}

/// Owns what is known of the cluster.
pub struct Reconciler {
    client: Client,
    place: Place,
    setup: Setup,
    clock: fn() -> SystemTime,
    metrics: Arc<Metrics>,
    watches: Followed,
    cluster: Cluster,
    /// Says which models are served.
    index: (Index, Reader),
    problems: Vec<String>,
    told: Told,
}

// === impl Told ===

impl Default for Told {
    fn default() -> Self {
        Self {
            facts: watch::channel(None).0,
            authority: watch::channel(None).0,
            work: watch::channel(None).0,
            found: watch::channel(Found::new()).0,
        }
    }
}

// === impl Reconciler ===

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler").field("watches", &self.watches).finish_non_exhaustive()
    }
}

impl Reconciler {
    /// A reconciler of a controller at the place; `clock` dates statuses.
    #[must_use]
    pub fn new(
        (client, place): (Client, Place),
        setup: Setup,
        watches: Followed,
        metrics: Arc<Metrics>,
        clock: fn() -> SystemTime,
    ) -> Self {
        let (cluster, index, told) = (Cluster::default(), Index::new(), Told::default());
        let problems = Vec::new();
        Self { client, place, setup, clock, metrics, watches, cluster, index, problems, told }
    }

    /// State that the reconciler shares with the others.
    #[must_use]
    pub fn told(&self) -> &Told {
        &self.told
    }

    /// Follows the API server until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let (client, namespace) = (self.client.clone(), self.place.namespace.clone());
        self.watches.follow(&Kind::ALL, |kind| events(&client, &namespace, *kind));
        let mut found = self.told.found.subscribe();
        let mut again = Instant::now() + AGAIN;
        loop {
            let deliveries = tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(again) => None,
                // The reconciler owns a sender, so there is always one.
                _ = found.changed() => None,
                deliveries = self.watches.next() => Some(deliveries),
            };
            let is_due = deliveries.is_none_or(|deliveries| self.take(deliveries));
            if !is_due {
                continue;
            }
            let is_listed = self.cluster.is_listed();
            self.watches.note(is_listed, self.cluster.refused().count());
            if is_listed {
                self.reconcile();
            }
            again = Instant::now() + AGAIN;
        }
    }

    /// Returns false if what is known of the cluster stays the same.
    fn take(&mut self, deliveries: Vec<(Kind, Delivery<Box<Event<DynamicObject>>>)>) -> bool {
        let mut is_news = false;
        for (kind, delivery) in deliveries {
            is_news |= match delivery {
                Delivery::Event(event) => self.cluster.apply(kind, *event),
                Delivery::NoKind => self.cluster.clear(kind),
            };
        }
        is_news
    }

    fn reconcile(&mut self) {
        let Self { place, setup, clock, metrics, cluster, index: (index, reader), told, .. } = self;
        let secret = cluster.newest(Kind::Secret, &names::authority(&place.namespace));
        let authority = match secret.map(Authority::read) {
            None => return send(&told.work, Work::Authority),
            Some(Ok(authority)) => authority,
            Some(Err(error)) => return warn!(%error, "Waiting for an authority"),
        };
        let mut facts = cluster.facts(place, &authority.certificates);
        for (target, services) in probes::targets(&facts) {
            if let Some(mode) = told.found.borrow().get(&target) {
                facts.body_modes.extend(services.into_iter().map(|service| (service, *mode)));
            }
        }
        let (pools, models) = (facts.pools.clone(), facts.models.clone());
        index.apply([Change::ReplaceObjects(Objects { pools, models, ..Objects::default() })]);
        let snapshot = reader.snapshot();
        let view =
            View { cluster, facts: &facts, models: &snapshot.models, authority: &authority, now: clock() };
        let plan = Plan::new(view, setup);
        metrics.set_counts(facts.pools.len(), pickers::managed(&facts).len(), plan.problems.len());
        for mode in [BodyMode::FullDuplexStreamed, BodyMode::Streamed] {
            let of_others = facts.pools.iter().filter(|pool| resolve::is_of_others(pool, &facts));
            metrics.set_body_mode(
                mode,
                of_others.filter(|pool| resolve::body_mode(pool, &facts) == mode).count(),
            );
        }
        for problem in plan.problems.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!(problem, "A pool is not served as it asks");
        }
        self.problems.clone_from(&plan.problems);
        send(&told.facts, facts);
        send(&told.authority, authority.clone());
        send(&told.work, Work::Plan(plan, authority));
    }
}

/// Tells the newest value, unless it is the one that is known.
fn send<T: PartialEq>(sender: &watch::Sender<Option<Arc<T>>>, value: T) {
    sender.send_if_modified(|known| {
        let is_new = known.as_deref() != Some(&value);
        if is_new {
            *known = Some(Arc::new(value));
        }
        is_new
    });
}

fn events(client: &Client, namespace: &str, kind: Kind) -> Events<Box<Event<DynamicObject>>> {
    let (client, resource) = (client.clone(), ApiResource::from_gvk(&kind.resource()));
    let made = || watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));
    let (api, config) = match kind.reach() {
        Reach::All => (Api::<DynamicObject>::all_with(client, &resource), watcher::Config::default()),
        Reach::Made => (Api::all_with(client, &resource), made()),
        Reach::MadeHere => (Api::namespaced_with(client, namespace, &resource), made()),
    };
    watches::events(api, config).map(|event| event.map(Box::new)).boxed()
}
