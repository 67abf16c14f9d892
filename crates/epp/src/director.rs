//! Finds the endpoint for a request: pool, model, candidates, policy. Then writes the record, the log line and the
//! metrics.
//!
//! Synchronous and without I/O: everything that it reads is in memory, and the time is an argument.

mod peers;
mod report;
mod in_flight;
mod note;
mod tokens;
mod model;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use inference_api::object::ObjectKey;
use inference_api::pool::{Criticality, RoutingStrategy};
use parking_lot::Mutex;
use picking::endpoint::Cache;
use picking::estimate::CacheReading;
use picking::lease::Lease;
use picking::moment::Moment;
use picking::picker::{PickState, Picker, PickerSettings};
use picking::request::{Request, TokenPrompts};
use pool_index::snapshot::Snapshot;
use prefix_index::blocks::{BlockIndex, Bounds};
use prefix_index::chain::{Chain, ChainSeed};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scheduling::affinity::Affinity;
use scheduling::candidate::Load;
use scheduling::pick::Policy;
use scheduling::saturation::Thresholds;
use tracing::debug;

pub use self::in_flight::InFlightRequest;
use self::model::ModelChoice;
use self::note::{DecisionTrace, PickFacts};
pub use self::tokens::TokenSource;
use crate::datastore::{Datastore, LiveEndpoint, LivePool};
use crate::explain::{DecisionRecord, Decisions};
use crate::metrics::{Counted, Metrics};
use crate::peers::PeerJournal;
use crate::policies::Policies;
use crate::scrape::{ScrapeResult, times};
use crate::tuning::Patch;
use ext_proc::body::{Lookup, ModelName, RequestBody, Unseen};
use ext_proc::compat::Compat;
use ext_proc::exchange::{Pick, Rewrite};
use ext_proc::pick_request::{Content, PickRequest, PromptTokens};
use ext_proc::refusal::Refusal;
use ext_proc::subset::Subset;

/// Alphabet and length of Kubernetes' `rand.String(10)`, which makes the tutorial's request ids.
const REQUEST_ID_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const REQUEST_ID_LENGTH: usize = 10;
/// Options that do not change while the process runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pool to pick from if the proxy names none. `None`: the only pool, or the one that has the model.
    pub pool: Option<ObjectKey>,
    /// Knobs of the policy that flags set.
    pub policy: Patch,
    /// Greatest age of scraped numbers that count.
    pub max_metrics_age: Duration,
    /// Most blocks of each endpoint in the prefix index.
    pub index_capacity: NonZeroU32,
    /// Bounds of the index of KV events.
    pub kv_bounds: Bounds,
    pub compat: Compat,
    /// True if clients that ask are told which endpoint was picked, and why.
    pub explains: bool,
    /// Limits of an endpoint with capacity. If no endpoint of a pool has capacity, requests that are not critical are
    /// refused.
    pub saturation: Thresholds,
    /// Most endpoints that the proxy gets for a request: the picked one and its fallbacks.
    pub endpoints_per_pick: NonZeroUsize,
    /// Number of decisions that are kept for `/debug/decisions`.
    pub n_decisions: usize,
    pub seed: u64,
    /// Options for reports to other pickers; `None` without any.
    pub peers: Option<Peers>,
}

impl Options {
    /// These options, with limits on the age of metrics that scrapes every `period` can keep.
    #[must_use]
    pub fn for_scrapes_every(self, period: Duration) -> Self {
        let keep = |limit| times::age_limit(limit, period);
        let saturation = Thresholds { metrics_age: keep(self.saturation.metrics_age), ..self.saturation };
        Self { max_metrics_age: keep(self.max_metrics_age), saturation, ..self }
    }

    /// The shortest limit on the age of metrics.
    #[must_use]
    pub fn shortest_metrics_age(&self) -> Duration {
        self.max_metrics_age.min(self.saturation.metrics_age)
    }
}

/// Options of a picker that has peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    /// Id of the process, different in each.
    pub instance: String,
    /// Most bytes of picks that are kept for peers that come late.
    pub journal_bytes: usize,
}

/// The time of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub instant: Instant,
    pub wall: SystemTime,
}

