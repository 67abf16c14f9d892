//! Operators at work while clients send requests: they scale pods, rename models, make pools again, and upgrade or lose
//! controllers. Clients may lose what was under way on pods that are scaled down, and nothing else.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::join_all;
use tokio::time::{sleep, timeout};

use crate::check::{Check, Claim, Group};
use crate::cluster::fault::Fault;
use crate::evidence::access_log::AccessEntry;
use crate::requests::{Form, body};
use crate::scenario::lab::{Answer, GOOD, Lab, Shot, Via};
use crate::scenario::{part, texts};

/// Clients that send one request after the other.
const CLIENTS: usize = 4;
/// Time for which the API server answers nobody.
const OUTAGE: Duration = Duration::from_secs(30);
const REPLICAS: &str = "replicas: 5";
/// Numbers of pods to which a Deployment is scaled, one after the other.
const STEPS: [usize; 2] = [2, 8];
const MODEL: (&str, &str) = ("modelName: /model/qwen", "modelName: /model/renamed");
/// A model has its name for good: one with another name is another object.
const OBJECT: (&str, &str) = ("name: inferencemodel-qwen", "name: inferencemodel-renamed");
const RENAMED: &str = "/model/renamed";

pub async fn run(lab: &Lab<'_>) {
    let group = Group::Faults;
    part(lab, group, "pods scaled", scaled).await;
    part(lab, group, "model renamed", renamed).await;
    part(lab, group, "pool made again", made_again).await;
    part(lab, group, "controllers replaced", controllers).await;
    part(lab, group, "API server hung", api_server).await;
}

/// Does the work while clients send requests, and returns their answers too.
async fn meanwhile<T>(
    lab: &Lab<'_>,
    label: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<(T, Vec<Answer>)> {
    let is_over = AtomicBool::new(false);
    let model = lab.requests.model();
    let client = async |number: usize| {
        let mut answers = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            let text = format!("Client {number} asks question {} while: {label}.", answers.len());
            let shot = Shot::new(Group::Faults, label, Via::Picker, body(&texts::chat(&model, &text)));
            answers.push(lab.send(shot).await);
        }
        answers
    };
    let work = async {
        let done = work.await;
        is_over.store(true, Ordering::Relaxed);
        done
    };
    let (done, answers) = tokio::join!(work, join_all((0..CLIENTS).map(client)));
    Ok((done?, answers.into_iter().flatten().collect()))
}

/// Checks that every answer is good. The number of requests depends on how long the work takes.
fn check_answers(lab: &Lab<'_>, claim: Claim, answers: &[Answer]) {
    let bad: Vec<String> =
        answers.iter().filter(|answer| answer.chat.is_none()).map(Answer::verdict).collect();
    let seen = format!("{} of {} answered", answers.len() - bad.len(), answers.len());
    let is_good = bad.is_empty() && !answers.is_empty();
    lab.check(claim.holds("every request is answered", seen, is_good).detail(bad.join("\n")));
}

async fn scaled(lab: &Lab<'_>) -> Result<()> {
    let [answers_claim, pods] = lab.announce([
        Check::of_faults(
            "scaled/answers",
            "While pods are scaled, requests are lost only on pods that go away",
        ),
        Check::of_faults("scaled/pods", "There are as many pods as are asked for"),
    ]);
    lab.needs_mock("pods that take no GPU")?;
    lab.fresh(&[]).await?;
    let n_before = lab.cluster.access_log()?.len();
    let original = lab.cluster.manifests();
    let addresses =
        || -> BTreeSet<String> { lab.cluster.pods().iter().map(|pod| pod.address.to_string()).collect() };
    let work = async {
        let (mut seen, mut gone) = (Vec::new(), BTreeSet::new());
        let mut present = addresses();
        for n_pods in STEPS {
            let mut manifests = original.clone();
            manifests.replace(REPLICAS, &format!("replicas: {n_pods}")).context("scale the pods")?;
            lab.apply(&manifests).await?;
            let before = std::mem::replace(&mut present, addresses());
            gone.extend(before.difference(&present).cloned());
            seen.push(present.len());
        }
        anyhow::Ok((seen, gone))
    };
    let ((seen, gone), answers) = meanwhile(lab, "pods are scaled", work).await?;
    let n_lost = answers.iter().filter(|answer| answer.chat.is_none()).count();
    let losses = lab.losses(n_before, n_lost).await?;
    let needless = needless(&losses, &gone);
    let observed = format!("{n_lost} of {} lost, {} of them needlessly", answers.len(), needless.len());
    lab.check(
        answers_claim
            .holds("none is lost on a pod that stays", observed, needless.is_empty() && !answers.is_empty())
            .detail(needless.join("\n")),
    );
    lab.check(pods.equal(format!("{STEPS:?}"), format!("{seen:?}")));
    lab.reset().await
}

/// Returns the losses that are not the end of a pod, as text: another pod could have answered.
fn needless(losses: &[AccessEntry], gone: &BTreeSet<String>) -> Vec<String> {
    let is_needless =
        |entry: &&AccessEntry| entry.upstream_host.as_ref().is_none_or(|host| !gone.contains(host));
    let text = |entry: &AccessEntry| {
        let or_nothing = |field: &Option<String>| field.clone().unwrap_or_else(|| "-".to_owned());
        let AccessEntry { code, flags, details, upstream_host, .. } = entry;
        format!("{code} {} at {}: {}", or_nothing(flags), or_nothing(upstream_host), or_nothing(details))
    };
    losses.iter().filter(is_needless).map(text).collect()
}

