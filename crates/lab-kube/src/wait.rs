//! Waiting for a cluster: each wait says what is missing, and one that takes too long shows the culprit's last events and
//! log lines.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Event, Pod};
use lab::cluster::{Progress, ProgressEvent};
use load::clock::Stopwatch;
use tokio::time::sleep;

use crate::api::{Access, DEFAULT, ENVOY_GATEWAY};

/// Time between two looks.
const POLL: Duration = Duration::from_millis(200);
/// Pods, events and log lines that an error shows.
const MAX_PODS: usize = 3;
const MAX_EVENTS: usize = 5;
const MAX_LINES: i64 = 10;

/// Result of a look at the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look<T> {
    Done(T),
    /// Something is still missing, such as `deployment default/qwen: 3 of 5 pods ready`.
    Missing(String),
}

/// Looks until everything is there, and shows what is missing whenever that changes.
///
/// # Errors
/// When `limit` has passed; the error says what is missing, and shows the pods that are not ready. Or when a look fails
/// at the end: while the API server is away, looks fail for a while.
pub async fn until<T>(
    access: &Access,
    (what, limit): (&str, Duration),
    progress: &Progress,
    look: impl AsyncFn() -> Result<Look<T>>,
) -> Result<T> {
    let waiting = Stopwatch::start();
    let mut shown = String::new();
    loop {
        let seen = look().await;
        let missing = match seen {
            Ok(Look::Done(value)) => return Ok(value),
            Ok(Look::Missing(missing)) => missing,
            Err(error) if waiting.elapsed() > limit => return Err(error).with_context(|| what.to_owned()),
            Err(error) => format!("{error:#}"),
        };
        if waiting.elapsed() > limit {
            bail!("{what}: not there after {limit:?}: {missing}\n{}", culprits(access).await);
        }
        if missing != shown {
            progress(ProgressEvent::Step(format!("{what}: {missing}")));
            shown = missing;
        }
        sleep(POLL).await;
    }
}

/// Describes the pods that are not ready, with their last events and log lines.
async fn culprits(access: &Access) -> String {
    let mut text = String::new();
    for namespace in [DEFAULT, ENVOY_GATEWAY] {
        let pods: Vec<Pod> = access.list(namespace, "").await.unwrap_or_default();
        for pod in pods.iter().filter(|pod| !is_ready(pod)).take(MAX_PODS) {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            let _ = writeln!(text, "pod {namespace}/{name}: {}", state(pod));
            for event in events(access, namespace, name).await {
                let _ = writeln!(text, "  event: {event}");
            }
            let containers = pod.status.iter().flat_map(|status| &status.container_statuses).flatten();
            for container in containers.filter(|container| !container.ready) {
                let tail = access.log_tail(namespace, (name, &container.name), MAX_LINES).await;
                for line in tail.lines() {
                    let _ = writeln!(text, "  log of {}: {line}", container.name);
                }
            }
        }
    }
    text
}

async fn events(access: &Access, namespace: &str, pod: &str) -> Vec<String> {
    let all: Vec<Event> = access.list(namespace, "").await.unwrap_or_default();
    let mut own: Vec<&Event> =
        all.iter().filter(|event| event.involved_object.name.as_deref() == Some(pod)).collect();
    own.sort_by_key(|event| {
        event.metadata.resource_version.as_ref().and_then(|text| text.parse::<u64>().ok())
    });
    let last = own.iter().skip(own.len().saturating_sub(MAX_EVENTS));
    last.map(|event| {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        format!("{}: {}", text(&event.reason), text(&event.message))
    })
    .collect()
}

/// True if the pod's condition says that it is ready, or it has ended well.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let mut conditions = status.conditions.iter().flatten();
    status.phase.as_deref() == Some("Succeeded")
        || conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The pod's phase, and why its containers wait.
#[must_use]
pub fn state(pod: &Pod) -> String {
    let Some(status) = &pod.status else { return "no status".to_owned() };
    if pod.metadata.deletion_timestamp.is_some() {
        return "ending".to_owned();
    }
    if is_ready(pod) {
        return "ready".to_owned();
    }
    let containers = status.container_statuses.iter().flatten();
    let reasons: Vec<String> = containers
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.clone())
        .chain(status.conditions.iter().flatten().filter_map(|condition| {
            (condition.type_ == "PodScheduled" && condition.status == "False")
                .then(|| condition.message.clone())?
        }))
        .collect();
    format!("{} {}", status.phase.as_deref().unwrap_or("not ready"), reasons.join(", ")).trim_end().to_owned()
}
