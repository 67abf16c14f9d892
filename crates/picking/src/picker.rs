//! Picks an endpoint for each request, and learns from its outcome.

use std::borrow::Borrow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use prefix_index::blocks::{BlockIndex, Bounds};
use prefix_index::chain::Chain;
use prefix_index::endpoint::EndpointId;
use prefix_index::index::PrefixIndex;
use prefix_index::matches::Matches;
use rand::Rng;
use scheduling::candidate::Candidate;
use scheduling::pick::{Ask, Decision, pick};

use crate::awaited::PromptWork;
use crate::cache_facts::InsertedPrompt;
use crate::endpoint::health::Doubts;
use crate::endpoint::{Cache, EndpointState, Incarnations, Sample};
use crate::estimate::{Estimate, Learned, ReportedUsage, bound, note_sent};
use crate::lease::Lease;
use crate::matching::{Matched, counted, matched};
use crate::moment::Moment;
use crate::request::{Request, TokenPrompts};

/// Default of the most blocks of each endpoint in the prefix index: a prompt of 128 KB has about 580.
pub const INDEX_CAPACITY: NonZeroU32 = NonZeroU32::new(31_250).expect("above 0");

/// Default of the time between two scrapes of an endpoint that is busy.
pub const SCRAPE_INTERVAL: Duration = Duration::from_millis(50);

/// Settings that do not change while a picker lives.
#[derive(Clone, Copy, Debug)]
pub struct PickerSettings {
    /// Most blocks of each endpoint in the prefix index.
    pub index_capacity: NonZeroU32,
    /// Bounds of the index of KV events.
    pub kv_bounds: Bounds,
    /// Greatest age of scraped numbers that count.
    pub max_metrics_age: Duration,
}

/// The picker's knowledge about requests and caches; each [`EndpointState`] knows its own load.
#[derive(Debug)]
pub struct Picker {
    settings: PickerSettings,
    incarnations: Incarnations,
    index: PrefixIndex,
    blocks: Arc<BlockIndex>,
}

/// State that only one pick at a time may use. Share it under a lock, so that a pick counts before the next one reads
/// loads and prefixes.
#[derive(Debug)]
pub struct PickState<R> {
    /// Chooses between endpoints that are equally good.
    pub rng: R,
    /// Memory of a lookup's answer, reused by the next lookup.
    matches: Matches,
}

/// The endpoint for a request, and the figures by which it was chosen.
#[derive(Debug)]
pub struct Placed<E: Borrow<EndpointState>> {
    pub decision: Decision,
    /// The endpoints as the policy sees them, in their order.
    pub candidates: Vec<Candidate>,
    /// The part of the request that each endpoint holds, in the same order.
    pub matched: Vec<Matched>,
    pub lease: Lease<E>,
}

/// Changes by a scrape, besides the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scraped {
    pub cache: Cache,
    /// New bound of the text that the endpoint is assumed to hold, in bytes, if it has changed.
    pub bound: Option<u64>,
}

// === impl PickState ===

impl<R> PickState<R> {
    pub fn new(rng: R) -> Self {
        Self { rng, matches: Matches::new() }
    }
}

// === impl Picker ===

impl Picker {
    #[must_use]
    pub fn new(settings: PickerSettings) -> Self {
        Self {
            settings,
            incarnations: Incarnations::default(),
            index: PrefixIndex::new(settings.index_capacity),
            blocks: Arc::new(BlockIndex::new(settings.kv_bounds)),
        }
    }

    /// A new endpoint, which owns `slot` of the index from now on.
    #[must_use]
    pub fn endpoint(&self, slot: u32) -> EndpointState {
        EndpointState::new(slot, &self.incarnations)
    }

    /// The index of past picks.
    #[must_use]
    pub fn index(&self) -> &PrefixIndex {
        &self.index
    }

    /// The index of KV events.
    #[must_use]
    pub fn blocks(&self) -> &Arc<BlockIndex> {
        &self.blocks
    }

    /// Picks one of `endpoints` for `request` and makes the pick count at once. `None` without endpoints.
    pub fn place<E: Borrow<EndpointState>>(
        &self,
        request: &Request<'_>,
        endpoints: &[&Arc<E>],
        now: Moment,
        pick_state: &mut PickState<impl Rng>,
    ) -> Option<Placed<E>> {
        let Request { policy, n_endpoints, target_model, .. } = request;
        let matched = matched(request, endpoints, (&self.index, &self.blocks), &mut pick_state.matches);
        let candidate = |(endpoint, matched): (&&Arc<E>, &Matched)| {
            let state: &EndpointState = (***endpoint).borrow();
            Candidate {
                endpoint: state.id(),
                load: state.load(now, self.settings.max_metrics_age),
                adapter: target_model.map(|model| state.adapter_state(model)).unwrap_or_default(),
                matched_bytes: matched.bytes,
            }
        };
        let candidates: Vec<Candidate> = endpoints.iter().zip(&matched).map(candidate).collect();
        let ask = Ask { total_bytes: request.total_bytes(), n_endpoints: *n_endpoints };
        let decision = pick(policy, &candidates, ask, &mut pick_state.rng).ok()?;
        let idx = decision.candidate_idx;
        let uncached_bytes = decision.scores[idx].uncached_bytes;
        let lease = self.send(request, endpoints[idx], matched[idx], uncached_bytes);
        Some(Placed { decision, candidates, matched, lease })
    }

