//! Rebuilds the caches of all pods line by line, and compares each request with all of them. The pods' own counts check
//! the replay: what a request really hit must follow from it.

use super::Moment;
use super::read::Placed;
use crate::cache_log::{CacheAdmission, CacheArrival, CacheEvent, CacheLine, CacheStart};
use anyhow::{Context as _, ensure};
use hashbrown::HashMap;
use std::collections::BTreeMap;
use std::time::Duration;
use vllm_engine::latency::LatencyModel;
use vllm_engine::request::RequestId;
use vllm_engine::step::{Origin, ScheduledRequest, StepPlan};

/// A router's decision, and what the alternatives had.
#[derive(Clone, Debug)]
pub(super) struct RoutedChoice {
    pub(super) request_id: String,
    pub(super) pod: String,
    /// Unix time of the moment, in nanoseconds.
    pub(super) time_ns: u64,
    pub(super) prompt_tokens: u32,
    /// Tokens that the pod really had; `None` if the request was never admitted.
    pub(super) cached_tokens: Option<u32>,
    /// Tokens that each pod had, by the pod's name.
    pub(super) hits: BTreeMap<String, u32>,
    /// Pod with the most tokens; the request's own unless another had more.
    pub(super) best_pod: String,
    pub(super) here_tokens: u32,
    pub(super) best_tokens: u32,
    /// Virtual time for computing the tokens that `best_pod` had and this pod did not.
    pub(super) cost: Duration,
}

/// Count of admissions that the replay explains.
#[derive(Clone, Debug, Default)]
pub(super) struct Agreement {
    pub(super) n_admissions: usize,
    pub(super) n_agreed: usize,
    pub(super) first_contradiction: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// Choices in order of time.
    pub(super) choices: Vec<RoutedChoice>,
    pub(super) agreement: Agreement,
}

/// One run of a pod.
#[derive(Debug)]
struct PodRun {
    start: Box<CacheStart>,
    /// Number of blocks with each hash.
    cached: HashMap<u64, u32>,
    next_seq: u64,
    stopped: bool,
    /// Requests that are not admitted yet, each with the index of its choice if that is already made.
    waiting: HashMap<u64, (CacheArrival, Option<usize>)>,
}

/// Runs of pods by name, so that reports are stable.
type Fleet = BTreeMap<String, PodRun>;

/// Replays the lines.
///
/// # Errors
/// Fails if lines are missing or pods cannot be compared.
pub(super) fn replay(lines: Vec<Placed>, at: Moment) -> anyhow::Result<Replayed> {
    let mut fleet = Fleet::new();
    let mut replayed = Replayed::default();
    for Placed { line, place } in lines {
        let CacheLine { pod, seq, time_ns, event } = line;
        if let CacheEvent::Start(start) = event {
            ensure!(seq == 0, "{place}: pod {pod} starts with line {seq}");
            check_comparable(&fleet, &pod, &start).context(place)?;
            fleet.insert(pod, PodRun::new(start));
            continue;
        }
        let run = fleet.get_mut(&pod).with_context(|| format!("{place}: pod {pod} has no start before"))?;
        let expected = std::mem::replace(&mut run.next_seq, seq + 1);
        ensure!(
            seq == expected,
            "{place}: pod {pod} jumps from line {expected} to {seq}: lines are missing, or two pods have one name \
             (--pod-name)"
        );
        match event {
            CacheEvent::Start(_) => {}
            CacheEvent::Arrival(arrival) => {
                let made = (at == Moment::Arrival).then_some(replayed.choices.len());
                if made.is_some() {
                    replayed.choices.push(choose(&fleet, &pod, &arrival, time_ns, None));
                }
                let run = fleet.get_mut(&pod).expect("it was there above");
                run.waiting.insert(arrival.request, (arrival, made));
            }
            CacheEvent::Step { admitted, stored, removed } => {
                for admission in admitted {
                    let step = (stored.as_slice(), removed.as_slice());
                    admit(&mut fleet, &mut replayed, (&pod, time_ns), admission, step)
                        .context(place.clone())?;
                }
                fleet.get_mut(&pod).expect("it was there above").apply(&stored, &removed).context(place)?;
            }
            CacheEvent::Cleared => run.cached.clear(),
            CacheEvent::Stop => run.stopped = true,
        }
    }
    Ok(replayed)
}

/// Compares what a request really hit with the replay, and makes the choice unless it was made at arrival.
fn admit(
    fleet: &mut Fleet,
    replayed: &mut Replayed,
    (pod, time_ns): (&str, u64),
    CacheAdmission { request, cached_tokens }: CacheAdmission,
    (stored, removed): (&[u64], &[u64]),
) -> anyhow::Result<()> {
    let run = fleet.get_mut(pod).expect("the caller looked it up");
    let known = run.waiting.remove(&request);
    let (arrival, made) = known.with_context(|| format!("request {request} was admitted and never came"))?;
    let agreement = &mut replayed.agreement;
    agreement.n_admissions += 1;
    if run.explains(&arrival.hashes, cached_tokens, stored, removed) {
        agreement.n_agreed += 1;
    } else if agreement.first_contradiction.is_none() {
        let told = run.hit_tokens(&arrival.hashes);
        agreement.first_contradiction = Some(format!(
            "request {} hit {cached_tokens} tokens on pod {pod}, by its log it had {told}",
            arrival.request_id
        ));
    }
    match made {
        Some(choice) => replayed.choices[choice].cached_tokens = Some(cached_tokens),
        None => replayed.choices.push(choose(fleet, pod, &arrival, time_ns, Some(cached_tokens))),
    }
    Ok(())
}

