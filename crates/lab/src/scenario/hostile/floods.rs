//! Some clients send HTTP/2 frames by the ten thousand, each of which is legal; the streams of all others must go on.

use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;
use tokio::time::timeout;

use super::claim;
use super::frames::{BYSTANDERS, among_bystanders};
use super::wire::{self, Flood};
use crate::scenario::answers::{all_answered, answered, problems};
use crate::scenario::lab::{Lab, Via};

/// Frames of each flood. Envoy's limits are 1,000 answers that wait and 500 streams that are reset at once.
const N_FRAMES: u32 = 50_000;
/// Time in which the control's connections must not end.
const NO_END: Duration = Duration::from_secs(1);

pub(super) async fn run(lab: &Lab<'_>) -> Result<()> {
    lab.fresh(&[]).await?;
    let address = lab.address(Via::Picker).await?;
    let until_closed = async |flood| lab.while_envoy_works(wire::flood(address, flood, N_FRAMES)).await;
    let (answers, ends) = among_bystanders(lab, Via::Picker, all_floods(until_closed)).await;
    lab.check(
        claim("floods/bystanders", "Floods of frames cut no other client's answer")
            .equal(all_answered(BYSTANDERS), answered(&answers))
            .detail(problems(&answers)),
    );
    lab.check(
        claim("floods/senders", "Envoy ends the connection of each client that floods it")
            .equal(all_that("closed"), ends?),
    );
    let briefly = async |flood| timeout(NO_END, wire::flood(address, flood, 1)).await.ok();
    let ends = all_floods(briefly).await?;
    lab.check(
        claim("floods/control", "One frame of each flood ends no connection").equal(all_that("open"), ends),
    );
    Ok(())
}

/// Sends each flood at the same time. Returns what becomes of their connections; `send` returns `None` for one that
/// stays open.
async fn all_floods(send: impl AsyncFn(Flood) -> Option<Result<()>>) -> Result<String> {
    let ends = join_all(Flood::ALL.map(|flood| send(flood))).await.into_iter().map(Option::transpose);
    let ends = ends.collect::<Result<Vec<Option<()>>>>()?;
    let end = |(flood, end): (Flood, Option<()>)| outcome(flood, end.map_or("open", |()| "closed"));
    Ok(Flood::ALL.into_iter().zip(ends).map(end).collect::<Vec<_>>().join(", "))
}

fn all_that(end: &str) -> String {
    Flood::ALL.map(|flood| outcome(flood, end)).join(", ")
}

fn outcome(flood: Flood, end: &str) -> String {
    format!("{flood:?} {end}")
}
