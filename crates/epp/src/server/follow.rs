//! Follows the pool index: hands each snapshot to the director, and scrapes exactly the endpoints in it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use pool_index::snapshot::{Reader, Slot};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

use crate::datastore::{Datastore, LiveEndpoint};
use crate::director::Director;
use crate::kv_events::follow::{KvPorts, follow};
use crate::scrape::attempts::Attempts;
use crate::scrape::times::ScrapeTimes;
use crate::scrape::{Scraping, scrape};
use crate::server::parts::restart_on_panic;
use crate::server::workers::{Workers, row};

/// The only task that changes the datastore.
#[derive(Debug)]
pub(crate) struct Follower {
    director: Arc<Director>,
    reader: Reader,
    times: ScrapeTimes,
    /// The moment from which the times of scrapes count.
    start: Instant,
    attempts: Arc<Attempts>,
    kv_ports: KvPorts,
    scrapes: HashMap<Slot, CancellationToken>,
    scrapers: Workers,
    tracker: TaskTracker,
}

impl Follower {
    /// Creates the follower and starts the threads that scrape; the director has the reader's first snapshot when this
    /// returns.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn new(
        director: Arc<Director>,
        reader: Reader,
        (scrape_interval, kv_ports): (Duration, KvPorts),
    ) -> io::Result<Self> {
        director.apply(&reader.snapshot());
        let times = ScrapeTimes::new(scrape_interval, director.options().shortest_metrics_age());
        let (scrapes, tracker) = (HashMap::new(), TaskTracker::new());
        let (scrapers, attempts) = (Workers::start("scraper")?, Arc::default());
        let start = Instant::now();
        Ok(Self { director, reader, times, start, attempts, kv_ports, scrapes, scrapers, tracker })
    }

    /// Runs until `stop`, or until the index ends.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let datastore = self.director.apply(&self.reader.snapshot());
            self.scrape_endpoints(&datastore, &stop);
            tokio::select! {
                () = stop.cancelled() => break,
                changed = self.reader.changed() => if changed.is_err() { break },
            }
        }
        self.scrapes.values().for_each(CancellationToken::cancel);
        self.tracker.close();
        self.tracker.wait().await;
    }

    fn scrape_endpoints(&mut self, datastore: &Datastore, stop: &CancellationToken) {
        let lives =
            |slot: &Slot| datastore.endpoints.binary_search_by_key(slot, |endpoint| endpoint.slot).is_ok();
        self.scrapes.retain(|slot, scrape| {
            let keep = lives(slot);
            if !keep {
                scrape.cancel();
            }
            keep
        });
        for endpoint in &datastore.endpoints {
            if self.scrapes.contains_key(&endpoint.slot) {
                continue;
            }
            let token = stop.child_token();
            let task = self.scrape_until(Arc::clone(endpoint), token.clone());
            self.tracker.spawn_on(task, self.scrapers.of_row(row(endpoint.slot.idx)));
            self.scrapes.insert(endpoint.slot, token);
        }
    }

    fn scrape_until(
        &self,
        endpoint: Arc<LiveEndpoint>,
        token: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let Self { director, times, start, attempts, kv_ports, .. } = self;
        let (director, attempts) = (Arc::clone(director), Arc::clone(attempts));
        let (times, kv_ports) = (*times, *kv_ports);
        let start = start.checked_sub(times.phase(row(endpoint.slot.idx))).unwrap_or(*start);
        async move {
            let watch = || {
                let (endpoint, attempts) = (Arc::clone(&endpoint), Arc::clone(&attempts));
                let metrics = Arc::clone(director.metrics());
                let scraping = Scraping { endpoint, times, start, attempts, metrics };
                watch(Arc::clone(&director), scraping, kv_ports)
            };
            let died = |panic: &str| {
                director.metrics().endpoint_task_panics.inc();
                let (endpoint, pod) = (&*endpoint.destination, &*endpoint.pod);
                error!(
                    endpoint,
                    pod, panic, "The task that scrapes an endpoint has died; starting another one"
                );
            };
            tokio::select! {
                () = token.cancelled() => {}
                () = restart_on_panic(watch, died) => {}
            }
        }
    }
}

/// Scrapes an endpoint and follows its KV events until it is dropped.
async fn watch(director: Arc<Director>, scraping: Scraping, kv_ports: KvPorts) {
    let (endpoint, metrics) = (Arc::clone(&scraping.endpoint), Arc::clone(&scraping.metrics));
    let mut rng = ChaCha8Rng::seed_from_u64(director.options().seed);
    rng.set_stream(u64::from(endpoint.slot.idx));
    let events = follow(endpoint, Arc::clone(director.blocks()), metrics, kv_ports);
    let note = |endpoint: &LiveEndpoint, reading| director.note_scrape(endpoint, reading);
    tokio::select! {
        () = scrape(scraping, rng, note) => {}
        () = events => {}
    }
}
