//! Finds out how the pickers of others take bodies, and looks again when they may have changed.
//!
//! A connection stays open after the answer: its end means that the picker goes, and another one may come.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use inference_api::object::ObjectKey;
use inference_api::pool::BodyMode;
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::facts::Facts;
use crate::metrics::{Metrics, Probe};
use crate::names;
use crate::probe::{Connection, ProbeError};
use crate::resolve::{self, PickerService};

/// Wait after a look, whatever it showed.
const PAUSE: Duration = Duration::from_secs(1);
/// Time after which a picker is looked at again although its connection stays: another one may share its Service.
const AGAIN: Duration = Duration::from_secs(60);

/// Place of a picker as the proxies know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// DNS name of its Service.
    pub address: String,
    pub port: u16,
}

/// Body modes of pickers, as far as they are known.
pub type Found = BTreeMap<Target, BodyMode>;

/// Pickers of others to look at, each with the Services of its pools' pods. A picker is left alone if a user says how it
/// takes bodies.
#[must_use]
pub fn targets(facts: &Facts) -> BTreeMap<Target, Vec<ObjectKey>> {
    let mut targets: BTreeMap<Target, Vec<ObjectKey>> = BTreeMap::new();
    for pool in &facts.pools {
        let (Some(picker), Ok(None)) = (&pool.picker, pool.picker_body_mode()) else { continue };
        if let PickerService::Named(service) = resolve::picker(pool, facts) {
            let address = names::address(&service, &facts.place.domain);
            let target = Target { address, port: picker.port };
            targets.entry(target).or_default().push(names::pods_service(&pool.key()));
        }
    }
    targets
}

/// Looks at pickers.
#[derive(Debug)]
pub struct Probes {
    facts: watch::Receiver<Option<Arc<Facts>>>,
    found: watch::Sender<Found>,
    metrics: Arc<Metrics>,
    resolver: Resolver,
}

/// Finds the address of a picker.
#[derive(Clone, Debug)]
pub enum Resolver {
    /// The name is asked of DNS.
    Dns,
    /// This table has it.
    Table(BTreeMap<Target, SocketAddr>),
}

impl Resolver {
    async fn address(&self, target: &Target) -> Result<SocketAddr, ProbeError> {
        let Target { address, port } = target;
        let unknown = || std::io::Error::new(std::io::ErrorKind::NotFound, format!("{address} is not known"));
        let found = match self {
            Self::Dns => lookup_host((address.as_str(), *port)).await.map_err(ProbeError::Connect)?.next(),
            Self::Table(table) => table.get(target).copied(),
        };
        found.ok_or_else(|| ProbeError::Connect(unknown()))
    }
}

impl Probes {
    /// Looks at the pickers of the newest facts, and tells what it finds.
    #[must_use]
    pub fn new(
        facts: watch::Receiver<Option<Arc<Facts>>>,
        found: watch::Sender<Found>,
        metrics: Arc<Metrics>,
        resolver: Resolver,
    ) -> Self {
        Self { facts, found, metrics, resolver }
    }

    /// Follows the facts until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut looks = JoinSet::new();
        let mut followed: BTreeMap<Target, AbortHandle> = BTreeMap::new();
        loop {
            let facts = self.facts.borrow_and_update().clone();
            let wanted = facts.as_deref().map(targets).unwrap_or_default();
            followed.retain(|target, look| {
                let stays = wanted.contains_key(target);
                if !stays {
                    look.abort();
                }
                stays
            });
            self.found.send_if_modified(|found| {
                let n_before = found.len();
                found.retain(|target, _| wanted.contains_key(target));
                found.len() != n_before
            });
            for target in wanted.into_keys() {
                followed.entry(target).or_insert_with_key(|target| looks.spawn(self.look(target.clone())));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.facts.changed() => if changed.is_err() { return },
                Some(_) = looks.join_next() => {}
            }
        }
    }

    /// Looks at one picker again and again.
    fn look(&self, target: Target) -> impl Future<Output = ()> + use<> {
        let (resolver, found, metrics) =
            (self.resolver.clone(), self.found.clone(), Arc::clone(&self.metrics));
        async move {
            let mut has_answered = true;
            loop {
                match look(&resolver, &target).await {
                    Ok((mode, mut connection)) => {
                        has_answered = true;
                        metrics.count_probe(Probe::Answered);
                        tell(&found, &target, mode);
                        let _ = timeout(AGAIN, connection.closed()).await;
                    }
                    Err(error) => {
                        metrics.count_probe(Probe::Unanswered);
                        // Once, not every second.
                        if std::mem::take(&mut has_answered) {
                            let Target { address, port } = &target;
                            let error = format!("{:#}", anyhow::Error::new(error));
                            info!(
                                address,
                                port, error, "A picker does not show how it takes bodies: looking again"
                            );
                        }
                    }
                }
                sleep(PAUSE).await;
            }
        }
    }
}

async fn look(resolver: &Resolver, target: &Target) -> Result<(BodyMode, Connection), ProbeError> {
    let connection = Connection::open(resolver.address(target).await?).await?;
    Ok((connection.body_mode().await?, connection))
}

fn tell(found: &watch::Sender<Found>, target: &Target, mode: BodyMode) {
    found.send_if_modified(|found| {
        let is_new = found.insert(target.clone(), mode) != Some(mode);
        if is_new {
            info!(
                address = target.address,
                port = target.port,
                body_mode = mode.as_str(),
                "Found how a picker takes bodies"
            );
        }
        is_new
    });
}