async fn renamed(lab: &Lab<'_>) -> Result<()> {
    let [before, after] = lab.announce([
        Check::of_faults("renamed/control", "A model's new name is not known before it is given"),
        Check::of_faults("renamed/answer", "The next request finds a model by its new name"),
    ]);
    let ask = async |label: &str| {
        let mut request = texts::chat(RENAMED, "Who are you?");
        request["max_tokens"] = 8.into();
        lab.send(Shot::new(Group::Faults, label, Via::Picker, body(&request))).await
    };
    lab.check(before.equal("404".to_owned(), ask("name not given").await.side.status.to_string()));
    let mut manifests = lab.cluster.manifests();
    for (from, to) in [MODEL, OBJECT] {
        manifests.replace(from, to).context("rename the model")?;
    }
    lab.apply(&manifests).await?;
    lab.check(after.equal(GOOD.to_owned(), ask("name given").await.verdict()));
    lab.reset().await
}

async fn made_again(lab: &Lab<'_>) -> Result<()> {
    let [lines] = lab.announce([Check::of_faults(
        "made-again/log",
        "A pool that is deleted and made again is routed by prefix, like a new one",
    )]);
    lab.cluster.can(&Fault::RemakePools)?;
    lab.fresh(&[]).await?;
    lab.cluster.inflict(&Fault::RemakePools).await?;
    let mark = lab.mark();
    let mut sides = Vec::new();
    for round in [1, 2] {
        let request = lab.requests.curl(Form::Bash, round)?;
        let label = format!("pool made again, round {round}");
        sides.push(lab.send(Shot::new(Group::Faults, label, Via::Picker, request)).await.side);
    }
    let evidence = lab.collect(&mark, sides).await?;
    lab.check(lines.equal(1, evidence.prefix_lines.len()));
    Ok(())
}

async fn controllers(lab: &Lab<'_>) -> Result<()> {
    let [own, gateways] = lab.announce([
        Check::of_faults("controllers/own", "No request is lost while the controller of pools is replaced"),
        Check::of_faults(
            "controllers/gateway",
            "No request is lost while the gateway's controller is restarted",
        ),
    ]);
    let [control] = lab.announce([Check::of_faults(
        "controllers/control",
        "Requests are lost while every picker is dead, and such clients notice",
    )]);
    for (fault, claim) in [(Fault::KillController, own), (Fault::RestartGatewayController, gateways)] {
        lab.cluster.can(&fault)?;
        let work = async { lab.cluster.inflict(&fault).await };
        let ((), answers) = meanwhile(lab, &fault.to_string(), work).await?;
        check_answers(lab, claim, &answers);
    }
    let work = async {
        lab.cluster.inflict(&Fault::KillPickers).await?;
        lab.cluster.end(&Fault::KillPickers).await
    };
    let ((), answers) = meanwhile(lab, "every picker is killed", work).await?;
    let n_lost = answers.iter().filter(|answer| answer.chat.is_none()).count();
    let observed = format!("{n_lost} of {} lost", answers.len());
    lab.check(control.holds("some are lost", observed, n_lost > 0));
    Ok(())
}

async fn api_server(lab: &Lab<'_>) -> Result<()> {
    let [answers_claim, control] = lab.announce([
        Check::of_faults("api-server/answers", "No request is lost while the API server answers nobody"),
        Check::of_faults(
            "api-server/control",
            "The API server answers nobody meanwhile, and somebody afterwards",
        ),
    ]);
    lab.cluster.can(&Fault::HangApiServer)?;
    // Pages of pickers come through the API server.
    let asked = || lab.cluster.picker_pages("/metrics");
    let answered = |answers: bool| if answers { "an answer" } else { "no answer" };
    let work = async {
        lab.cluster.inflict(&Fault::HangApiServer).await?;
        let over = sleep(OUTAGE);
        let meanwhile = timeout(OUTAGE, asked()).await.is_ok_and(|pages| pages.is_ok());
        over.await;
        lab.cluster.end(&Fault::HangApiServer).await?;
        anyhow::Ok(format!("{}, then {}", answered(meanwhile), answered(asked().await.is_ok())))
    };
    let (seen, answers) = meanwhile(lab, "the API server hangs", work).await?;
    check_answers(lab, answers_claim, &answers);
    lab.check(control.equal("no answer, then an answer".to_owned(), seen));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::needless;
    use crate::evidence::access_log;

    /// A cut stream has status 200, and a request that found no pod has no host.
    #[test]
    fn a_loss_needs_a_pod_that_goes_away() {
        let log = concat!(
            r#"{"code":200,"flags":"UC","upstream_host":"10.0.0.1:8000"}"#,
            "\n",
            r#"{"code":503,"flags":"UF","upstream_host":"10.0.0.2:8000","details":"connection_refused"}"#,
            "\n",
            r#"{"code":503,"flags":"UH"}"#,
            "\n",
        );
        let losses = access_log::parse(log).unwrap();
        assert!(losses.iter().all(|entry| !entry.is_whole()));
        let gone =
            |hosts: &[&str]| -> BTreeSet<String> { hosts.iter().map(|host| (*host).to_owned()).collect() };
        let found = needless(&losses, &gone(&["10.0.0.1:8000"]));
        assert_eq!(found, ["503 UF at 10.0.0.2:8000: connection_refused", "503 UH at -: -"]);
        assert_eq!(needless(&losses[..1], &gone(&[])).len(), 1, "the pod of a cut stream stays");
    }
}
