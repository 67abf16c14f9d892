//! The tasks that the process needs: none may end before the process does.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::anyhow;
use futures::FutureExt as _;
use tokio::task::{Id, JoinSet};
use tokio::time::sleep;

/// Pause before a task that has panicked runs again.
const RESTART: Duration = Duration::from_millis(500);

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

/// Runs the task that `start` makes until it ends. If it panics, tells `died` the message and runs another one after a
/// pause: a fault that one peer causes neither ends the process nor leaves the peer without a task.
pub async fn restart_on_panic<F>(start: impl Fn() -> F, died: impl Fn(&str))
where
    F: Future<Output = ()>,
{
    while let Err(panic) = AssertUnwindSafe(start()).catch_unwind().await {
        died(message(&*panic));
        sleep(RESTART).await;
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}
