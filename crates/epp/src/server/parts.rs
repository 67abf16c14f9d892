//! The tasks that the process needs: none may end before the process does.

use std::collections::HashMap;

use anyhow::anyhow;
use tokio::task::{Id, JoinSet};

/// Tasks with their names. Dropping this aborts them.
#[derive(Debug, Default)]
pub struct Parts {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Parts {
    /// Runs `part` until the process is told to stop.
    pub fn spawn(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let task = self.tasks.spawn(part);
        self.names.insert(task.id(), name);
    }

    /// Waits until a part ends, which none should, and returns an error with its name.
    pub async fn failed(&mut self) -> anyhow::Error {
        match self.tasks.join_next_with_id().await {
            None => std::future::pending().await,
            Some(Ok((id, ()))) => anyhow!("a part of the picker has ended: {}", self.name(id)),
            Some(Err(error)) => {
                let name = self.name(error.id());
                anyhow!(error).context(format!("a part of the picker has died: {name}"))
            }
        }
    }

    /// Waits for all parts after they were told to stop.
    pub async fn ended(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    fn name(&self, id: Id) -> &'static str {
        self.names.get(&id).copied().unwrap_or_default()
    }
}
