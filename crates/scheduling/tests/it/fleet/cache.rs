//! A pod's prefix cache, like vLLM's: blocks of 16 tokens, evicted least recently freed first, the end of a text before
//! its start. Texts are numbers; the cached part of a text is always a start of it.

use std::collections::{BTreeMap, HashMap};

/// Tokens in a block (vLLM's `block_size`).
pub(crate) const BLOCK: usize = 16;

/// A text; requests may share a start of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Text {
    Shared(usize),
    /// A text of a single request, given by its number.
    Own(usize),
    /// The text after the shared one in a request: its own words and its output.
    Tail(usize),
}

#[derive(Debug, Default)]
struct Entry {
    /// Number of cached blocks, from the text's start.
    n_cached: usize,
    /// Number of running requests that use it.
    n_users: usize,
    /// Time when it was last freed; the key in `free` while no request uses it.
    freed: u64,
}

#[derive(Debug)]
pub(crate) struct Cache {
    /// Blocks that are empty.
    n_empty: usize,
    /// Blocks of texts that no request uses.
    n_free: usize,
    n_blocks: usize,
    entries: HashMap<Text, Entry>,
    free: BTreeMap<u64, Text>,
    clock: u64,
}

/// The blocks that a running request holds.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) text: Text,
    /// Number of tokens found in the cache.
    pub(crate) n_hit: usize,
    /// Number of its own blocks: those that were not in the cache, or are not filled yet.
    n_private: usize,
}

impl Cache {
    pub(crate) fn new(n_tokens: usize) -> Self {
        let n_blocks = n_tokens / BLOCK;
        let (entries, free) = (HashMap::new(), BTreeMap::new());
        Self { n_empty: n_blocks, n_free: 0, n_blocks, entries, free, clock: 0 }
    }

    /// Share of blocks that running requests hold.
    pub(crate) fn usage(&self) -> f64 {
        1.0 - (self.n_empty + self.n_free) as f64 / self.n_blocks as f64
    }

    /// Reserves blocks for a prompt of `n_prompt` tokens, of which the first `n_text` are from `text`, and for
    /// `n_output` more. `None` while running requests leave too few.
    pub(crate) fn admit(
        &mut self,
        text: Text,
        n_text: usize,
        n_prompt: usize,
        n_output: usize,
    ) -> Option<Grant> {
        let n_cached = self.entries.get(&text).map_or(0, |entry| entry.n_cached);
        // At least the last token is always computed.
        let n_hit = n_cached.min(n_text / BLOCK).min((n_prompt - 1) / BLOCK);
        let n_private = (n_prompt + n_output).div_ceil(BLOCK) - n_hit;
        let entry = self.entries.entry(text).or_default();
        let n_own_free = if entry.n_users == 0 { entry.n_cached } else { 0 };
        if n_private > self.n_empty + self.n_free - n_own_free {
            return None;
        }
        if entry.n_users == 0 {
            self.free.remove(&entry.freed);
            self.n_free -= entry.n_cached;
        }
        entry.n_users += 1;
        while self.n_empty < n_private {
            self.evict(n_private - self.n_empty);
        }
        self.n_empty -= n_private;
        Some(Grant { text, n_hit: n_hit * BLOCK, n_private })
    }

    /// Notes that the first `n_tokens` of the request's text are computed.
    pub(crate) fn fill(&mut self, grant: &mut Grant, n_tokens: usize) {
        let entry = self.entries.get_mut(&grant.text).expect("a running request uses its text");
        let n_new = (n_tokens / BLOCK).saturating_sub(entry.n_cached).min(grant.n_private);
        entry.n_cached += n_new;
        grant.n_private -= n_new;
    }

    /// Frees what `request` held: first what follows the shared text, then that text if no other request uses it.
    pub(crate) fn finish(&mut self, grant: Grant, request: usize) {
        let Grant { text, n_hit: _, n_private } = grant;
        self.clock += 2;
        let own = Entry { n_cached: n_private, n_users: 0, freed: self.clock - 1 };
        self.free.insert(own.freed, Text::Tail(request));
        self.n_free += n_private;
        self.entries.insert(Text::Tail(request), own);
        let entry = self.entries.get_mut(&text).expect("a running request uses its text");
        entry.n_users -= 1;
        if entry.n_users == 0 {
            entry.freed = self.clock;
            self.free.insert(self.clock, text);
            self.n_free += entry.n_cached;
        }
    }

    /// Takes up to `n` blocks from the end of the text that was freed first.
    fn evict(&mut self, n: usize) {
        let (&freed, &text) = self.free.first_key_value().expect("the blocks were counted");
        let entry = self.entries.get_mut(&text).expect("free texts are cached");
        let n_taken = n.min(entry.n_cached);
        entry.n_cached -= n_taken;
        self.n_free -= n_taken;
        self.n_empty += n_taken;
        if entry.n_cached == 0 {
            self.free.remove(&freed);
            self.entries.remove(&text);
        }
    }
}

/// Two texts of three blocks, and one block after each, fill a cache of eight: the text freed first loses its end
/// first.
#[test]
fn the_coldest_text_loses_its_end() {
    let mut cache = Cache::new(8 * BLOCK);
    let mut ask = |text, n_blocks, n_hit| {
        let n_tokens = n_blocks * BLOCK;
        let mut grant = cache.admit(Text::Shared(text), n_tokens, n_tokens + 1, 0).expect("there is room");
        assert_eq!(grant.n_hit, n_hit * BLOCK, "text {text}");
        cache.fill(&mut grant, n_tokens);
        cache.finish(grant, text);
    };
    ask(0, 3, 0);
    ask(1, 3, 0);
    ask(0, 3, 3);
    // It needs three blocks: the one after the text that was not used since, and two of that text.
    ask(2, 2, 0);
    ask(1, 3, 1);
}
