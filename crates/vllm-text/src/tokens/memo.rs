//! Converts prompts to ids, with a memory. Added tokens cut a text into pieces whose ids do not depend on each other,
//! so that for a conversation with one more turn only that turn is tokenized.

use super::Tokenizer;
use super::added_tokens::Segment;
use lru::LruCache;
use parking_lot::Mutex;
use rapidhash::fast::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Default limit of remembered texts and ids, in bytes: some hundred conversations of 32,000 tokens.
pub const DEFAULT_LIMIT: usize = 64 << 20;
/// Bytes of an entry beside its text and ids: pointers, lengths, counts, a place in the table.
const ENTRY_OVERHEAD: usize = 128;

/// Encoder that all requests share.
#[derive(Debug)]
pub struct PromptEncoder {
    tokenizer: Tokenizer,
    memo: Mutex<Memo>,
    n_encoded_bytes: AtomicU64,
}

/// Remembered texts; the least recently used are dropped first.
#[derive(Debug)]
struct Memo {
    ids: LruCache<Box<str>, Arc<[u32]>, RandomState>,
    n_bytes: usize,
    limit: usize,
}

/// A piece of a prompt.
#[derive(Debug)]
enum Piece<'a> {
    Added(u32),
    Known(Arc<[u32]>),
    New(&'a str),
}

// === impl PromptEncoder ===

impl PromptEncoder {
    /// Makes an encoder. `limit` is that of remembered texts and ids, in bytes; 0 remembers nothing.
    pub fn new(tokenizer: Tokenizer, limit: usize) -> Self {
        let memo = Memo { ids: LruCache::unbounded_with_hasher(RandomState::default()), n_bytes: 0, limit };
        Self { tokenizer, memo: Mutex::new(memo), n_encoded_bytes: AtomicU64::new(0) }
    }

    /// Returns the same ids as [`Tokenizer::encode`].
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let pieces = self.look_up(text);
        let mut ids = Vec::new();
        let mut learned = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Added(id) => ids.push(id),
                Piece::Known(known) => ids.extend_from_slice(&known),
                Piece::New(text) => {
                    let start = ids.len();
                    self.tokenizer.encode_plain(text, &mut ids);
                    self.n_encoded_bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
                    learned.push((text, start..ids.len()));
                }
            }
        }
        let mut memo = self.memo.lock();
        for (text, range) in learned {
            memo.insert(text, &ids[range]);
        }
        drop(memo);
        ids
    }

    /// Returns the same ids as [`Tokenizer::encode_with_special_tokens`]; remembers nothing if these depend on the
    /// whole text.
    pub fn encode_with_special_tokens(&self, text: &str) -> Vec<u32> {
        if self.tokenizer.adds_special_tokens() {
            self.tokenizer.encode_with_special_tokens(text)
        } else {
            self.encode(text)
        }
    }

    /// Returns the bytes of text that had to be tokenized since the start, because they were not remembered.
    pub fn n_encoded_bytes(&self) -> u64 {
        self.n_encoded_bytes.load(Ordering::Relaxed)
    }

    /// Returns the bytes that are remembered now, at most the limit.
    pub fn n_remembered_bytes(&self) -> usize {
        self.memo.lock().n_bytes
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    fn look_up<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut memo = self.memo.lock();
        let mut pieces = Vec::new();
        self.tokenizer.split(text, |segment| {
            pieces.push(match segment {
                Segment::Added(id) => Piece::Added(id),
                Segment::Plain(text) => memo.ids.get(text).cloned().map_or(Piece::New(text), Piece::Known),
            });
        });
        pieces
    }
}

// === impl Memo ===

impl Memo {
    fn insert(&mut self, text: &str, ids: &[u32]) {
        let n_new = cost(text, ids);
        // One text that takes most of the memory would drop all conversations.
        if n_new > self.limit / 4 {
            return;
        }
        if let Some((text, ids)) = self.ids.push(text.into(), ids.into()) {
            self.n_bytes -= cost(&text, &ids);
        }
        self.n_bytes += n_new;
        while self.n_bytes > self.limit {
            let (text, ids) = self.ids.pop_lru().expect("bytes are of entries");
            self.n_bytes -= cost(&text, &ids);
        }
    }
}

fn cost(text: &str, ids: &[u32]) -> usize {
    text.len() + size_of_val(ids) + ENTRY_OVERHEAD
}
