//! Limits that proxies often have by accident: large bodies, and many streams at the same time.

use anyhow::Result;
use futures::future::join_all;

use crate::check::{Check, Group};
use crate::requests::body;
use crate::scenario::lab::{Answer, GOOD, Lab, Shot, Via};
use crate::scenario::texts;

/// Length of a large body, well above the 1 MiB and 32 KiB that proxies buffer by default.
const BIG_BODY_BYTES: usize = 6_000_000;
const STREAMS: usize = 64;

pub async fn run(lab: &Lab<'_>) -> Result<()> {
    let model = lab.requests.model();
    let mark = lab.mark();
    let mut request = texts::chat(&model, "A short question in a big envelope.");
    request["metadata"] = serde_json::json!({"padding": "x".repeat(BIG_BODY_BYTES)});
    let big = lab.send(Shot::new(Group::Faults, "6 MB body", Via::Picker, body(&request))).await;
    lab.check(
        Check::of_faults("limits/big-body", "A body of 6 MB passes").equal(GOOD.to_owned(), big.verdict()),
    );
    let streams = (0..STREAMS).map(|number| {
        let label = format!("stream {} of {STREAMS}", number + 1);
        let short = texts::chat(&model, &format!("Stream {number} says hello to the pods."));
        lab.send(Shot::new(Group::Faults, label, Via::Picker, body(&short)))
    });
    let answers = join_all(streams).await;
    let good = answers.iter().filter(|answer| answer.chat.is_some()).count();
    let problems: Vec<String> =
        answers.iter().filter(|answer| answer.chat.is_none()).map(Answer::verdict).collect();
    lab.check(
        Check::of_faults("limits/streams", "64 streams at a time pass")
            .equal(format!("{STREAMS} of {STREAMS} answered"), format!("{good} of {STREAMS} answered"))
            .detail(problems.join("\n")),
    );
    let sides = std::iter::once(big).chain(answers).map(|answer| answer.side).collect();
    lab.collect(&mark, sides).await?;
    Ok(())
}