/// Picks endpoints; shared by all streams.
#[derive(Debug)]
pub struct Director {
    options: Options,
    datastore: ArcSwap<Datastore>,
    picker: Picker,
    policies: Arc<Policies>,
    /// Locked from reading loads and prefixes until the pick counts, so that simultaneous picks see each other.
    pick_state: Mutex<PickState<ChaCha8Rng>>,
    /// The first moment that was converted; the others count from it.
    epoch: OnceLock<Instant>,
    /// Randomness of names, separate so that names do not change the picks' draws.
    names: Mutex<ChaCha8Rng>,
    decisions: Decisions,
    metrics: Arc<Metrics>,
    journal: Option<PeerJournal>,
    /// True after every endpoint that was there at the start has been scraped.
    has_asked_all: AtomicBool,
}

/// A request whose pool and model are known.
struct Placement<'a> {
    live_pool: &'a LivePool,
    rewrite: Option<Rewrite>,
    /// The name of the model in the engines; `None` if the body was not read.
    target_model: Option<String>,
    criticality: Option<Criticality>,
    /// Length of the request's body; `None` if it was not read.
    n_bytes: Option<u64>,
    /// Chain of each prompt, under PREFIX_CACHE.
    chains: Vec<Chain>,
    /// The prompts as tokens, for a pool that uses KV events.
    tokens: Option<TokenPrompts>,
    /// Length of the text of the chains, in bytes.
    prompt_bytes: u64,
    lookup: Lookup,
}

/// A request that has an endpoint.
struct Picked {
    facts: PickFacts,
    rewrite: Option<Rewrite>,
    lease: Lease<LiveEndpoint>,
    /// Counts the request among the running ones of the model.
    running: Counted,
    chains: Vec<Chain>,
}

impl<'a> Placement<'a> {
    /// The placement of a request whose body was not read.
    fn opaque(live_pool: &'a LivePool) -> Self {
        Self {
            live_pool,
            rewrite: None,
            target_model: None,
            criticality: None,
            n_bytes: None,
            chains: Vec::new(),
            tokens: None,
            prompt_bytes: 0,
            lookup: Lookup::Beside(Unseen::NoPrompt),
        }
    }

    /// The placement of a request that names this InferenceObjective, which overrides its InferenceModel. One that the
    /// pool does not have changes nothing.
    fn under(mut self, objective: Option<&str>, trace: &mut DecisionTrace) -> Self {
        let criticality = objective.and_then(|name| self.live_pool.pool.objectives.get(name)).copied();
        self.criticality = criticality.or(self.criticality);
        trace.criticality = self.criticality;
        self
    }
}

impl Director {
    #[must_use]
    pub fn new(options: Options, metrics: Arc<Metrics>) -> Self {
        let mut names = ChaCha8Rng::seed_from_u64(options.seed);
        names.set_stream(1);
        Self {
            datastore: ArcSwap::default(),
            picker: Picker::new(PickerSettings {
                index_capacity: options.index_capacity,
                kv_bounds: options.kv_bounds,
                max_metrics_age: options.max_metrics_age,
            }),
            policies: Arc::new(Policies::new(options.policy.clone())),
            pick_state: Mutex::new(PickState::new(ChaCha8Rng::seed_from_u64(options.seed))),
            epoch: OnceLock::new(),
            names: Mutex::new(names),
            decisions: Decisions::new(options.n_decisions),
            metrics,
            journal: options
                .peers
                .as_ref()
                .map(|peers| PeerJournal::new(peers.instance.clone(), peers.journal_bytes)),
            has_asked_all: AtomicBool::new(false),
            options,
        }
    }

    /// Follows the pool index; returns the new datastore. Only one task may call it.
    pub fn apply(&self, snapshot: &Snapshot) -> Arc<Datastore> {
        let previous = self.datastore.load_full();
        let next = Arc::new(previous.follow(snapshot, &self.picker));
        self.policies.follow(snapshot);
        self.datastore.store(Arc::clone(&next));
        for endpoint in next.removed_since(&previous) {
            self.picker.forget(&endpoint.state);
        }
        next
    }

