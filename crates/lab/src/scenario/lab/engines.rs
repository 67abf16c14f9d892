//! Engines that are not ours: what only mock-vllm has is asked of no other, and their counters stand for its records.

use anyhow::Result;
use tokio::time::sleep;

use crate::cluster::fault::Unavailable;
use crate::engine::Engine;
use crate::evidence::pod::CacheCounters;
use crate::patience::{self, Patience};
use crate::scenario::lab::{LOG_POLL, Lab};

impl Lab<'_> {
    pub fn engine(&self) -> Engine {
        self.cluster.engine()
    }

    /// Says if pods have something that only mock-vllm has.
    pub(in crate::scenario) fn needs_mock(&self, what: &str) -> Result<(), Unavailable> {
        match self.engine() {
            Engine::Mock => Ok(()),
            Engine::Vllm => Err(Unavailable(format!("only mock-vllm has {what}"))),
        }
    }

    /// Returns the use of all pods' caches together.
    pub(in crate::scenario) async fn cache_use(&self) -> Result<CacheCounters> {
        Ok(self.counters().await?.into_values().sum())
    }

    /// Returns the use of all pods' caches since `earlier`, once they have counted a look-up.
    pub(in crate::scenario) async fn cache_use_since(&self, earlier: CacheCounters) -> Result<CacheCounters> {
        let mut patience = Patience::start(patience::LOGS);
        loop {
            let since = self.cache_use().await?.since(earlier);
            if since.queries > 0.0 || !patience.lasts(since.queries.to_bits()) {
                return Ok(since);
            }
            sleep(LOG_POLL).await;
        }
    }
}
