//! Broken neighbours: a pod that reports no load, and files that are empty for a moment.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::claim;
use crate::check::{Claim, Group};
use crate::cluster::fault::Fault;
use crate::patience::{self, Patience};
use crate::requests::body;
use crate::scenario::answers::{all_answered, answered, problems};
use crate::scenario::lab::{Answer, Lab, Shot, Via};
use crate::scenario::texts;

const REQUESTS: usize = 20;
/// Most times that they are sent until every pod was picked: among idle pods the picker draws, and one of five pods is
/// missed by 20 draws in six of a hundred runs.
const CONTROL_ROUNDS: usize = 5;
/// Time between two looks at whether the picker has noticed a removal.
const LOOK: Duration = Duration::from_millis(250);
/// The picker must believe the pod after more scrapes without a load.
const NOTICED: f64 = 9.0;
/// Series that counts scrapes without a load.
const NO_LOAD: &str = "epp_scrape_failures_total{reason=\"no_load\"}";
/// Time for which a file is empty during a rewrite.
const EMPTY_FOR: Duration = Duration::from_millis(100);
const REWRITES: usize = 10;
const EMPTY_FILES: [Fault; 2] = [Fault::EmptyPools, Fault::EmptyEndpoints];

/// A pod whose metrics do not show its load gets no more than its share, and nothing while other pods report theirs.
pub(super) async fn blind_pods(lab: &Lab<'_>) -> Result<()> {
    let [traffic, control_claim, counted] = lab.announce([
        claim("blind-pod/traffic", "A pod whose metrics do not show its load attracts no traffic"),
        claim("blind-pod/control", "The same requests use every pod while all pods report their load"),
        claim("blind-pod/counted", "A scrape that finds no load counts as failed"),
    ]);
    lab.needs_mock("the page /debug/faults")?;
    lab.needs_pods(2)?;
    lab.fresh(&[]).await?;
    let mut picked = BTreeSet::new();
    for round in 0..CONTROL_ROUNDS {
        picked.extend(at_pod(lab, &format!("{round}, pods that all tell")).await?);
        if picked.len() == lab.cluster.pods().len() {
            break;
        }
    }
    let blind = lab.cluster.pods().into_iter().next().context("there is no pod")?;
    let faults = serde_json::json!({"faults": ["metrics-omit"]}).to_string();
    let reply = lab.post(Via::Pod(blind.address), "/debug/faults", &[], faults.into()).await?;
    anyhow::ensure!(reply.status.is_success(), "set the fault: {} {}", reply.status, reply.text());
    lab.picker_metric_above(NO_LOAD, NOTICED).await?;
    let seen = at_pod(lab, "one pod tells nothing").await?;
    lab.check(traffic.equal(
        format!("0 of {REQUESTS} at {}", blind.address),
        format!(
            "{} of {REQUESTS} at {}",
            seen.iter().filter(|at| **at == blind.address.to_string()).count(),
            blind.address
        ),
    ));
    lab.check(
        control_claim.equal(format!("{} pods", lab.cluster.pods().len()), format!("{} pods", picked.len())),
    );
    let failed = lab.picker_metric(NO_LOAD).await?;
    lab.check(counted.holds("more than 0", failed, failed > 0.0));
    Ok(())
}

/// Sends requests without common prefixes, and returns the pods that served them.
async fn at_pod(lab: &Lab<'_>, label: &str) -> Result<Vec<String>> {
    let mark = lab.mark();
    let mut sides = Vec::new();
    for number in 0..REQUESTS {
        let text = format!("{number} {label}: a question of its own.");
        let request = body(&texts::chat(&lab.requests.model(), &text));
        sides.push(
            lab.send(Shot::new(Group::Hostile, format!("{label}, {number}"), Via::Picker, request))
                .await
                .side,
        );
    }
    let traces = lab.collect(&mark, sides).await?.traces;
    Ok(traces.into_iter().filter_map(|trace| trace.envoy_upstream).collect())
}

/// The picker's files are truncated and rewritten in place while requests come. No request is lost and no prefix
/// forgotten.
pub(super) async fn rewritten_files(lab: &Lab<'_>) -> Result<()> {
    let [answers_claim, prefixes, control] = lab.announce([
        claim("rewritten/answers", "No request is lost while the picker's files are rewritten in place"),
        claim("rewritten/prefixes", "The picker still knows after the rewrites what was cached before"),
        claim("rewritten/control", "The picker follows files that stay empty: there is no pool any more"),
    ]);
    lab.cluster.can(&EMPTY_FILES[0])?;
    lab.fresh(&[]).await?;
    let is_over = AtomicBool::new(false);
    let rewriting = async {
        let rewritten = rewrite(lab).await;
        is_over.store(true, Ordering::Relaxed);
        rewritten
    };
    let asking = async {
        let mut answers: Vec<Answer> = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            let request =
                body(&texts::chat(&lab.requests.model(), &format!("Request {} meanwhile.", answers.len())));
            answers.push(lab.send(Shot::new(Group::Hostile, "file rewritten", Via::Picker, request)).await);
        }
        answers
    };
    let (first, _) = texts::pair("kept over rewrites", texts::BYTES / 2);
    let known = |label: &str| {
        Shot::new(Group::Hostile, label, Via::Picker, body(&texts::chat(&lab.requests.model(), &first)))
    };
    lab.send(known("before the rewrites")).await;
    let (rewritten, answers) = tokio::join!(rewriting, asking);
    rewritten?;
    lab.check(
        answers_claim.equal(all_answered(answers.len()), answered(&answers)).detail(problems(&answers)),
    );
    let mark = lab.mark();
    let again = lab.send(known("after the rewrites")).await;
    let evidence = lab.collect(&mark, vec![again.side]).await?;
    let decision = evidence.traces[0].decision.as_ref().context("the picker has no record of it")?;
    lab.check(prefixes.equal(
        format!("{} of {} bytes match", decision.total_bytes, decision.total_bytes),
        format!("{} of {} bytes match", decision.best_match(), decision.total_bytes),
    ));
    lasting_removal(lab, control).await
}

async fn rewrite(lab: &Lab<'_>) -> Result<()> {
    for fault in EMPTY_FILES.iter().cycle().take(REWRITES * EMPTY_FILES.len()) {
        lab.cluster.inflict(fault).await?;
        tokio::time::sleep(EMPTY_FOR).await;
        lab.cluster.end(fault).await?;
        tokio::time::sleep(EMPTY_FOR).await;
    }
    Ok(())
}

/// The control: the picker follows a removal that lasts, some seconds later.
async fn lasting_removal(lab: &Lab<'_>, control: Claim) -> Result<()> {
    for fault in &EMPTY_FILES {
        lab.cluster.inflict(fault).await?;
    }
    let mut patience = Patience::start(patience::PROGRAMS);
    let gone = loop {
        let request = body(&texts::chat(&lab.requests.model(), "Is there still a pool?"));
        let answer = lab.send(Shot::new(Group::Hostile, "files that stay empty", Via::Picker, request)).await;
        if answer.side.status != 200 || !patience.lasts(()) {
            break answer;
        }
        tokio::time::sleep(LOOK).await;
    };
    lab.check(control.equal("503".to_owned(), gone.side.status.to_string()).detail(gone.body));
    for fault in &EMPTY_FILES {
        lab.cluster.end(fault).await?;
    }
    Ok(())
}
