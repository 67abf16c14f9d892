//! Some clients send their bodies in frames of one byte; the streams of all others must go on.

use anyhow::Result;
use bytes::Bytes;
use futures::future::join_all;

use super::{claim, wire};
use crate::check::Group;
use crate::requests::body;
use crate::scenario::answers::{all_answered, answered, problems};
use crate::scenario::lab::{Answer, Lab, MIDWAY, Shot, Via};
use crate::scenario::texts;

/// Length of the attack's body: the first flow-control window of an HTTP/2 stream, so that it can be sent at once.
const BODY_BYTES: usize = 65_535;
/// Clients that attack at the same time.
const ATTACKERS: usize = 3;
pub(super) const BYSTANDERS: usize = 16;
const ANSWER_TOKENS: u32 = 128;
/// Fewest messages that Envoy must have sent for the attackers' bodies; with fewer, it has merged frames.
const MANY_MESSAGES: u64 = 50_000;

pub(super) async fn run(lab: &Lab<'_>) -> Result<()> {
    lab.fresh(&[]).await?;
    let before = messages_to_picker(lab).await?;
    let (answers, statuses) = attacked(lab, Via::Picker).await?;
    let n_messages = messages_to_picker(lab).await?.saturating_sub(before);
    lab.check(
        claim("tiny-frames/bystanders", "Bodies in frames of one byte cut no other client's answer")
            .equal(all_answered(BYSTANDERS), answered(&answers))
            .detail(problems(&answers)),
    );
    lab.check(claim("tiny-frames/reaches-picker", "The attack reaches the picker in many messages").holds(
        format!("more than {MANY_MESSAGES} messages"),
        format!("{n_messages} messages"),
        n_messages > MANY_MESSAGES,
    ));
    lab.check(
        claim("tiny-frames/senders", "The attackers' requests are legal and get answers")
            .equal(["200"; ATTACKERS].join(" "), statuses),
    );
    let (answers, _) = attacked(lab, Via::Plain).await?;
    lab.check(
        claim("tiny-frames/control", "Without a picker in the path, the same attack cuts no answer either")
            .equal(all_answered(BYSTANDERS), answered(&answers))
            .detail(problems(&answers)),
    );
    Ok(())
}

/// Runs the attack. Returns the bystanders' answers, and the status that each attacker got.
async fn attacked(lab: &Lab<'_>, via: Via) -> Result<(Vec<Answer>, String)> {
    let (address, attack) = (lab.address(via).await?, attack_body(lab));
    let attacks =
        join_all((0..ATTACKERS).map(|_| lab.while_envoy_works(wire::post_in_frames(address, &attack, 1))));
    let (answers, statuses) = among_bystanders(lab, via, attacks).await;
    Ok((answers, statuses.into_iter().map(text).collect::<Vec<_>>().join(" ")))
}

/// Makes a chat request whose body has the attack's length.
fn attack_body(lab: &Lab<'_>) -> Bytes {
    let mut request = texts::chat(&lab.requests.model(), "A word, please, in very small pieces.");
    let n_padding = BODY_BYTES - body(&request).len() - r#","metadata":{"padding":""}"#.len();
    request["metadata"] = serde_json::json!({"padding": "x".repeat(n_padding)});
    body(&request)
}

/// Runs `attack` while long answers stream to other clients.
pub(super) async fn among_bystanders<T>(
    lab: &Lab<'_>,
    via: Via,
    attack: impl Future<Output = T>,
) -> (Vec<Answer>, T) {
    let model = lab.requests.model();
    let streams = (0..BYSTANDERS).map(|number| {
        let text = format!("Bystander {number} asks for a long story.");
        let request = texts::long_chat(&model, &text, ANSWER_TOKENS);
        lab.send(Shot::new(Group::Hostile, format!("bystander {}", number + 1), via, body(&request)))
    });
    let attack = async {
        lab.pause(MIDWAY).await;
        attack.await
    };
    tokio::join!(join_all(streams), attack)
}

/// Returns the number of messages that Envoy has sent to pickers.
async fn messages_to_picker(lab: &Lab<'_>) -> Result<u64> {
    lab.envoy_total("ext_proc.*stream_msgs_sent").await
}

fn text(status: Option<Result<http::StatusCode>>) -> String {
    match status {
        Some(Ok(status)) => status.as_u16().to_string(),
        Some(Err(error)) => format!("{error:#}"),
        None => "no answer".to_owned(),
    }
}