    /// The endpoints that hold a part of `chain` that counts, with its bytes, in no order.
    pub fn holders<'m>(
        &self,
        chain: &Chain,
        matches: &'m mut Matches,
    ) -> impl Iterator<Item = (EndpointId, u64)> + use<'m> {
        self.index.longest_match(chain, matches);
        matches.iter().map(|(endpoint, bytes)| (endpoint, counted(bytes))).filter(|(_, bytes)| *bytes > 0)
    }

    /// Counts `request` as sent to `endpoint`, which is assumed to hold `matched` of it and still has to compute
    /// `uncached_bytes`.
    pub fn send<E: Borrow<EndpointState>>(
        &self,
        request: &Request<'_>,
        endpoint: &Arc<E>,
        matched: Matched,
        uncached_bytes: u64,
    ) -> Lease<E> {
        let Request { chains, tokens, prompt_bytes, reading, .. } = *request;
        let state = (**endpoint).borrow();
        let (insertions, evidence) = note_sent(chains, state, &self.index);
        let Matched { estimated_bytes, saved_tokens, .. } = matched;
        let estimate = (!chains.is_empty()).then_some(Estimate {
            endpoint: state.id(),
            predicted_bytes: estimated_bytes,
            saved_tokens,
            n_bytes: prompt_bytes,
            reading,
            evidence,
        });
        let expected = tokens.and_then(|TokenPrompts { prompts, block_size }| {
            self.blocks.expect(prompts, state.id(), *block_size)
        });
        let work = PromptWork { n_prompts: chains.len().max(1) as u64, uncached_bytes };
        Lease::new(endpoint, work, (insertions, expected), estimate)
    }

    /// Notes that `served` answered instead of the picked endpoint, which therefore could not be reached: the picked
    /// endpoint counts as stale until it is scraped again, and `served` has the prompt that it was assumed to get.
    pub fn on_served_elsewhere<E: Borrow<EndpointState>>(
        &self,
        lease: &mut Lease<E>,
        chains: &[Chain],
        served: &Arc<E>,
    ) {
        let (insertions, _) = note_sent(chains, (**served).borrow(), &self.index);
        lease.move_to(served, insertions);
    }

    /// Ends a request. Returns what the usage of its response teaches, if it reports any that counts.
    pub fn on_end<E: Borrow<EndpointState>>(
        &self,
        lease: Lease<E>,
        answer: Option<ReportedUsage>,
    ) -> Option<Learned> {
        let (answer, estimate) = answer.zip(lease.estimate())?;
        estimate.learn(answer, (**lease.endpoint()).borrow(), &self.index)
    }

    /// Notes that another picker has sent a prompt to `endpoint`. It is unknown if the prompt was ever computed.
    pub fn on_sent_by_peer(&self, chain: &Chain, endpoint: &EndpointState) {
        let id = endpoint.id();
        if let Some(inserted) = self.index.insert(chain, id) {
            endpoint.facts.note_sent(InsertedPrompt { endpoint: id, at: inserted.at });
        }
    }

    /// Notes a successful scrape of `endpoint` at `taken`, which began after `doubts`.
    pub fn on_scrape(
        &self,
        endpoint: &EndpointState,
        sample: Sample,
        doubts: Doubts,
        taken: Moment,
    ) -> Scraped {
        let cache = endpoint.report(sample, doubts, taken);
        if cache == Cache::Lost {
            self.forget(endpoint);
        }
        Scraped { cache, bound: bound(endpoint, &self.index) }
    }

    /// Notes that nothing listens at the address of `endpoint`.
    pub fn on_down(&self, endpoint: &EndpointState) -> Cache {
        let cache = endpoint.report_down();
        if cache == Cache::Lost {
            self.forget(endpoint);
        }
        cache
    }

    /// Forgets the process behind `endpoint`, which is gone, and its cache.
    pub fn forget(&self, endpoint: &EndpointState) {
        let gone = endpoint.reincarnate(&self.incarnations);
        self.index.remove_endpoint(gone);
        self.blocks.remove_endpoint(gone);
    }
}