    /// Notes the result of a scrape of `endpoint`.
    pub fn note_scrape(&self, endpoint: &LiveEndpoint, reading: ScrapeResult) {
        let (destination, pod) = (&*endpoint.destination, &*endpoint.pod);
        match reading {
            ScrapeResult::Sample { sample, doubts, taken } => {
                let taken = self.moment(taken);
                let scraped = self.picker.on_scrape(&endpoint.state, sample, doubts, taken);
                if scraped.cache == Cache::Lost {
                    debug!(endpoint = destination, pod, "Endpoint was restarted");
                }
                note::bounded(endpoint, scraped.bound);
            }
            ScrapeResult::Down => {
                if self.picker.on_down(&endpoint.state) == Cache::Lost {
                    debug!(endpoint = destination, pod, "Endpoint is down");
                }
            }
        }
    }

    /// Returns true if requests are placed with knowledge: there is a pool, and every endpoint has been scraped once.
    /// Endpoints that come later do not change that.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let datastore = self.datastore.load();
        let has_asked = || datastore.endpoints.iter().all(|endpoint| endpoint.state.was_asked());
        if !self.has_asked_all.load(Ordering::Relaxed) && has_asked() {
            self.has_asked_all.store(true, Ordering::Relaxed);
        }
        self.has_asked_all.load(Ordering::Relaxed) && !datastore.pools.is_empty()
    }

    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    #[must_use]
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    #[must_use]
    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    #[must_use]
    pub fn compat(&self) -> Compat {
        self.options.compat
    }

    #[must_use]
    pub fn explains(&self) -> bool {
        self.options.explains
    }

    /// The index of KV events.
    #[must_use]
    pub fn blocks(&self) -> &Arc<BlockIndex> {
        self.picker.blocks()
    }

    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn moment(&self, instant: Instant) -> Moment {
        let epoch = *self.epoch.get_or_init(|| instant);
        match instant.checked_duration_since(epoch) {
            Some(after) => Moment::after_epoch(after),
            None => Moment::before_epoch(epoch.saturating_duration_since(instant)),
        }
    }

    /// Picks an endpoint for `request` without its token ids.
    ///
    /// # Errors
    /// The reason why the client is refused.
    pub fn decide(&self, request: PickRequest, now: Now) -> Result<Pick<InFlightRequest>, Refusal> {
        self.decide_on_record(request, PromptTokens::Unasked, now).0
    }

    /// Picks an endpoint for `request`, and returns the decision's record too. `tokens` are those that
    /// [`Self::needs_tokens`] asks for.
    pub fn decide_on_record(
        &self,
        request: PickRequest,
        tokens: PromptTokens,
        now: Now,
    ) -> (Result<Pick<InFlightRequest>, Refusal>, Arc<DecisionRecord>) {
        let PickRequest { x_request_id, pool, subset, objective, wants_reason, content } = request;
        let unnamed = Arc::clone(&self.metrics.models.unnamed);
        let mut trace = DecisionTrace::new((self.request_id(), x_request_id), now.wall, unnamed);
        let datastore = self.datastore.load();
        let placed = self
            .locate(&datastore, pool.as_ref(), (content, tokens), &mut trace)
            .map(|placement| placement.under(objective.as_deref(), &mut trace))
            .and_then(|placement| self.place(placement, subset.as_ref(), now.instant, &mut trace));
        let metrics = Arc::clone(&trace.metrics);
        let Picked { facts, rewrite, lease, running, chains } = match placed {
            Ok(picked) => picked,
            Err(refusal) => {
                let record = self.decisions.push(|seq| trace.without_endpoint(refusal.outcome(), seq));
                self.note_refused(&refusal, &record, &metrics.labels);
                return (Err(refusal), record);
            }
        };
        self.tell_peers(&chains, lease.endpoint(), now);
        let destination = facts.destination();
        let record = self.decisions.push(|seq| trace.picked(facts, seq));
        self.note_picked(&record, &metrics);
        let reason = wants_reason.then(|| record.to_header());
        let in_flight =
            InFlightRequest { lease, running, metrics, chains, started: now.instant, seq: record.seq };
        (Ok(Pick { destination, rewrite, reason, lease: in_flight }), record)
    }

    /// An id for a request without one: a random UUID, like Envoy's.
    #[must_use]
    pub fn fresh_request_id(&self) -> String {
        let mut bytes = [0; 16];
        self.names.lock().fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    fn request_id(&self) -> String {
        let mut rng = self.names.lock();
        let letter = |_| char::from(REQUEST_ID_ALPHABET[rng.random_range(0..REQUEST_ID_ALPHABET.len())]);
        (0..REQUEST_ID_LENGTH).map(letter).collect()
    }

    /// Finds the pool and the target model, and hashes the prompt if the strategy needs it.
    fn locate<'a>(
        &self,
        datastore: &'a Datastore,
        pool: Option<&ObjectKey>,
        (content, tokens): (Content, PromptTokens),
        trace: &mut DecisionTrace,
    ) -> Result<Placement<'a>, Refusal> {
        let body = match content {
            Content::Fault(fault) => return Err(fault.into()),
            Content::Opaque => None,
            Content::Body(body) => Some(body),
        };
        let model = body.as_ref().and_then(|body| body.model.as_ref().ok());
        let model = model.map(|model| model.name.as_str());
        trace.model = model.map(str::to_owned);
        if model.is_some() {
            trace.metrics = Arc::clone(&self.metrics.models.unlisted);
        }
        let live_pool = model::choose_pool(datastore, pool.or(self.options.pool.as_ref()), model)?;
        trace.pool = Some(Arc::clone(&live_pool.name));
        trace.strategy = Some(live_pool.pool.strategy);
        let Some(body) = body else {
            return Ok(Placement::opaque(live_pool));
        };
        self.options.compat.check(&body, !live_pool.pool.models.is_empty())?;
        let RequestBody { api: _, model, cache_salt, prompts, lookup, n_bytes } = body;
        let model = model.ok().map(|ModelName { name, span: _ }| name);
        let choice = match &model {
            Some(model) => model::choose(&live_pool.pool, model, &mut self.pick_state.lock().rng)?,
            None => ModelChoice { target_model: None, criticality: None },
        };
        let ModelChoice { target_model, criticality } = choice;
        trace.target_model.clone_from(&target_model);
        if let Some((model, target_model)) = model.as_ref().zip(target_model.as_ref())
            && model::names(&live_pool.pool, model)
        {
            trace.metrics = self.metrics.models.listed(model, target_model);
        }
        let prompts = match live_pool.pool.strategy {
            RoutingStrategy::Default => Vec::new(),
            RoutingStrategy::PrefixCache => prompts.unwrap_or_default(),
        };
        let prompt_bytes = prompts.iter().map(|prompt| prompt.n_bytes).sum();
        let seed = ChainSeed {
            target_model: target_model.as_deref().unwrap_or_default(),
            // In vLLM, an adapter is a model with its own name.
            adapter: None,
            cache_salt: cache_salt.as_deref(),
        };
        let chains = prompts.into_iter().map(|prompt| prompt.chain.finish(&seed)).collect();
        let (tokens, untokenized) =
            live_pool.token_prompts(tokens, target_model.as_deref(), cache_salt, self.picker.blocks());
        trace.untokenized = untokenized;
        let renamed = model.zip(target_model.as_ref()).filter(|(model, target_model)| model != *target_model);
        let rewrite =
            renamed.map(|(model, target_model)| Rewrite { model, target_model: target_model.clone() });
        let n_bytes = Some(n_bytes);
        Ok(Placement {
            live_pool,
            rewrite,
            target_model,
            criticality,
            n_bytes,
            chains,
            tokens,
            prompt_bytes,
            lookup,
        })
    }

    /// Picks among the pool's endpoints and makes the pick count at once.
    fn place(
        &self,
        placement: Placement<'_>,
        subset: Option<&Subset>,
        now: Instant,
        trace: &mut DecisionTrace,
    ) -> Result<Picked, Refusal> {
        let Placement {
            live_pool,
            rewrite,
            target_model,
            criticality,
            n_bytes,
            chains,
            tokens,
            prompt_bytes,
            lookup,
        } = placement;
        let endpoints = match eligible(live_pool, subset) {
            // For upstream, a pool without pods is a saturated one.
            Err(Refusal::NoEndpoints { pool }) if self.options.compat.sheds_without_pods() => {
                self.admit(&pool, criticality, &[], now)?;
                return Err(Refusal::NoEndpoints { pool });
            }
            endpoints => endpoints?,
        };
        self.admit(&live_pool.pool.key, criticality, &endpoints, now)?;
        trace.total_bytes = chains.iter().map(Chain::total_bytes).sum();
        let policy = match live_pool.pool.strategy {
            RoutingStrategy::Default => Policy::Default,
            RoutingStrategy::PrefixCache => {
                let tuning = trace.tuning.insert(self.policies.of(&live_pool.pool.key));
                Policy::PrefixCache(tuning.affinity(Affinity::BYTES_PER_TOKEN))
            }
        };
        trace.threshold = match policy {
            Policy::Default => None,
            Policy::PrefixCache(affinity) => Some(affinity.threshold),
        };
        let request = Request {
            policy,
            n_endpoints: self.options.endpoints_per_pick,
            target_model: target_model.as_deref(),
            chains: &chains,
            tokens: tokens.as_ref(),
            prompt_bytes,
            reading: match lookup {
                Lookup::Text => CacheReading::Text,
                Lookup::Beside(_) => CacheReading::Beside,
                Lookup::Skipped => CacheReading::Skipped,
            },
        };
        let placed = self.picker.place(&request, &endpoints, self.moment(now), &mut self.pick_state.lock());
        let placed = placed.ok_or_else(|| Refusal::NoEndpoints { pool: live_pool.pool.key.clone() })?;
        let running = Counted::new(trace.metrics.running_requests.clone());
        if let Some(n_bytes) = n_bytes {
            #[expect(clippy::cast_precision_loss, reason = "bodies are far below 2^53 bytes")]
            trace.metrics.request_bytes.observe(n_bytes as f64);
        }
        let facts = PickFacts::new(&endpoints, &placed);
        Ok(Picked { facts, rewrite, lease: placed.lease, running, chains })
    }

    /// Refuses a request by upstream's rule: a pool without capacity takes only critical requests.
    fn admit(
        &self,
        pool: &ObjectKey,
        criticality: Option<Criticality>,
        endpoints: &[&Arc<LiveEndpoint>],
        now: Instant,
    ) -> Result<(), Refusal> {
        let criticality = match criticality {
            None | Some(Criticality::Critical) => return Ok(()),
            Some(criticality @ (Criticality::Standard | Criticality::Sheddable)) => criticality,
        };
        let now = self.moment(now);
        let loads: Vec<Load> =
            endpoints.iter().map(|endpoint| endpoint.state.load(now, self.options.max_metrics_age)).collect();
        if self.options.saturation.are_exceeded_by_all(&loads) {
            return Err(Refusal::Saturated { pool: pool.clone(), criticality });
        }
        Ok(())
    }
}

/// The pool's endpoints that may be picked: those in the subset, without those known to be down if others are not.
fn eligible<'a>(
    live_pool: &'a LivePool,
    subset: Option<&Subset>,
) -> Result<Vec<&'a Arc<LiveEndpoint>>, Refusal> {
    let pool = || live_pool.pool.key.clone();
    if live_pool.endpoints.is_empty() {
        return Err(Refusal::NoEndpoints { pool: pool() });
    }
    let in_subset =
        |endpoint: &&Arc<LiveEndpoint>| subset.is_none_or(|subset| subset.contains(endpoint.address));
    let is_reachable = |endpoint: &&Arc<LiveEndpoint>| in_subset(endpoint) && endpoint.state.is_reachable();
    let reachable: Vec<&Arc<LiveEndpoint>> = live_pool.endpoints.iter().filter(is_reachable).collect();
    if !reachable.is_empty() {
        return Ok(reachable);
    }
    let endpoints: Vec<&Arc<LiveEndpoint>> = live_pool.endpoints.iter().filter(in_subset).collect();
    if endpoints.is_empty() {
        return Err(Refusal::SubsetEmpty { pool: pool() });
    }
    Ok(endpoints)
}
