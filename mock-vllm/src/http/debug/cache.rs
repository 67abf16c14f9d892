//! The block pool as JSON: which blocks are held or cached, which requests hold them, and which are reused next.

use super::super::Pod;
use super::super::error::ApiError;
use crate::driver::inspect::EngineView;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use vllm_engine::block_pool::{BlockIdx, BlockPool};
use vllm_engine::engine::EngineStats;
use vllm_engine::engine::inspect::{LiveState, LiveView};

/// Most entries of the lists of blocks, free blocks and requests, unless `?limit=` says otherwise.
const DEFAULT_LIMIT: usize = 1_000;

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CacheQuery {
    /// Most entries of each list; the rest is counted.
    limit: Option<usize>,
    /// `?summary=true`: show numbers only.
    #[serde(default)]
    summary: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct CacheView {
    pod: String,
    block_size: u32,
    enable_prefix_caching: bool,
    pool: PoolCounts,
    counters: Counters,
    requests: RequestCounts,
    #[serde(flatten)]
    lists: Option<Lists>,
}

/// Counts of blocks, without the null block.
#[derive(Debug, Serialize)]
struct PoolCounts {
    usable: u32,
    /// Blocks that live requests hold.
    held: u32,
    /// Blocks that no request holds, cached ones included.
    free: u32,
    /// Blocks with a hash, so that a look-up may find them.
    cached: u32,
    cached_and_free: u32,
    /// Different contents of the cached blocks. Several blocks may have the same content, if requests computed it at
    /// the same time or without a look-up.
    cached_contents: u32,
    /// Share of the blocks in use, like `vllm:kv_cache_usage_perc`.
    usage: f64,
}

/// Tokens and events since the start.
#[derive(Debug, Serialize)]
struct Counters {
    prefix_cache_queries: u64,
    prefix_cache_hits: u64,
    preempted_queries: u64,
    preempted_hits: u64,
    preemptions: u64,
}

#[derive(Debug, Serialize)]
struct RequestCounts {
    running: usize,
    /// Waiting requests, the deferred ones included.
    waiting: usize,
    deferred: usize,
}

#[derive(Debug, Serialize)]
struct Lists {
    /// Live requests in order of arrival.
    live: Vec<Request>,
    /// Blocks that are held or cached, in order of index.
    blocks: Vec<Block>,
    /// Free blocks; the one that is reused next comes first.
    free_queue: Vec<BlockIdx>,
    left_off: LeftOff,
}

#[derive(Debug, Serialize)]
struct LeftOff {
    live: usize,
    blocks: usize,
    free_queue: usize,
}

#[derive(Debug, Serialize)]
struct Request {
    /// Id of the request; null if its client has gone while a step computes it.
    request_id: Option<String>,
    state: &'static str,
    prompt_tokens: usize,
    output_tokens: u32,
    computed_tokens: u32,
    /// Blocks in order of position.
    blocks: Vec<BlockIdx>,
}

#[derive(Debug, Serialize)]
struct Block {
    block: BlockIdx,
    /// Hash of the block; null if the block is not full or not in the cache.
    hash: Option<String>,
    /// Hash by which KV events name the block.
    event_hash: Option<u64>,
    /// Tokens whose KV it holds.
    tokens: u32,
    ref_count: u32,
    /// Ids of the requests that hold it, as in the request log.
    held_by: Vec<String>,
}

/// Requests that hold a block.
#[derive(Debug, Default)]
struct Holders<'a> {
    request_ids: Vec<&'a str>,
    n_tokens: u32,
}

/// Shows the block pool.
///
/// # Errors
/// Fails if the engine is dead.
pub(super) async fn show(pod: &Pod, query: CacheQuery) -> Result<CacheView, ApiError> {
    let pod_name = pod.config.pod_name.clone();
    let look = move |view: EngineView<'_>| CacheView::new(pod_name, view, query);
    pod.driver.inspect(look).await.map_err(|_dead| ApiError::engine_dead())
}

// === impl CacheView ===

