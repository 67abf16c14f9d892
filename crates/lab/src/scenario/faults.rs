//! Faults: a pod dies, the picker dies, a request is broken. The rest must go on, and failures must be clear.

use anyhow::{Context as _, Result, bail};
use futures::future::join_all;

use crate::check::{Check, Group};
use crate::cluster::fault::Fault;
use crate::conversation::Conversation;
use crate::requests::{Form, body};
use crate::scenario::lab::{Answer, GONE, GOOD, Lab, Shot, Via};
use crate::scenario::part;

/// Requests sent beside round 2 right after the pod's death, enough to reach every pod.
const BYSTANDERS: usize = 9;

pub async fn run(lab: &Lab<'_>) {
    let group = Group::Faults;
    part(lab, group, "matched pod killed", matched_pod_killed).await;
    part(lab, group, "picker killed", picker_killed).await;
    part(lab, group, "strange picker", strange_picker).await;
    part(lab, group, "broken request", broken_request).await;
}

async fn matched_pod_killed(lab: &Lab<'_>) -> Result<()> {
    let [answer, bystanders_claim, other_pod, replaced] = lab.announce([
        Check::of_faults("pod-killed/answer", "Round 2 is answered although the pod of round 1 is dead"),
        Check::of_faults("pod-killed/bystanders", "No other client sees an error when a pod dies"),
        Check::of_faults("pod-killed/other-pod", "Round 2 is served by another pod"),
        Check::of_faults("pod-killed/replaced", "The dead pod is replaced"),
    ]);
    lab.needs_pods(2)?;
    lab.fresh(&[]).await?;
    let mark = lab.mark();
    let round = |number: u32| -> Result<Shot> {
        let label = if number == 1 { "round 1, pod alive" } else { "round 2, pod killed" };
        Ok(Shot::new(Group::Faults, label, Via::Picker, lab.requests.curl(Form::Bash, number)?))
    };
    let first = lab.send(round(1)?).await;
    let verdict = first.verdict();
    let evidence = lab.collect(&mark, vec![first.side]).await?;
    let Ok(pod) = evidence.traces[0].agreed_pod(lab.engine()) else {
        bail!("round 1 has no agreed pod: {verdict}")
    };
    lab.cluster.inflict(&Fault::KillPod(pod.to_owned())).await?;
    let model = lab.requests.model();
    let bystanders = (0..BYSTANDERS).map(|number| {
        let mut conversation = Conversation::new(2, number);
        conversation.ask();
        let label = format!("bystander {}", number + 1);
        lab.send(Shot::new(Group::Faults, label, Via::Picker, body(&conversation.request(&model, 2))))
    });
    let (second, others) = tokio::join!(lab.send(round(2)?), join_all(bystanders));
    lab.check(answer.equal(GOOD.to_owned(), second.verdict()));
    let good = others.iter().filter(|answer| answer.chat.is_some()).count();
    lab.check(
        bystanders_claim
            .equal(
                format!("{BYSTANDERS} of {BYSTANDERS} answered"),
                format!("{good} of {BYSTANDERS} answered"),
            )
            .detail(
                others
                    .iter()
                    .filter(|answer| answer.chat.is_none())
                    .map(Answer::verdict)
                    .collect::<Vec<_>>()
                    .join("\n"),
            ),
    );
    let sides = std::iter::once(second).chain(others).map(|answer| answer.side).collect();
    let traces = lab.collect(&mark, sides).await?.traces;
    let served = traces[0].answered_by(lab.engine());
    lab.check(other_pod.holds(
        format!("a pod other than {pod}"),
        served.unwrap_or("no pod"),
        served.is_some_and(|served| served != pod),
    ));
    let settled = lab.cluster.settled().await.context("wait for a new pod")?;
    let names: Vec<&str> = settled.pods.iter().filter(|pod| pod.ready).map(|pod| pod.name.as_str()).collect();
    lab.check(replaced.holds(
        format!("{} ready pods, without {pod}", lab.replicas(&mark)),
        format!("{} ready pods: {}", names.len(), names.join(", ")),
        names.len() == lab.replicas(&mark) && !names.contains(&pod),
    ));
    Ok(())
}

