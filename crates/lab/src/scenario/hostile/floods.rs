//! Some clients send HTTP/2 frames by the ten thousand, each of which is legal; the streams of all others must go on.

use std::time::Duration;

use anyhow::Result;
use futures::future::join_all;

use super::frames::{BYSTANDERS, among_bystanders};
use super::wire::{self, Flood};
use super::{all_answered, answered, claim, problems};
use crate::scenario::lab::{Lab, Via};

/// Frames of each flood. Envoy's limits are 1,000 answers that wait and 500 streams that are reset at once.
const N_FRAMES: u32 = 50_000;
/// Longest wait for Envoy to end a connection, and for the control the time in which it must not.
const END: Duration = Duration::from_secs(20);
const NO_END: Duration = Duration::from_secs(1);

pub(super) async fn run(lab: &Lab<'_>) -> Result<()> {
    lab.fresh(&[]).await?;
    let (answers, ends) = among_bystanders(lab, Via::Picker, flooded(lab, N_FRAMES, END)).await;
    lab.check(
        claim("floods/bystanders", "Floods of frames cut no other client's answer")
            .equal(all_answered(BYSTANDERS), answered(&answers))
            .detail(problems(&answers)),
    );
    lab.check(
        claim("floods/senders", "Envoy ends the connection of each client that floods it")
            .equal(all_that("closed"), ends?),
    );
    let ends = flooded(lab, 1, NO_END).await?;
    lab.check(
        claim("floods/control", "One frame of each flood ends no connection").equal(all_that("open"), ends),
    );
    Ok(())
}

/// Sends each flood at the same time. Returns what becomes of their connections.
async fn flooded(lab: &Lab<'_>, n_frames: u32, wait: Duration) -> Result<String> {
    let address = lab.address(Via::Picker)?;
    let floods = Flood::ALL.map(|flood| wire::flood(address, flood, n_frames, wait));
    let ends = join_all(floods).await.into_iter().collect::<Result<Vec<bool>>>()?;
    let end = |(flood, closes): (Flood, bool)| outcome(flood, if closes { "closed" } else { "open" });
    Ok(Flood::ALL.into_iter().zip(ends).map(end).collect::<Vec<_>>().join(", "))
}

fn all_that(end: &str) -> String {
    Flood::ALL.map(|flood| outcome(flood, end)).join(", ")
}

fn outcome(flood: Flood, end: &str) -> String {
    format!("{flood:?} {end}")
}
