//! Rules of one pod at run time: which are active, which hit the next request, and how often they did. They are always
//! set all at once; sockets, answers and the engine read them here.

use super::page::FrozenPages;
use super::{Endpoints, Fault, Rule, Scope, When};
use crate::clock::{Clock, SimTime};
use parking_lot::{Mutex, RwLock};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Faults of a pod, shared by its parts.
#[derive(Debug)]
pub struct PodFaults {
    /// True if there are rules: all that a request without a fault looks at.
    any: AtomicBool,
    rules: RwLock<Arc<[Arc<ActiveRule>]>>,
    changed: watch::Sender<()>,
    clock: Clock,
    seed: u64,
    dead: CancellationToken,
}

#[derive(Debug)]
pub struct ActiveRule {
    pub rule: Rule,
    set_at: SimTime,
    tally: Mutex<Tally>,
    frozen: OnceLock<FrozenPages>,
}

/// Number of requests or connections that matched while the rule was active, and number of those that it hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub matched: u64,
    pub hit: u64,
}

#[derive(Debug)]
struct Tally {
    count: Count,
    rng: ChaCha8Rng,
}

// === impl PodFaults ===

impl PodFaults {
    /// Makes an empty set; `seed` decides which requests a rate hits.
    pub fn new(clock: Clock, seed: u64) -> Self {
        Self {
            any: AtomicBool::new(false),
            rules: RwLock::new(Arc::from([])),
            changed: watch::Sender::new(()),
            clock,
            seed,
            dead: CancellationToken::new(),
        }
    }

    /// Sets these rules and no others; their counts begin again.
    pub fn set(&self, rules: Vec<Rule>) {
        let set_at = self.clock.now();
        let activate = |(idx, rule)| Arc::new(ActiveRule::new(rule, set_at, self.seed, idx));
        let rules: Arc<[_]> = (0..).zip(rules).map(activate).collect();
        let any = !rules.is_empty();
        *self.rules.write() = rules;
        self.any.store(any, Ordering::Release);
        self.changed.send_replace(());
    }

    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub fn rules(&self) -> Arc<[Arc<ActiveRule>]> {
        self.rules.read().clone()
    }

    /// Returns the rules that hit a request that arrives now, in order.
    pub fn hits_of_request(&self, endpoints: Endpoints) -> Vec<Arc<ActiveRule>> {
        self.hits(|rule| rule.fault.scope() != Scope::Pod && !rule.is_drop() && rule.on.includes(endpoints))
    }

    /// Returns whether a connection that arrives now is reset.
    pub fn drops_connection(&self) -> bool {
        self.any() && !self.hits(Rule::is_drop).is_empty()
    }

    pub fn refuses_connections(&self) -> bool {
        self.any() && self.active().any(|active| matches!(active.rule.fault, Fault::Refuse {}))
    }

    pub fn starts_slowly(&self) -> Option<Arc<ActiveRule>> {
        self.active().find(|active| matches!(active.rule.fault, Fault::SlowStart { .. }))
    }

    /// Returns the share of the KV blocks to take: the largest of all rules.
    pub fn kv_pressure(&self) -> f64 {
        let shares = self.active().filter_map(|active| {
            let Fault::KvPressure { share } = active.rule.fault else { return None };
            Some(share)
        });
        shares.fold(0.0, f64::max)
    }

    /// Returns the active rules of the pod, in order.
    pub fn active(&self) -> impl Iterator<Item = Arc<ActiveRule>> {
        let now = self.clock.now();
        let rules = self.rules();
        (0..rules.len()).filter_map(move |idx| Some(rules[idx].clone()).filter(|rule| rule.is_active(now)))
    }

    pub fn now(&self) -> SimTime {
        self.clock.now()
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns a receiver of each change of the rules.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Waits until the rules change, or one of them begins or ends.
    pub async fn change(&self, changed: &mut watch::Receiver<()>) {
        let now = self.clock.now();
        let next = self.rules().iter().filter_map(|rule| rule.next_turn(now)).min();
        let due = async {
            match next {
                Some(at) => self.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = changed.changed() => {}
            () = due => {}
        }
    }

    /// Marks the pod as dead.
    pub fn kill(&self) {
        self.dead.cancel();
    }

    /// Token that is cancelled when the pod dies.
    pub fn dead(&self) -> &CancellationToken {
        &self.dead
    }

    fn hits(&self, matches: impl Fn(&Rule) -> bool) -> Vec<Arc<ActiveRule>> {
        self.active().filter(|active| matches(&active.rule) && active.strikes()).collect()
    }
}

// === impl ActiveRule ===

impl ActiveRule {
    fn new(rule: Rule, set_at: SimTime, seed: u64, idx: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(idx);
        let tally = Mutex::new(Tally { count: Count::default(), rng });
        Self { rule, set_at, tally, frozen: OnceLock::new() }
    }

    pub fn count(&self) -> Count {
        self.tally.lock().count
    }

    pub fn begins_at(&self) -> SimTime {
        self.set_at + self.rule.when.from
    }

    pub fn is_active(&self, now: SimTime) -> bool {
        now >= self.begins_at() && self.ends_at().is_none_or(|end| now < end)
    }

    /// Returns the page as it was when the rule began, if the rule freezes it; `render` makes it for the first caller.
    pub fn frozen(&self, render: impl FnOnce() -> FrozenPages) -> &FrozenPages {
        self.frozen.get_or_init(render)
    }

    fn ends_at(&self) -> Option<SimTime> {
        let lasts =
            if let Fault::SlowStart { delay } = self.rule.fault { Some(delay) } else { self.rule.when.lasts };
        lasts.map(|lasts| self.begins_at() + lasts)
    }

    fn next_turn(&self, now: SimTime) -> Option<SimTime> {
        let begin = Some(self.begins_at()).filter(|begin| *begin > now);
        begin.or_else(|| self.ends_at().filter(|end| *end > now))
    }

    /// Counts a match, and returns whether the rule hits it. The draws depend only on the seed and their order.
    fn strikes(&self) -> bool {
        let When { after, times, rate, from: _, lasts: _ } = self.rule.when;
        let mut tally = self.tally.lock();
        tally.count.matched += 1;
        if tally.count.matched <= after {
            return false;
        }
        let is_drawn = rate.is_none_or(|rate| tally.rng.random_bool(rate));
        let strikes = is_drawn && times.is_none_or(|times| tally.count.hit < times);
        tally.count.hit += u64::from(strikes);
        strikes
    }
}

// === impl Rule ===

impl Rule {
    fn is_drop(&self) -> bool {
        matches!(self.fault, Fault::Drop {})
    }
}
