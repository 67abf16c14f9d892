//! A view of the engine from outside its thread. It changes nothing, and no step waits for it.

use super::live::Live;
use super::{Command, DriverHandle, EngineDead};
use hashbrown::HashMap;
use tokio::sync::oneshot;
use vllm_engine::engine::Engine;
use vllm_engine::request::RequestId;

/// The engine between two events, with the outside names of its requests.
#[derive(Clone, Copy, Debug)]
pub struct EngineView<'a> {
    pub engine: &'a Engine,
    live: &'a HashMap<RequestId, Live>,
}

pub(super) type Inspection = Box<dyn FnOnce(EngineView<'_>) + Send>;

// === impl EngineView ===

impl<'a> EngineView<'a> {
    pub(super) fn new(engine: &'a Engine, live: &'a HashMap<RequestId, Live>) -> Self {
        Self { engine, live }
    }

    /// Returns the id in the request log; `None` for a request whose client has gone.
    pub fn request_id(&self, id: RequestId) -> Option<&'a str> {
        self.live.get(&id).map(|live| &*live.request_id)
    }
}

impl DriverHandle {
    /// Runs `look` on the engine's own thread and returns its result.
    ///
    /// # Errors
    /// Fails if the driver's thread is gone.
    pub async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(EngineView<'_>) -> T + Send + 'static,
    ) -> Result<T, EngineDead> {
        let (tx, result) = oneshot::channel();
        let look = Box::new(move |view: EngineView<'_>| {
            let _caller_gone = tx.send(look(view));
        });
        self.commands.send(Command::Inspect(look)).map_err(|_closed| EngineDead)?;
        result.await.map_err(|_closed| EngineDead)
    }
}
