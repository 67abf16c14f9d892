//! Clients that hold back the end of their bodies: what the picker keeps for all of them together is bounded.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use futures::future::{join_all, try_join_all};
use futures::stream::FuturesUnordered;

use super::claim;
use super::wire::{Upload, status_of};
use crate::check::Group;
use crate::cluster::Fresh;
use crate::patience::{self, Patience};
use crate::requests::body;
use crate::scenario::lab::{GOOD, Lab, Shot, Via};
use crate::scenario::texts;

const UPLOADS: usize = 300;
/// Length of each body; 30 MB together.
const UPLOAD_BYTES: usize = 100_000;
/// Bytes that the picker may keep in this part, a third of all uploads.
const BUDGET: f64 = 10_485_760.0;
/// Time to wait for refusals before the picker is asked what it holds.
const LOOK: Duration = Duration::from_millis(250);

pub(super) async fn run(lab: &Lab<'_>) -> Result<()> {
    let picker_args = vec!["--max-buffered-bytes".to_owned(), format!("{BUDGET:.0}")];
    lab.start_anew(Fresh { picker_args, ..Fresh::default() }).await?;
    let (uploads, refusals) = hold_back(lab).await?;
    let good =
        |answer: &&String| status_of(answer) == 503 && answer.to_ascii_lowercase().contains("retry-after:");
    let (n_refused, n_good) = (refusals.len(), refusals.iter().filter(good).count());
    lab.check(claim("uploads/bounded", "Uploads beyond the budget are refused, with a time to retry").holds(
        "more than half of them, each with 503 and Retry-After",
        format!("{n_refused} of {UPLOADS} refused, {n_good} of these with 503 and Retry-After"),
        n_refused > UPLOADS / 2 && n_good == n_refused,
    ));
    let held = lab.picker_metric("epp_buffered_bytes").await?;
    lab.check(
        claim("uploads/held", "The picker's buffers stay within the budget, and hold the accepted uploads")
            .holds(
                format!("up to {BUDGET:.0} bytes, more than half of them"),
                format!("{held} bytes"),
                held <= BUDGET && held * 2.0 > BUDGET,
            ),
    );
    drop(uploads);
    let after = until_answered(lab).await?;
    lab.check(
        claim("uploads/after", "After the uploads, other clients are served").equal(GOOD.to_owned(), after),
    );
    lab.fresh(&[]).await?;
    let (uploads, refusals) = hold_back(lab).await?;
    let mut finishing: FuturesUnordered<_> = uploads.into_iter().map(Upload::finish).collect();
    let mut n_good = 0;
    while let Some(Some(answer)) = lab.while_envoy_works(finishing.next()).await {
        n_good += usize::from(answer.is_ok_and(|text| status_of(&text) == 200));
    }
    lab.check(claim("uploads/control", "Within the budget, every slow upload is answered").equal(
        format!("{UPLOADS} of {UPLOADS} answered, 0 refused"),
        format!("{n_good} of {UPLOADS} answered, {} refused", refusals.len()),
    ));
    Ok(())
}

/// Begins all uploads, and waits until each is refused or held by the picker. Returns those that are held, and the answers
/// to the others.
async fn hold_back(lab: &Lab<'_>) -> Result<(Vec<Upload>, Vec<String>)> {
    let address = lab.address(Via::Picker).await?;
    let model = lab.requests.model();
    let uploads = (0..UPLOADS).map(|number| {
        let mut request = texts::chat(&model, &format!("Upload {number} is in no hurry."));
        request["metadata"] = serde_json::json!({"padding": "x".repeat(UPLOAD_BYTES)});
        let request = body(&request);
        async move { Upload::begin(address, &request, 1).await }
    });
    let begun = lab.while_envoy_works(try_join_all(uploads)).await.context("the uploads are not taken")?;
    let (mut waiting, mut refusals) = (begun?, Vec::new());
    let mut patience = Patience::start(patience::PROGRAMS);
    loop {
        let looks = waiting.into_iter().map(|mut upload| async {
            let answer = upload.answer_within(LOOK).await;
            (upload, answer)
        });
        waiting = Vec::new();
        for (upload, answer) in join_all(looks).await {
            if answer.is_empty() { waiting.push(upload) } else { refusals.push(answer) }
        }
        // Every body is a little longer than its padding.
        let n_held = (lab.picker_metric("epp_buffered_bytes").await? / UPLOAD_BYTES as f64).floor();
        let is_done = n_held + refusals.len() as f64 >= UPLOADS as f64;
        if is_done || !patience.lasts((n_held.to_bits(), refusals.len())) {
            return Ok((waiting, refusals));
        }
    }
}

/// Asks until an answer is good, because the picker learns of closed uploads a moment later.
async fn until_answered(lab: &Lab<'_>) -> Result<String> {
    let mut patience = Patience::start(patience::PROGRAMS);
    loop {
        let request = body(&texts::chat(&lab.requests.model(), "Is anybody there?"));
        let answer = lab.send(Shot::new(Group::Hostile, "after the uploads", Via::Picker, request)).await;
        let held = lab.picker_metric("epp_buffered_bytes").await?;
        if answer.chat.is_some() || !patience.lasts(held.to_bits()) {
            return Ok(answer.verdict());
        }
        tokio::time::sleep(LOOK).await;
    }
}
