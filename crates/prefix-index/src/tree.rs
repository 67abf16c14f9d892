//! A radix tree over chains: a node is a run of blocks with the same holders.
//!
//! ```text
//! A holds [1 2 3 4 5 6], B holds [1 2 3 7]:      {1 2 3: A B} ─┬─ {4 5 6: A}
//!                                                              └─ {7: B}
//! ```
//! An endpoint that holds a block holds all blocks before it, so the holders of a node are among those of its parent. A
//! hash identifies its whole prefix, so one table finds any child by its first hash. An endpoint forgets leaves first:
//! for each endpoint, a node is always hotter than the nodes below it. A node may be missing in an endpoint's order of
//! use; then the endpoint holds exactly one of its children, and when that child is forgotten, the node takes its place
//! as the coldest.

mod eviction;

use hashbrown::HashTable;

use crate::{
    chain::{BlockHash, Chain},
    endpoint::EndpointId,
    holders::Holders,
    matches::Matches,
    node_id::NodeId,
    recency::Recency,
    schedule::bytes_in_blocks,
    stats::Stats,
    usage::{Insertion, Use},
};

#[derive(Debug)]
struct Node {
    /// Hashes of the run. Empty only if no node uses the position.
    hashes: Box<[BlockHash]>,
    /// Number of blocks before it on its path, which determines how many bytes its blocks contain.
    depth: u32,
    parent: Option<NodeId>,
    n_children: u32,
    holders: Holders,
}

/// The blocks that the endpoint in one slot holds.
#[derive(Debug)]
struct Holding {
    generation: u32,
    /// False after the endpoint was removed, until a later one takes the slot.
    live: bool,
    n_blocks: u64,
    /// Bytes of text in its blocks.
    n_bytes: u64,
    /// Upper bound of `n_bytes`.
    max_bytes: u64,
    /// The current insertion, or the last one.
    now: Use,
    recency: Recency,
}

#[derive(Debug)]
pub(crate) struct Tree {
    /// Most blocks of each slot.
    capacity: u64,
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    /// Every node, by its first hash.
    by_first_hash: HashTable<NodeId>,
    /// Holdings by slot.
    holdings: Vec<Holding>,
    stats: Stats,
    /// The path of the current insertion, kept so that its memory is reused.
    path: Vec<NodeId>,
}

// === impl Node ===

impl Node {
    /// Content of a position that no node uses.
    fn free() -> Self {
        Self { hashes: Box::default(), depth: 0, parent: None, n_children: 0, holders: Holders::none() }
    }

    /// Bytes of text in its last `n` blocks; `n` is at most the number of its blocks.
    fn tail_bytes(&self, n: usize) -> u64 {
        let end = self.depth + n_blocks(self.hashes.len());
        bytes_in_blocks(end) - bytes_in_blocks(end - n_blocks(n))
    }

    /// Number of its last blocks that have together at least `n_blocks` blocks and `n_bytes` bytes; all if there are
    /// too few.
    fn n_tail_blocks(&self, n_blocks: u64, n_bytes: u64) -> usize {
        let len = self.hashes.len();
        let least = usize::try_from(n_blocks).map_or(len, |n| n.min(len));
        (least..len).find(|&n| self.tail_bytes(n) >= n_bytes).unwrap_or(len)
    }
}

// === impl Holding ===

impl Holding {
    fn new(generation: u32) -> Self {
        let recency = Recency::default();
        let now = Use::default();
        Self { generation, live: true, n_blocks: 0, n_bytes: 0, max_bytes: u64::MAX, now, recency }
    }
}

// === impl Tree ===

