//! Streams that run after a soak, and are counted meanwhile: by the pickers, and by the pods that have them.

use anyhow::{Result, bail};
use lab::cluster::Cluster;
use lab::cluster::fault::Fault;
use lab::in_flight::InFlight;
use lab::requests::body;
use load::client::{Client, Reply};
use serde_json::json;
use tokio::task::JoinSet;

const STREAMS: u32 = 16;
/// Tokens of a stream, which lasts longer than any look.
const TOKENS: u32 = 4000;

/// Returns what does not hold: pickers and pods count the same streams while these run, and none after their users hang
/// up. The control is a picker that is replaced meanwhile, and knows of no stream.
///
/// # Errors
/// When the streams end before they are counted, or a page cannot be read.
pub(super) async fn problems(cluster: &Cluster, url: &str) -> Result<Vec<String>> {
    let client = Client::default();
    let mut streams = JoinSet::new();
    for number in 0..STREAMS {
        let (client, url) = (client.clone(), url.to_owned());
        streams.spawn(async move { client.post(&url, &[], body(&request(number))).await });
    }
    let mut problems = tokio::select! {
        Some(ended) = streams.join_next() => bail!("a stream ended before it was counted: {}", verdict(ended?)),
        problems = while_they_run(cluster) => problems?,
    };
    streams.shutdown().await;
    let over = InFlight::with(cluster, 0).await?;
    problems.extend(over.differences());
    if over.n_requests() > 0 {
        problems.push(format!("pods have {} requests after all users hung up", over.n_requests()));
    }
    Ok(problems)
}

async fn while_they_run(cluster: &Cluster) -> Result<Vec<String>> {
    let found = InFlight::with(cluster, STREAMS.into()).await?;
    let mut problems = found.differences();
    if found.n_requests() != u64::from(STREAMS) {
        problems.push(format!("pods have {} of {STREAMS} streams that run", found.n_requests()));
    }
    for picker in &cluster.status().pickers {
        cluster.inflict(&Fault::ReplacePicker(picker.name.clone())).await?;
    }
    if InFlight::read(cluster).await?.differences().is_empty() {
        problems.push("pickers that are new count streams of the old ones: this counts nothing".to_owned());
    }
    Ok(problems)
}

fn request(number: u32) -> serde_json::Value {
    json!({
        "model": "/model/qwen",
        "messages": [{"role": "user", "content": format!("Stream {number} is counted.")}],
        "max_tokens": TOKENS,
        "min_tokens": TOKENS,
        "stream": true,
    })
}

fn verdict(reply: Result<Reply>) -> String {
    reply.map_or_else(|error| format!("{error:#}"), |reply| format!("{} {}", reply.status, reply.text()))
}