/// Asks every pod. If `cached_tokens` is known, it is the answer of the request's own pod.
fn choose(
    fleet: &Fleet,
    pod: &str,
    arrival: &CacheArrival,
    time_ns: u64,
    cached_tokens: Option<u32>,
) -> RoutedChoice {
    let asked = fleet.iter().filter(|(_, run)| !run.stopped);
    let mut hits: BTreeMap<String, u32> =
        asked.map(|(name, run)| (name.clone(), run.hit_tokens(&arrival.hashes))).collect();
    let here = hits.entry(pod.to_owned()).or_default();
    *here = cached_tokens.unwrap_or(*here);
    let here_tokens = *here;
    let better = hits.iter().filter(|(_, tokens)| **tokens > here_tokens);
    // Takes the first by name among the best.
    let best = better.rev().max_by_key(|(_, tokens)| **tokens);
    let (best_pod, best_tokens) = best.map_or((pod.to_owned(), here_tokens), |(name, n)| (name.clone(), *n));
    let start = &fleet[pod].start;
    let time = |n_cached| prefill_time(start, arrival.prompt_tokens, n_cached);
    let cost = time(here_tokens).saturating_sub(time(best_tokens));
    RoutedChoice {
        request_id: arrival.request_id.clone(),
        pod: pod.to_owned(),
        time_ns,
        prompt_tokens: arrival.prompt_tokens,
        cached_tokens,
        hits,
        best_pod,
        here_tokens,
        best_tokens,
        cost,
    }
}

/// Returns the time to the first token of a prompt that is alone in the engine.
fn prefill_time(start: &CacheStart, n_prompt: u32, n_cached: u32) -> Duration {
    let CacheStart { max_chunk_tokens, latency, block_size: _, none_hash: _ } = start;
    let mut n_computed = n_cached;
    let mut time = Duration::ZERO;
    while n_computed < n_prompt {
        let n_new_tokens = max_chunk_tokens.get().min(n_prompt - n_computed);
        time += chunk_time(latency, n_computed, n_new_tokens);
        n_computed += n_new_tokens;
    }
    time
}

fn chunk_time(latency: &LatencyModel, n_computed_before: u32, n_new_tokens: u32) -> Duration {
    let origin = Origin::New;
    let chunk =
        ScheduledRequest { id: RequestId(0), n_new_tokens, n_computed_before, is_prefill: true, origin };
    latency.step_time(&StepPlan { scheduled: vec![chunk], preempted: Vec::new() })
}

fn check_comparable(fleet: &Fleet, pod: &str, start: &CacheStart) -> anyhow::Result<()> {
    for (other, run) in fleet.iter().filter(|(other, run)| *other != pod && !run.stopped) {
        let key = |start: &CacheStart| (start.block_size, start.none_hash);
        ensure!(
            key(&run.start) == key(start),
            "pods {other} and {pod} name blocks differently, so their caches cannot be compared: give them the same \
             --block-size, --prefix-caching-hash-algo and PYTHONHASHSEED"
        );
    }
    Ok(())
}

// === impl PodRun ===

impl PodRun {
    fn new(start: Box<CacheStart>) -> Self {
        Self { start, cached: HashMap::new(), next_seq: 1, stopped: false, waiting: HashMap::new() }
    }

    fn hit_tokens(&self, hashes: &[u64]) -> u32 {
        let n_blocks = hashes.iter().take_while(|hash| self.cached.contains_key(*hash)).count();
        u32::try_from(n_blocks).unwrap_or(u32::MAX).saturating_mul(self.start.block_size.get())
    }

    fn apply(&mut self, stored: &[u64], removed: &[u64]) -> anyhow::Result<()> {
        for hash in stored {
            *self.cached.entry(*hash).or_default() += 1;
        }
        for hash in removed {
            let count = self
                .cached
                .get_mut(hash)
                .with_context(|| format!("block {hash} was removed and not there"))?;
            *count -= 1;
            if *count == 0 {
                self.cached.remove(hash);
            }
        }
        Ok(())
    }

    /// Returns whether a request that is admitted in a step can have hit this much: the step's own changes may come
    /// before it.
    fn explains(&self, hashes: &[u64], cached_tokens: u32, stored: &[u64], removed: &[u64]) -> bool {
        let n_hits = (cached_tokens / self.start.block_size) as usize;
        let Some((hits, rest)) = hashes.split_at_checked(n_hits) else { return false };
        let may_be_there = |hash: &u64| self.cached.contains_key(hash) || stored.contains(hash);
        let must_be_there = |hash: &u64| self.cached.contains_key(hash) && !removed.contains(hash);
        hits.iter().all(may_be_there) && !rest.first().is_some_and(must_be_there)
    }
}
