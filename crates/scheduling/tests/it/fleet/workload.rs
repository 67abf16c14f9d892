//! Arrivals over 200 seconds that show the differences between policies.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::cache::Text;

/// Time during which requests arrive, in seconds.
const DURATION: f64 = 200.0;
/// Number of requests in a burst.
const BURST: usize = 40;
/// Number of turns in a conversation.
const TURNS: usize = 8;
/// Mean time between two turns, in seconds.
const SECONDS_BETWEEN_TURNS: f64 = 20.0;

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Position in the order of arrival.
    pub(crate) id: usize,
    /// Seconds from the start.
    pub(crate) arrival: f64,
    pub(crate) text: Text,
    /// Number of its tokens, from the start, that are from `text`; the rest is its own. A conversation consists only of
    /// text.
    pub(crate) n_text: usize,
    pub(crate) n_prompt: usize,
    pub(crate) n_output: usize,
}

/// The requests that the fleet gets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// Arrivals per second.
    pub(crate) rate: f64,
    pub(crate) arrivals: Arrivals,
    /// Number of texts that requests share, drawn evenly; 0: each request has its own text.
    pub(crate) n_texts: usize,
    /// Share of requests on the first text, in addition to those that draw it anyway.
    pub(crate) hot_share: f64,
    pub(crate) n_text: usize,
    pub(crate) n_own: usize,
    pub(crate) n_output: usize,
    /// Tokens of a pod's KV cache.
    pub(crate) n_kv_tokens: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Arrivals {
    Poisson,
    /// Poisson, [`BURST`] requests at each arrival.
    Bursts,
    /// Users who wait for an answer, read it and continue.
    Turns,
}

/// 150 prefixes of 2,000 tokens: three pods' worth of cache.
pub(crate) const THRASH: Workload = Workload {
    rate: 4.0,
    arrivals: Arrivals::Poisson,
    n_texts: 150,
    hot_share: 0.0,
    n_text: 2000,
    n_own: 60,
    n_output: 60,
    n_kv_tokens: 96_000,
};
/// Like [`THRASH`] with half the cache, which is smaller than the working set.
pub(crate) const OVERCOMMITTED: Workload = Workload { n_kv_tokens: 48_000, ..THRASH };
/// 24 documents of 8,000 tokens: two pods' worth of cache.
pub(crate) const DOCUMENTS: Workload = Workload { rate: 1.0, n_texts: 24, n_text: 8000, ..THRASH };
pub(crate) const FEW_DOCUMENTS: Workload = Workload { rate: 0.5, ..DOCUMENTS };
/// Four fifths of all requests share one prefix.
pub(crate) const HOT: Workload =
    Workload { rate: 10.0, n_texts: 33, hot_share: 0.8, n_text: 4000, n_own: 60, n_output: 100, ..THRASH };
pub(crate) const WARM: Workload = Workload { rate: 4.0, ..HOT };
/// One question again and again: a pod that has seen it has nothing left to compute.
pub(crate) const REPEATED: Workload = Workload { n_own: 2, ..HOT };
/// Requests without common text.
pub(crate) const UNIQUE: Workload =
    Workload { rate: 6.0, n_texts: 0, n_text: 0, n_own: 1000, n_output: 60, ..THRASH };

/// Conversations of up to eight turns, each user's next one 10 to 30 seconds after the last.
pub(crate) const CHATS: Workload =
    Workload { rate: 4.0, arrivals: Arrivals::Turns, n_text: 1000, n_own: 100, n_output: 100, ..THRASH };
/// Like [`UNIQUE`], but forty requests at each arrival.
pub(crate) const BURSTS: Workload = Workload { rate: 0.1, arrivals: Arrivals::Bursts, ..UNIQUE };

impl Workload {
    pub(crate) fn requests(&self, seed: u64) -> Vec<Request> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut requests = match self.arrivals {
            Arrivals::Poisson => self.poisson(1, &mut rng),
            Arrivals::Bursts => self.poisson(BURST, &mut rng),
            Arrivals::Turns => self.turns(&mut rng),
        };
        requests.sort_by(|a, b| a.arrival.total_cmp(&b.arrival));
        (0..).zip(&mut requests).for_each(|(id, request)| request.id = id);
        requests
    }

    /// Poisson arrivals, `n` requests at each.
    fn poisson(&self, n: usize, rng: &mut ChaCha8Rng) -> Vec<Request> {
        let mut requests = Vec::new();
        let mut arrival = 0.0;
        loop {
            arrival -= (1.0 - rng.random::<f64>()).ln() / self.rate;
            if arrival > DURATION {
                return requests;
            }
            for _ in 0..n {
                let text = self.text(requests.len(), rng);
                requests.push(self.request(arrival, text, self.n_text + self.n_own));
            }
        }
    }

    /// Conversations: the prompt of each turn is the conversation so far and `n_own` more tokens.
    fn turns(&self, rng: &mut ChaCha8Rng) -> Vec<Request> {
        let mut requests: Vec<Request> = Vec::new();
        let n_users = (self.rate * SECONDS_BETWEEN_TURNS) as usize;
        for user in 0..n_users {
            let mut arrival = rng.random::<f64>() * SECONDS_BETWEEN_TURNS;
            for turn in 0.. {
                if arrival > DURATION {
                    break;
                }
                let text = Text::Shared(user + turn / TURNS * n_users);
                let n_prompt = self.n_text + turn % TURNS * (self.n_own + self.n_output);
                let request = self.request(arrival, text, n_prompt);
                requests.push(Request { n_text: n_prompt + self.n_output, ..request });
                arrival += SECONDS_BETWEEN_TURNS * (0.5 + rng.random::<f64>());
            }
        }
        requests
    }

    fn request(&self, arrival: f64, text: Text, n_prompt: usize) -> Request {
        Request { id: 0, arrival, text, n_text: self.n_text, n_prompt, n_output: self.n_output }
    }

    fn text(&self, id: usize, rng: &mut ChaCha8Rng) -> Text {
        if self.n_texts == 0 {
            Text::Own(id)
        } else if self.hot_share == 0.0 {
            Text::Shared(rng.random_range(0..self.n_texts))
        } else if rng.random_bool(self.hot_share) {
            Text::Shared(0)
        } else {
            Text::Shared(rng.random_range(1..self.n_texts))
        }
    }
}