impl CacheView {
    fn new(pod: String, view: EngineView<'_>, query: CacheQuery) -> Self {
        let CacheQuery { limit, summary } = query;
        let engine = view.engine;
        let EngineStats {
            running,
            waiting,
            deferred,
            free_blocks: _,
            kv_usage,
            prefix_cache_queries,
            prefix_cache_hits,
            preempted_queries,
            preempted_hits,
            preemptions,
        } = engine.stats();
        Self {
            pod,
            block_size: engine.config().block_size,
            enable_prefix_caching: engine.config().prefix_caching,
            pool: PoolCounts::of(engine.block_pool(), kv_usage),
            counters: Counters {
                prefix_cache_queries,
                prefix_cache_hits,
                preempted_queries,
                preempted_hits,
                preemptions,
            },
            requests: RequestCounts { running, waiting, deferred },
            lists: (!summary).then(|| Lists::new(view, limit.unwrap_or(DEFAULT_LIMIT))),
        }
    }
}

// === impl PoolCounts ===

impl PoolCounts {
    fn of(pool: &BlockPool, usage: f64) -> Self {
        let is_cached = |block: &BlockIdx| pool.hash(*block).is_some();
        let cached = (1..=pool.n_usable()).filter(is_cached).count();
        let cached_and_free = pool.free_order().filter(is_cached).count();
        let is_first =
            |block: &BlockIdx| pool.hash(*block).is_some_and(|hash| pool.find(&hash) == Some(*block));
        let cached_contents = (1..=pool.n_usable()).filter(is_first).count();
        let count = |n: usize| u32::try_from(n).expect("a pool counts its blocks in u32");
        Self {
            usable: pool.n_usable(),
            held: pool.n_usable() - pool.n_free(),
            free: pool.n_free(),
            cached: count(cached),
            cached_and_free: count(cached_and_free),
            cached_contents: count(cached_contents),
            usage,
        }
    }
}

// === impl Lists ===

impl Lists {
    fn new(view: EngineView<'_>, limit: usize) -> Self {
        let pool = view.engine.block_pool();
        let live = view.engine.live_requests();
        let block_size = view.engine.config().block_size;
        let holders = holders(view, &live, block_size);
        let is_known = |block: &BlockIdx| pool.n_refs(*block) > 0 || pool.hash(*block).is_some();
        let known = || (1..=pool.n_usable()).filter(is_known);
        let blocks: Vec<Block> = known()
            .take(limit)
            .map(|block| Block::new(pool, block, holders.get(&block), block_size))
            .collect();
        let free_queue: Vec<BlockIdx> = pool.free_order().take(limit).collect();
        Self {
            left_off: LeftOff {
                live: live.len().saturating_sub(limit),
                blocks: known().count() - blocks.len(),
                free_queue: pool.n_free() as usize - free_queue.len(),
            },
            live: live.iter().take(limit).map(|live| Request::new(view, live)).collect(),
            blocks,
            free_queue,
        }
    }
}

// === impl Request ===

impl Request {
    fn new(view: EngineView<'_>, live: &LiveView<'_>) -> Self {
        let LiveView { id, state, n_prompt_tokens, n_output_tokens, n_computed_tokens, blocks } = *live;
        Self {
            request_id: view.request_id(id).map(str::to_owned),
            state: match state {
                LiveState::Waiting => "waiting",
                LiveState::Running => "running",
            },
            prompt_tokens: n_prompt_tokens,
            output_tokens: n_output_tokens,
            computed_tokens: n_computed_tokens,
            blocks: blocks.to_vec(),
        }
    }
}

// === impl Block ===

impl Block {
    fn new(pool: &BlockPool, block: BlockIdx, holders: Option<&Holders<'_>>, block_size: u32) -> Self {
        let hash = pool.hash(block);
        let n_tokens = holders.map_or(0, |holders| holders.n_tokens);
        Self {
            block,
            hash: hash.map(|hash| hash.to_string()),
            event_hash: hash.map(|hash| hash.event_int()),
            tokens: if hash.is_some() { block_size } else { n_tokens },
            ref_count: pool.n_refs(block),
            held_by: holders
                .map(|holders| holders.request_ids.iter().map(|id| (*id).to_owned()).collect())
                .unwrap_or_default(),
        }
    }
}

fn holders<'a>(
    view: EngineView<'a>,
    live: &[LiveView<'a>],
    block_size: u32,
) -> HashMap<BlockIdx, Holders<'a>> {
    let mut holders: HashMap<BlockIdx, Holders<'a>> = HashMap::new();
    for live in live {
        let mut n_left = live.n_computed_tokens;
        for block in live.blocks {
            let n_tokens = n_left.min(block_size);
            n_left -= n_tokens;
            let holders = holders.entry(*block).or_default();
            holders.request_ids.extend(view.request_id(live.id));
            holders.n_tokens = holders.n_tokens.max(n_tokens);
        }
    }
    holders
}
