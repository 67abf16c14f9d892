//! Facts about an endpoint's prefix cache: its size, whether answers report cached tokens, and which prompts the
//! endpoint still has to compute.

use parking_lot::Mutex;
use prefix_index::endpoint::EndpointId;
use prefix_index::usage::Use;

/// Weight that earlier prompts keep in the mean length of a token after one more answer. Long prompts weigh more: the
/// chat template's own tokens make those of short prompts look short.
const KEPT: f64 = 0.9;
/// Most unanswered prompts that are remembered; the newest stay.
const MAX_PENDING: usize = 1024;
/// Relative difference below which a bound is not changed.
const BOUND_TOLERANCE: f64 = 0.02;

/// Facts about the process behind one endpoint; a new process starts without any.
#[derive(Debug, Default)]
pub struct CacheFacts {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    kv_tokens: Option<u64>,
    /// Bytes and tokens of the answered prompts; earlier ones count less and less.
    lengths: Option<(f64, f64)>,
    tells_cached: bool,
    /// The bound in the index for this endpoint.
    bound: Option<u64>,
    pending: Vec<InsertedPrompt>,
    /// Paths that its API does not have.
    lacking: Vec<&'static str>,
}

/// A prompt in the index, which is assumed to be cached from the pick on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsertedPrompt {
    pub endpoint: EndpointId,
    pub at: Use,
}

/// Facts for `/debug/pools`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shown {
    pub kv_tokens: Option<u64>,
    pub bytes_per_token: Option<f64>,
    pub bound: Option<u64>,
}

// === impl CacheFacts ===

impl CacheFacts {
    /// Forgets everything: the process has ended, and its cache with it.
    pub fn reset(&self) {
        *self.state.lock() = State::default();
    }

    #[must_use]
    pub fn shown(&self) -> Shown {
        let state = self.state.lock();
        let State { kv_tokens, bound, .. } = *state;
        Shown { kv_tokens, bytes_per_token: state.bytes_per_token(), bound }
    }

    /// Notes that its API has no `path`.
    pub fn note_lack(&self, path: &'static str) {
        let mut state = self.state.lock();
        if !state.lacking.contains(&path) {
            state.lacking.push(path);
        }
    }

    #[must_use]
    pub fn lacks(&self, path: &str) -> bool {
        self.state.lock().lacking.contains(&path)
    }

    /// Notes that the prompt was sent; it will be in the cache after it is computed.
    pub fn note_sent(&self, insertion: InsertedPrompt) {
        let mut state = self.state.lock();
        if state.pending.len() == MAX_PENDING {
            state.pending.remove(0);
        }
        state.pending.push(insertion);
    }

    /// Notes that the prompt's first token came.
    pub fn note_computed(&self, insertion: InsertedPrompt) {
        self.state.lock().pending.retain(|pending| *pending != insertion);
    }

    /// Returns true if the prompt must be cached unless it was evicted. A prompt without an answer may never have been
    /// cached.
    #[must_use]
    pub fn is_computed(&self, insertion: InsertedPrompt) -> bool {
        !self.state.lock().pending.contains(&insertion)
    }

    /// Notes the size of the cache from the engine's metrics.
    pub fn note_kv_tokens(&self, kv_tokens: Option<u64>) {
        let mut state = self.state.lock();
        state.kv_tokens = kv_tokens.or(state.kv_tokens);
    }

    /// Notes an answer: `n_bytes` of prompt are `n_tokens`, and `cached_tokens` of them were cached, if it says so.
    /// Returns the number of cached tokens; `None` if it is unknown. Older engines leave out a zero.
    pub fn note_answer(&self, n_bytes: u64, n_tokens: u32, cached_tokens: Option<u32>) -> Option<u32> {
        let mut state = self.state.lock();
        if n_bytes > 0 && n_tokens > 0 {
            #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
            let own = (n_bytes as f64, f64::from(n_tokens));
            let (bytes, tokens) = state.lengths.unwrap_or_default();
            state.lengths = Some((KEPT * bytes + own.0, KEPT * tokens + own.1));
        }
        state.tells_cached |= cached_tokens.is_some();
        cached_tokens.or(state.tells_cached.then_some(0))
    }

    /// Bytes of text that the endpoint's cache has room for, if that is known and has changed since the last call.
    #[must_use]
    pub fn new_bound(&self, default_bytes_per_token: f64) -> Option<u64> {
        let mut state = self.state.lock();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number; caches are far below 2^53 bytes, and a cast saturates"
        )]
        let (bound, is_same) = {
            let bytes_per_token = state.bytes_per_token().unwrap_or(default_bytes_per_token);
            let bound = state.kv_tokens? as f64 * bytes_per_token;
            let is_near = |set: u64| (bound - set as f64).abs() <= BOUND_TOLERANCE * bound;
            (bound as u64, state.bound.is_some_and(is_near))
        };
        (!is_same).then(|| *state.bound.insert(bound))
    }
}

impl State {
    fn bytes_per_token(&self) -> Option<f64> {
        self.lengths.map(|(bytes, tokens)| bytes / tokens)
    }
}
