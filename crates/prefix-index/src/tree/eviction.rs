//! Eviction: which blocks an endpoint that holds too many forgets, its coldest leaves first.

use super::Tree;

impl Tree {
    /// Forgets the coldest blocks of the endpoint in `slot`, until it holds no more blocks and bytes than it may.
    pub(super) fn evict(&mut self, slot: u32) {
        loop {
            let holding = &self.holdings[slot as usize];
            let excess_blocks = holding.n_blocks.saturating_sub(self.capacity);
            let excess_bytes = holding.n_bytes.saturating_sub(holding.max_bytes);
            if excess_blocks == 0 && excess_bytes == 0 {
                return;
            }
            let (coldest, _) =
                holding.recency.coldest().expect("an endpoint that holds blocks has a coldest node");
            let node = self.node(coldest);
            let len = node.hashes.len();
            let n_evicted = node.n_tail_blocks(excess_blocks, excess_bytes);
            if n_evicted < len {
                self.split(coldest, len - n_evicted);
            }
            self.stats.n_evicted_blocks += n_evicted as u64;
            self.forget_coldest(slot);
        }
    }

    /// Removes `slot` from its coldest node. Returns false if it holds none.
    pub(super) fn forget_coldest(&mut self, slot: u32) -> bool {
        let holding = &mut self.holdings[slot as usize];
        let Some((node_id, used)) = holding.recency.coldest() else { return false };
        holding.recency.remove(node_id);
        let node = &mut self.nodes[node_id.0 as usize];
        let parent = node.parent;
        node.holders.remove(slot);
        let len = node.hashes.len();
        holding.n_blocks -= len as u64;
        holding.n_bytes -= node.tail_bytes(len);
        if let Some(parent) = parent.filter(|parent| !holding.recency.contains(*parent)) {
            holding.recency.insert_coldest(parent, used);
        }
        self.stats.n_held_blocks -= len as u64;
        if holding.n_blocks == 0 {
            self.stats.n_endpoints -= 1;
        }
        if self.node(node_id).holders.is_empty() {
            self.free_node(node_id);
        }
        true
    }
}
