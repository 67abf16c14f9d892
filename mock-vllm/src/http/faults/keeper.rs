//! Faults that do not belong to a request: KV blocks that are taken, and metrics that freeze at their time.

use super::super::Pod;
use std::sync::Arc;
use vllm_engine::engine::Engine;

/// Keeps the engine's reserved blocks and the frozen pages as the rules ask, as long as the pod is served.
pub async fn keep(pod: Arc<Pod>) {
    let mut changed = pod.faults.watch();
    let mut reserved_share = 0.0;
    loop {
        let share = pod.faults.kv_pressure();
        #[expect(clippy::float_cmp, reason = "it is the same number or another rule's")]
        if share != reserved_share {
            if pod.driver.with_engine(move |engine| reserve(engine, share)).await.is_err() {
                return;
            }
            reserved_share = share;
        }
        pod.freeze_pages();
        pod.faults.change(&mut changed).await;
    }
}

fn reserve(engine: &mut Engine, share: f64) {
    let n_usable = f64::from(engine.block_pool().n_usable());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the whole of a u32"
    )]
    engine.set_reserved_blocks((share * n_usable).round() as u32);
}