async fn picker_killed(lab: &Lab<'_>) -> Result<()> {
    let [fails, plain_claim, back_claim] = lab.announce([
        Check::of_faults("picker-killed/fails", "Without a picker 8081 answers 500 at once"),
        Check::of_faults("picker-killed/plain", "8080 works without a picker"),
        Check::of_faults("picker-killed/back", "8081 works again when the picker is back"),
    ]);
    lab.fresh(&[]).await?;
    let send = async |label: &str, via: Via| {
        let body = lab.requests.curl(Form::Quoted, 1)?;
        anyhow::Ok(lab.send(Shot::new(Group::Faults, label, via, body)).await)
    };
    lab.cluster.inflict(&Fault::KillPickers).await?;
    let n_before = lab.cluster.access_log()?.len();
    let down = send("8081, picker dead", Via::Picker).await?;
    let plain = send("8080, picker dead", Via::Plain).await?;
    lab.check(plain_claim.equal(GOOD.to_owned(), plain.verdict()));
    lab.cluster.end(&Fault::KillPickers).await?;
    let reason = lab.reason_of_failure(n_before).await?;
    lab.check(
        fails
            .holds(
                format!("500, {}", GONE.join(" or ")),
                format!("{}, {reason}", down.side.status),
                down.side.status == 500 && GONE.iter().any(|words| reason.contains(words)),
            )
            .detail(&down.body),
    );
    let mark = lab.mark();
    let back = send("8081, picker back", Via::Picker).await?;
    lab.check(back_claim.equal(GOOD.to_owned(), back.verdict()));
    lab.collect(&mark, vec![down.side, plain.side, back.side]).await?;
    Ok(())
}

/// Another picker answers on the picker's port, with a certificate for the same name from an authority that is not
/// trusted.
async fn strange_picker(lab: &Lab<'_>) -> Result<()> {
    let [fails, back_claim] = lab.announce([
        Check::of_faults("strange-picker/fails", "A picker whose certificate is not trusted sees no request"),
        Check::of_faults("strange-picker/back", "The real picker is trusted again"),
    ]);
    lab.cluster.can(&Fault::ForgeCertificates)?;
    lab.fresh(&[]).await?;
    let send = async |label: &str| {
        let body = lab.requests.curl(Form::Quoted, 1)?;
        anyhow::Ok(lab.send(Shot::new(Group::Faults, label, Via::Picker, body)).await)
    };
    lab.cluster.inflict(&Fault::ForgeCertificates).await?;
    let mark = lab.mark();
    let strange = send("8081, strange picker").await?;
    lab.check(fails.equal("500".to_owned(), strange.side.status.to_string()).detail(strange.body));
    lab.cluster.end(&Fault::ForgeCertificates).await?;
    let back = send("8081, own picker").await?;
    lab.check(back_claim.equal(GOOD.to_owned(), back.verdict()));
    lab.collect(&mark, vec![strange.side, back.side]).await?;
    Ok(())
}

/// Sends dash's file as `--data-binary` would, with line breaks inside its strings.
async fn broken_request(lab: &Lab<'_>) -> Result<()> {
    let raw = lab.requests.raw(Form::Dash, 2)?;
    lab.check(Check::of_faults("broken/premise", "dash's file is not valid JSON").equal(
        "refused by a JSON parser",
        if serde_json::from_slice::<serde_json::Value>(&raw).is_ok() {
            "valid"
        } else {
            "refused by a JSON parser"
        },
    ));
    let mark = lab.mark();
    let shot = Shot::new(Group::Faults, "dash's file by --data-binary", Via::Picker, raw);
    let broken = lab.send(shot).await;
    lab.check(
        Check::of_faults("broken/status", "Broken JSON gets 400 with an OpenAI error body")
            .equal("400 with error.message and error.code 400".to_owned(), describe(&broken))
            .detail(&broken.body),
    );
    let shot =
        Shot::new(Group::Faults, "after the broken one", Via::Picker, lab.requests.curl(Form::Dash, 2)?);
    let after = lab.send(shot).await;
    lab.check(
        Check::of_faults("broken/after", "The next request is answered as if nothing had happened")
            .equal(GOOD.to_owned(), after.verdict()),
    );
    lab.collect(&mark, vec![broken.side, after.side]).await?;
    Ok(())
}

fn describe(answer: &Answer) -> String {
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let error = &body["error"];
    let shape = match (error["message"].as_str(), error["code"].as_u64()) {
        (Some(message), Some(code)) if !message.is_empty() => format!("error.message and error.code {code}"),
        _ => "another body".to_owned(),
    };
    format!("{} with {shape}", answer.side.status)
}
