//! Clients that hold back the end of their bodies: what the picker keeps for all of them together is bounded.

use std::time::Duration;

use anyhow::Result;
use futures::future::{join_all, try_join_all};

use super::claim;
use super::wire::{Upload, status_of};
use crate::check::Group;
use crate::cluster::Fresh;
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
/// Looks until each upload must be refused or held: 20 s, many times what they take.
const LOOKS: usize = 80;

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
    let after = until_answered(lab).await;
    lab.check(
        claim("uploads/after", "After the uploads, other clients are served").equal(GOOD.to_owned(), after),
    );
    lab.fresh(&[]).await?;
    let (uploads, refusals) = hold_back(lab).await?;
    let finished = join_all(uploads.into_iter().map(Upload::finish)).await;
    let n_good =
        finished.iter().filter(|answer| answer.as_ref().is_ok_and(|text| status_of(text) == 200)).count();
    lab.check(claim("uploads/control", "Within the budget, every slow upload is answered").equal(
        format!("{UPLOADS} of {UPLOADS} answered, 0 refused"),
        format!("{n_good} of {UPLOADS} answered, {} refused", refusals.len()),
    ));
    Ok(())
}

/// Begins all uploads, and waits until each is refused or held by the picker. Returns those that are held, and the answers
/// to the others.
async fn hold_back(lab: &Lab<'_>) -> Result<(Vec<Upload>, Vec<String>)> {
    let address = lab.address(Via::Picker)?;
    let model = lab.requests.model();
    let uploads = (0..UPLOADS).map(|number| {
        let mut request = texts::chat(&model, &format!("Upload {number} is in no hurry."));
        request["metadata"] = serde_json::json!({"padding": "x".repeat(UPLOAD_BYTES)});
        let request = body(&request);
        async move { Upload::begin(address, &request, 1).await }
    });
    let (mut waiting, mut refusals) = (try_join_all(uploads).await?, Vec::new());
    for _ in 0..LOOKS {
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
        if n_held + refusals.len() as f64 >= UPLOADS as f64 {
            break;
        }
    }
    Ok((waiting, refusals))
}

/// Asks until an answer is good, because the picker learns of closed uploads a moment later.
async fn until_answered(lab: &Lab<'_>) -> String {
    let mut verdict = String::new();
    for _ in 0..20 {
        let request = body(&texts::chat(&lab.requests.model(), "Is anybody there?"));
        verdict =
            lab.send(Shot::new(Group::Hostile, "after the uploads", Via::Picker, request)).await.verdict();
        if verdict == GOOD {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    verdict
}