impl Tree {
    pub(crate) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            nodes: Vec::new(),
            free: Vec::new(),
            by_first_hash: HashTable::new(),
            holdings: Vec::new(),
            stats: Stats::default(),
            path: Vec::new(),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        self.stats
    }

    /// Blocks and bytes of text that `endpoint` holds.
    pub(crate) fn held(&self, endpoint: EndpointId) -> (u64, u64) {
        match self.holdings.get(endpoint.slot() as usize) {
            Some(holding) if holding.generation == endpoint.generation() => {
                (holding.n_blocks, holding.n_bytes)
            }
            Some(_) | None => (0, 0),
        }
    }

    /// Bounds the bytes that `endpoint` holds from now on, and forgets its coldest blocks above the bound.
    pub(crate) fn limit_bytes(&mut self, endpoint: EndpointId, max_bytes: u64) {
        if self.admit(endpoint) {
            self.holdings[endpoint.slot() as usize].max_bytes = max_bytes;
            self.evict(endpoint.slot());
        }
    }

    /// Reports each endpoint once, at the point where it leaves the chain. Endpoints that hold nothing of it cost no
    /// time.
    pub(crate) fn longest_match(&self, chain: &Chain, matches: &mut Matches) {
        matches.reset(self.holdings.len());
        let hashes = chain.hashes();
        let mut depth = 0;
        let mut parent: Option<NodeId> = None;
        while let Some(node_id) = self.child(parent, hashes.get(depth)) {
            let node = self.node(node_id);
            if let Some(parent) = parent {
                let leaving = &self.node(parent).holders;
                leaving.for_each_not_in(&node.holders, |slot| self.report(matches, slot, depth));
            }
            let common = common_len(&node.hashes, &hashes[depth..]);
            depth += common;
            parent = Some(node_id);
            if common < node.hashes.len() {
                break;
            }
        }
        if let Some(last) = parent {
            self.node(last).holders.iter().for_each(|slot| self.report(matches, slot, depth));
        }
    }

    /// Notes that `endpoint` holds `chain`, as its hottest, and forgets its coldest blocks above the capacity.
    pub(crate) fn insert(&mut self, chain: &Chain, endpoint: EndpointId) -> Option<Insertion> {
        if !self.admit(endpoint) {
            self.stats.n_stale_insertions += 1;
            return None;
        }
        let slot = endpoint.slot();
        let mut path = std::mem::take(&mut self.path);
        let previous = self.hold_path(chain.hashes(), slot, &mut path);
        self.merge_path(slot, &mut path);
        // From the end, so that each node becomes hotter than those below it.
        let Holding { recency, now, .. } = &mut self.holdings[slot as usize];
        *now = now.next();
        let at = *now;
        path.iter().rev().for_each(|node| recency.touch(*node, at));
        path.clear();
        self.path = path;
        self.evict(slot);
        Some(Insertion { at, previous })
    }

    /// Forgets up to `n_nodes` nodes that `endpoint` used at `last` or before. Returns the number of their blocks, and
    /// true if no such node is left.
    pub(crate) fn forget_until(&mut self, endpoint: EndpointId, last: Use, n_nodes: usize) -> (u64, bool) {
        let slot = endpoint.slot();
        let n_held = self.stats.n_held_blocks;
        for _ in 0..n_nodes {
            let holding = self.holdings.get(slot as usize);
            let holding = holding.filter(|holding| holding.generation == endpoint.generation());
            match holding.and_then(|holding| holding.recency.coldest()) {
                Some((_, used)) if !used.is_after(last) => self.forget_coldest(slot),
                Some(_) | None => return (n_held - self.stats.n_held_blocks, true),
            };
        }
        (n_held - self.stats.n_held_blocks, false)
    }

    /// Forgets up to `n_nodes` nodes of `endpoint`; returns true if none is left.
    pub(crate) fn remove_endpoint(&mut self, endpoint: EndpointId, n_nodes: usize) -> bool {
        let slot = endpoint.slot();
        self.make_slot(slot);
        let holding = &mut self.holdings[slot as usize];
        if holding.generation > endpoint.generation() {
            return true;
        }
        holding.generation = endpoint.generation();
        holding.live = false;
        for _ in 0..n_nodes {
            if !self.forget_coldest(slot) {
                return true;
            }
        }
        false
    }

    /// Makes `endpoint` the owner of its slot. Returns false if it was removed, or a later endpoint owns the slot.
    fn admit(&mut self, endpoint: EndpointId) -> bool {
        self.make_slot(endpoint.slot());
        let holding = &self.holdings[endpoint.slot() as usize];
        match endpoint.generation().cmp(&holding.generation) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => holding.live,
            std::cmp::Ordering::Greater => {
                while self.forget_coldest(endpoint.slot()) {}
                self.holdings[endpoint.slot() as usize] = Holding::new(endpoint.generation());
                true
            }
        }
    }

    fn make_slot(&mut self, slot: u32) {
        while self.holdings.len() <= slot as usize {
            self.holdings.push(Holding::new(0));
        }
    }

    /// Adds `slot` to every node of the chain, creates missing nodes, and lists the nodes from the root. Returns the
    /// slot's last use of the deepest node that it already held.
    fn hold_path(&mut self, hashes: &[BlockHash], slot: u32, path: &mut Vec<NodeId>) -> Option<Use> {
        let mut previous = None;
        let mut depth = 0;
        let mut parent = None;
        while let Some(mut node_id) = self.child(parent, hashes.get(depth)) {
            let common = common_len(&self.node(node_id).hashes, &hashes[depth..]);
            let ends_inside = common < self.node(node_id).hashes.len();
            let holds_it_already = self.node(node_id).holders.contains(slot);
            if holds_it_already {
                previous = self.holdings[slot as usize].recency.used(node_id);
            }
            // If the chain ends inside a node that the slot already holds, the node need not be split there.
            if ends_inside && !(holds_it_already && depth + common == hashes.len()) {
                node_id = self.split(node_id, common);
            }
            self.hold(node_id, slot);
            path.push(node_id);
            depth += common;
            parent = Some(node_id);
        }
        let rest = &hashes[depth..];
        match parent {
            _ if rest.is_empty() => {}
            Some(leaf) if self.can_extend(leaf, slot) => self.extend(leaf, rest, slot),
            Some(_) | None => {
                let leaf = self.add_node(rest, depth, parent);
                self.hold(leaf, slot);
                path.push(leaf);
            }
        }
        previous
    }

    /// Returns true if `leaf` may grow for the next turn of a conversation: it has no child, and `slot` is its only
    /// holder.
    fn can_extend(&self, leaf: NodeId, slot: u32) -> bool {
        let leaf = self.node(leaf);
        leaf.n_children == 0 && leaf.holders.is_only(slot)
    }

    fn extend(&mut self, leaf: NodeId, rest: &[BlockHash], slot: u32) {
        let node = self.node_mut(leaf);
        node.hashes = [&node.hashes, rest].concat().into_boxed_slice();
        let n_bytes = node.tail_bytes(rest.len());
        self.stats.n_blocks += rest.len() as u64;
        self.count_held(slot, rest.len(), n_bytes);
    }

    /// Joins neighbours on the path that other endpoints once divided and that only `slot` holds now.
    fn merge_path(&mut self, slot: u32, path: &mut Vec<NodeId>) {
        for idx in (1..path.len()).rev() {
            let (upper, lower) = (path[idx - 1], path[idx]);
            let upper_node = self.node(upper);
            if upper_node.n_children == 1 && upper_node.holders.is_only(slot) {
                self.holdings[slot as usize].recency.remove(upper);
                self.merge(upper, lower);
                path.remove(idx - 1);
            }
        }
    }

    fn hold(&mut self, node_id: NodeId, slot: u32) {
        let node = self.node_mut(node_id);
        if node.holders.insert(slot) {
            let len = node.hashes.len();
            let n_bytes = node.tail_bytes(len);
            self.count_held(slot, len, n_bytes);
        }
    }

    fn count_held(&mut self, slot: u32, n_blocks: usize, n_bytes: u64) {
        let holding = &mut self.holdings[slot as usize];
        if holding.n_blocks == 0 {
            self.stats.n_endpoints += 1;
        }
        holding.n_blocks += n_blocks as u64;
        holding.n_bytes += n_bytes;
        self.stats.n_held_blocks += n_blocks as u64;
    }

    /// Splits a node before its hash number `at`; returns the new node, which is the upper part. The lower part keeps
    /// its children and its place in the orders of use.
    fn split(&mut self, lower: NodeId, at: usize) -> NodeId {
        self.unlist(lower);
        let node = self.node_mut(lower);
        let (upper_hashes, lower_hashes) = node.hashes.split_at(at);
        let (upper_hashes, lower_hashes): (Box<[_]>, Box<[_]>) = (upper_hashes.into(), lower_hashes.into());
        let upper = Node {
            hashes: upper_hashes,
            depth: node.depth,
            parent: node.parent,
            n_children: 1,
            holders: node.holders.clone(),
        };
        node.hashes = lower_hashes;
        node.depth += n_blocks(at);
        let upper = self.place(upper);
        self.node_mut(lower).parent = Some(upper);
        self.list(upper);
        self.list(lower);
        upper
    }

    /// Undoes a split: `lower`, the only child of `upper`, takes its place and its blocks.
    fn merge(&mut self, upper: NodeId, lower: NodeId) {
        self.unlist(upper);
        self.unlist(lower);
        let Node { hashes, depth, parent, n_children: _, holders: _ } =
            std::mem::replace(self.node_mut(upper), Node::free());
        let node = self.node_mut(lower);
        node.depth = depth;
        node.hashes = [hashes, std::mem::take(&mut node.hashes)].concat().into_boxed_slice();
        node.parent = parent;
        self.list(lower);
        self.stats.n_nodes -= 1;
        self.free.push(upper);
    }

    fn add_node(&mut self, hashes: &[BlockHash], depth: usize, parent: Option<NodeId>) -> NodeId {
        let depth = n_blocks(depth);
        let node = self.place(Node {
            hashes: hashes.into(),
            depth,
            parent,
            n_children: 0,
            holders: Holders::none(),
        });
        self.list(node);
        if let Some(parent) = parent {
            self.node_mut(parent).n_children += 1;
        }
        self.stats.n_blocks += hashes.len() as u64;
        node
    }

    fn place(&mut self, node: Node) -> NodeId {
        self.stats.n_nodes += 1;
        match self.free.pop() {
            Some(free) => {
                *self.node_mut(free) = node;
                free
            }
            None => {
                self.nodes.push(node);
                NodeId(u32::try_from(self.nodes.len() - 1).expect("the capacity keeps nodes below 2^32"))
            }
        }
    }

    fn list(&mut self, node: NodeId) {
        let Self { by_first_hash, nodes, .. } = self;
        let first = |node: &NodeId| nodes[node.0 as usize].hashes[0].get();
        by_first_hash.insert_unique(first(&node), node, first);
    }

    fn unlist(&mut self, node_id: NodeId) {
        let first = self.node(node_id).hashes[0];
        let entry = self.by_first_hash.find_entry(first.get(), |node| *node == node_id);
        entry.expect("every node is in the table").remove();
    }

    fn free_node(&mut self, node_id: NodeId) {
        self.unlist(node_id);
        let Node { hashes, depth: _, parent, n_children, holders: _ } =
            std::mem::replace(self.node_mut(node_id), Node::free());
        debug_assert_eq!(n_children, 0, "holders of a child hold its parent");
        if let Some(parent) = parent {
            self.node_mut(parent).n_children -= 1;
        }
        self.stats.n_blocks -= hashes.len() as u64;
        self.stats.n_nodes -= 1;
        self.free.push(node_id);
    }

    /// The node under `parent` that starts with `first`. The parent is compared too, so that colliding hashes do no
    /// harm.
    fn child(&self, parent: Option<NodeId>, first: Option<&BlockHash>) -> Option<NodeId> {
        let first = first?;
        let is_it = |node: &NodeId| {
            let node = self.node(*node);
            node.hashes[0] == *first && node.parent == parent
        };
        self.by_first_hash.find(first.get(), is_it).copied()
    }

    fn report(&self, matches: &mut Matches, slot: u32, n_blocks: usize) {
        let endpoint = EndpointId::new(slot, self.holdings[slot as usize].generation);
        matches.add(endpoint, self::n_blocks(n_blocks));
    }

    fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.0 as usize]
    }

    fn node_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.0 as usize]
    }
}

fn n_blocks(n: usize) -> u32 {
    u32::try_from(n).expect("chains are counted by u32")
}

fn common_len(a: &[BlockHash], b: &[BlockHash]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
