//! Outages of the picker, and what Envoy does then. The picker hangs, dies or hangs during a response, is missing for a pool
//! that fails open, refuses requests because the pool is saturated, or is one of two and dies.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::join_all;
use gateway_config::attachment::Responses;
use load::clock::Stopwatch;

use crate::check::{Check, Claim, Group};
use crate::cluster::Fresh;
use crate::cluster::fault::Fault;
use crate::conversation::Conversation;
use crate::requests::{Form, body};
use crate::scenario::answers::{all_answered, answered, problems};
use crate::scenario::lab::{Answer, GOOD, LITTLE_PATIENCE, Lab, MIDWAY, REFUSED, Shot, Via};
use crate::scenario::{part, texts};

/// Least time for which Envoy waits for a silent picker: it tries to connect three times, for a second each.
const TRIES: Duration = Duration::from_secs(1);
/// Longest wait for an answer that cannot come. Envoy ends it within 8 s: it pings a silent picker every 5 s, waits 2 s
/// for the answer, and gives the client a second to close the connection. A request that hangs takes the client's 60 s.
const HANG: Duration = Duration::from_secs(30);
const LONG_ANSWER_TOKENS: u32 = 256;
/// Tokens of an answer during which connections end, which takes no time.
const ANSWER_TOKENS: u32 = 128;
/// Long answers that run at the same time.
const LONG_ANSWERS: usize = 16;
/// Requests that least request spreads. By chance, all of them go to one of five pods once in 2 million runs.
const SPREAD: usize = 10;
/// Requests sent after one of two pickers was killed.
const AFTER_THE_KILL: usize = 20;

const FAIL_OPEN: &str = "    name: inference-gateway-ext-proc\n    failureMode: FailOpen";
const FAIL_CLOSE: &str = "    name: inference-gateway-ext-proc";
const CRITICAL: &str = "criticality: Critical";
const SHEDDABLE: &str = "criticality: Sheddable";
/// Statistic of Envoy that counts connections to pickers which ended by GOAWAY.
const GOAWAYS: &str = "endpointpicker.*upstream_cx_close_notify";
/// Header with which a client would choose its pod.
const DESTINATION: &str = "x-gateway-destination-endpoint";

pub async fn run(lab: &Lab<'_>) {
    let group = Group::Faults;
    part(lab, group, "picker hung", picker_hung).await;
    part(lab, group, "picker cut off", picker_cut_off).await;
    part(lab, group, "picker gone from streams", picker_gone).await;
    part(lab, group, "picker replaced under streams", picker_replaced).await;
    part(lab, group, "pool fails open", fails_open).await;
    part(lab, group, "pool saturated", saturated).await;
    part(lab, group, "one of two pickers killed", one_of_two).await;
}

fn shot(label: impl Into<String>, body: Bytes) -> Shot {
    Shot::new(Group::Faults, label, Via::Picker, body)
}

/// The picker accepts requests and never answers, as in a deadlock.
async fn picker_hung(lab: &Lab<'_>) -> Result<()> {
    let [fails, plain_claim, back_claim] = lab.announce([
        Check::of_faults("picker-hung/fails", "With a hung picker a request fails after some seconds"),
        Check::of_faults("picker-hung/plain", "8080 works while the picker hangs"),
        Check::of_faults("picker-hung/back", "8081 works again when the picker continues"),
    ]);
    lab.cluster.can(&Fault::HangPickers)?;
    lab.fresh(&[]).await?;
    let request = || lab.requests.curl(Form::Quoted, 1);
    lab.cluster.inflict(&Fault::HangPickers).await?;
    let n_before = lab.cluster.access_log()?.len();
    let stopwatch = Stopwatch::start();
    let hung = lab.send(shot("8081, picker hung", request()?)).await;
    let took = stopwatch.elapsed();
    let plain = lab.send(Shot::new(Group::Faults, "8080, picker hung", Via::Plain, request()?)).await;
    lab.cluster.end(&Fault::HangPickers).await?;
    let reason = lab.reason_of_failure(n_before).await?;
    lab.check(fails.holds(
        format!("500 after {} to {} s, not {REFUSED}", TRIES.as_secs(), HANG.as_secs()),
        format!("{} after {:.1} s, {reason}", hung.side.status, took.as_secs_f64()),
        hung.side.status == 500 && (TRIES..HANG).contains(&took) && !reason.contains(REFUSED),
    ));
    lab.check(plain_claim.equal(GOOD.to_owned(), plain.verdict()));
    let back = lab.send(shot("8081, picker goes on", request()?)).await;
    lab.check(back_claim.equal(GOOD.to_owned(), back.verdict()));
    Ok(())
}

/// A picker that responses go through dies: they are cut, and clients can see that.
async fn picker_cut_off(lab: &Lab<'_>) -> Result<()> {
    let [fails, back_claim] = lab.announce([
        Check::of_faults(
            "picker-cut-off/fails",
            "A cut answer ends before the picker is back, and is not well formed",
        ),
        Check::of_faults("picker-cut-off/back", "The same request passes when the picker is back"),
    ]);
    lab.start_anew(Fresh { responses: Some(Responses::Through), ..Fresh::default() }).await?;
    let text = "A long story about a picker, please.";
    let request = texts::long_chat(&lab.requests.model(), text, LONG_ANSWER_TOKENS);
    let whole = lab.send(shot("long answer, picker alive", body(&request))).await;
    lab.check(
        Check::of_faults("picker-cut-off/control", "A long answer passes while the picker lives")
            .equal(GOOD.to_owned(), whole.verdict()),
    );
    let kill = async {
        lab.pause(MIDWAY).await;
        let stopwatch = Stopwatch::start();
        lab.cluster.inflict(&Fault::KillPickers).await.map(|()| stopwatch)
    };
    let (cut, killed) = tokio::join!(lab.send(shot("long answer, picker killed", body(&request))), kill);
    let took = killed?.elapsed();
    lab.check(fails.holds(
        format!("an error within {} s of the kill", HANG.as_secs()),
        format!("{} after {:.1} s", cut.verdict(), took.as_secs_f64()),
        cut.chat.is_none() && cut.side.error.is_some() && took < HANG,
    ));
    lab.cluster.end(&Fault::KillPickers).await?;
    let back = lab.send(shot("long answer, picker back", body(&request))).await;
    lab.check(back_claim.equal(GOOD.to_owned(), back.verdict()));
    Ok(())
}

/// The picker dies, hangs or loses its connection to Envoy while streams run. Only those that go through it notice.
async fn picker_gone(lab: &Lab<'_>) -> Result<()> {
    let [killed, killed_through, hung, hung_through, ended, ended_through, heard] = lab.announce([
        Check::of_faults("picker-gone/killed", "Streams past the picker go on when it dies"),
        Check::of_faults("picker-gone/killed-control", "Streams through the picker end when it dies"),
        Check::of_faults("picker-gone/hung", "Streams past the picker go on when it hangs"),
        Check::of_faults("picker-gone/hung-control", "Streams through the picker end when it hangs"),
        Check::of_faults(
            "picker-gone/goaway",
            "Streams past the picker go on when GOAWAY ends Envoy's connection to it",
        ),
        Check::of_faults(
            "picker-gone/goaway-control",
            "Streams through the picker end with Envoy's connection to it",
        ),
        Check::of_faults("picker-gone/goaway-heard", "Envoy hears GOAWAY from the picker each time"),
    ]);
    survived(lab, Fault::KillPickers, [killed, killed_through]).await?;
    survived(lab, Fault::HangPickers, [hung, hung_through]).await?;
    let n_before = lab.envoy_total(GOAWAYS).await?;
    survived(lab, Fault::EndConnections, [ended, ended_through]).await?;
    let n_heard = lab.envoy_total(GOAWAYS).await?.saturating_sub(n_before);
    lab.check(heard.holds("at least 2 connections", format!("{n_heard} connections"), n_heard >= 2));
    Ok(())
}

/// The picker is replaced while streams run, and waits for them only a moment.
async fn picker_replaced(lab: &Lab<'_>) -> Result<()> {
    let claims = lab.announce([
        Check::of_faults("picker-replaced/answers", "Streams past the picker go on when it is replaced"),
        Check::of_faults(
            "picker-replaced/control",
            "Streams through a picker that does not wait for them are cut",
        ),
    ]);
    let picker = lab.cluster.status().pickers.first().context("there is no picker")?.name.clone();
    survived(lab, Fault::ReplacePicker(picker), claims).await
}

/// Checks that streams past the picker survive a fault, and that some streams through it do not.
async fn survived(lab: &Lab<'_>, fault: Fault, [past, through]: [Claim; 2]) -> Result<()> {
    lab.cluster.can(&fault)?;
    let all = all_answered(LONG_ANSWERS);
    let answers = long_answers(lab, Responses::default(), &fault).await?;
    lab.check(past.equal(all.clone(), answered(&answers)).detail(problems(&answers)));
    let answers = long_answers(lab, Responses::Through, &fault).await?;
    let n_good = answers.iter().filter(|answer| answer.chat.is_some()).count();
    lab.check(through.holds(format!("fewer than {all}"), answered(&answers), n_good < LONG_ANSWERS));
    Ok(())
}

/// Sends requests for long answers together, and inflicts `fault` while they run. A picker that is asked to end waits for
/// them only a moment.
async fn long_answers(lab: &Lab<'_>, responses: Responses, fault: &Fault) -> Result<Vec<Answer>> {
    let picker_args = LITTLE_PATIENCE.map(str::to_owned).to_vec();
    let (relayed, n_tokens) = match fault {
        Fault::EndConnections => (true, ANSWER_TOKENS),
        _ => (false, LONG_ANSWER_TOKENS),
    };
    lab.start_anew(Fresh { responses: Some(responses), picker_args, relayed, ..Fresh::default() }).await?;
    let model = lab.requests.model();
    let streams = (0..LONG_ANSWERS).map(|number| {
        let text = format!("Story {number} about a picker, please.");
        let request = texts::long_chat(&model, &text, n_tokens);
        lab.send(shot(format!("{responses} responses, {fault}, stream {number}"), body(&request)))
    });
    let fail = async {
        lab.pause(MIDWAY).await;
        lab.cluster.inflict(fault).await
    };
    let (answers, failed) = tokio::join!(join_all(streams), fail);
    failed?;
    lab.cluster.end(fault).await?;
    Ok(answers)
}

/// Checks `failureMode: FailOpen`: without a picker Envoy uses least request, and clients still cannot choose their
/// pod.
async fn fails_open(lab: &Lab<'_>) -> Result<()> {
    let [answers_claim, forged] = lab.announce([
        Check::of_faults("fail-open/answers", "A pool that fails open is served without a picker"),
        Check::of_faults(
            "fail-open/forged",
            "Without a picker, a forged header does not choose the pod either",
        ),
    ]);
    lab.fresh(&[]).await?;
    let mut manifests = lab.cluster.manifests();
    manifests.replace(FAIL_CLOSE, FAIL_OPEN).context("let the pool fail open")?;
    lab.apply(&manifests).await?;
    let mark = lab.mark();
    let mut sides = Vec::new();
    for round in [1, 2] {
        let request = lab.requests.curl(Form::Bash, round)?;
        sides.push(lab.send(shot(format!("fails open, picker alive, round {round}"), request)).await.side);
    }
    let evidence = lab.collect(&mark, sides).await?;
    lab.check(
        Check::of_faults(
            "fail-open/picks",
            "A pool that fails open is routed by prefix while its picker lives",
        )
        .equal(1, evidence.prefix_lines.len()),
    );
    lab.cluster.inflict(&Fault::KillPickers).await?;
    let wanted: SocketAddr = lab.cluster.pods().first().context("there is no pod")?.address;
    let mark = lab.mark();
    let model = lab.requests.model();
    let requests = (0..SPREAD).map(|number| {
        let text = format!("Number {number} asks for a pod of its own choice.");
        let request = shot(format!("fails open, forged {number}"), body(&texts::chat(&model, &text)));
        lab.send(request.header(DESTINATION, wanted.to_string()))
    });
    let answers: Vec<Answer> = join_all(requests).await;
    lab.check(answers_claim.equal(all_answered(SPREAD), answered(&answers)).detail(problems(&answers)));
    let traces = lab.collect(&mark, answers.into_iter().map(|answer| answer.side).collect()).await?.traces;
    lab.cluster.end(&Fault::KillPickers).await?;
    lab.needs_pods(2)?;
    let wanted = wanted.to_string();
    let obeyed = traces.iter().filter(|trace| trace.envoy_upstream.as_ref() == Some(&wanted)).count();
    lab.check(forged.holds(
        format!("fewer than {SPREAD} of {SPREAD} at {wanted}"),
        format!("{obeyed} of {SPREAD}"),
        obeyed < SPREAD,
    ));
    Ok(())
}

/// Pods report long queues: sheddable requests are refused, critical ones are not.
async fn saturated(lab: &Lab<'_>) -> Result<()> {
    let [critical_claim, sheddable, control] = lab.announce([
        Check::of_faults("saturated/critical", "A critical request is served by a saturated pool"),
        Check::of_faults(
            "saturated/sheddable",
            "A saturated pool refuses a sheddable request, with a time to retry",
        ),
        Check::of_faults("saturated/control", "A sheddable request is served by an idle pool"),
    ]);
    lab.fresh(&["--fault", "metrics-lie:metric=waiting,value=100"]).await?;
    let request = || lab.requests.curl(Form::Quoted, 1);
    let critical = lab.send(shot("critical, saturated", request()?)).await;
    lab.check(critical_claim.equal(GOOD.to_owned(), critical.verdict()));
    let mut manifests = lab.cluster.manifests();
    manifests.replace(CRITICAL, SHEDDABLE).context("make the model sheddable")?;
    lab.apply(&manifests).await?;
    let shed = lab.send(shot("sheddable, saturated", request()?)).await;
    lab.check(sheddable.equal("429, Retry-After present".to_owned(), retry_after(&shed)).detail(&shed.body));
    lab.fresh(&[]).await?;
    lab.apply(&manifests).await?;
    let idle = lab.send(shot("sheddable, idle", request()?)).await;
    lab.check(control.equal(GOOD.to_owned(), idle.verdict()));
    Ok(())
}

fn retry_after(answer: &Answer) -> String {
    let present = if answer.has_header("retry-after") { "present" } else { "absent" };
    format!("{}, Retry-After {present}", answer.side.status)
}

/// Two pickers share a pool. Either may die, and the other knows where it sent requests.
async fn one_of_two(lab: &Lab<'_>) -> Result<()> {
    let [answers, affinity] = lab.announce([
        Check::of_faults("two-pickers/answers", "No client notices that one of two pickers has died"),
        Check::of_faults(
            "two-pickers/affinity",
            "The other picker sends every conversation to the pod that holds it",
        ),
    ]);
    lab.start_anew(Fresh { pickers: Some(2), ..Fresh::default() }).await?;
    let model = lab.requests.model();
    let mark = lab.mark();
    let mut conversations: Vec<Conversation> =
        (0..AFTER_THE_KILL).map(|number| Conversation::new(5, number)).collect();
    let mut firsts = Vec::new();
    for conversation in &mut conversations {
        conversation.ask();
        let label = format!("two pickers, conversation {}", conversation.number);
        let answer = lab.send(shot(label, body(&conversation.request(&model, 2)))).await;
        conversation.answer(answer.chat.as_ref().map_or("", |chat| &chat.content));
        firsts.push(answer);
    }
    let firsts = lab.collect(&mark, firsts.into_iter().map(|answer| answer.side).collect()).await?.traces;
    let one = lab.cluster.status().pickers.first().context("there is no picker")?.name.clone();
    let kill_one = Fault::KillPicker(one);
    lab.cluster.inflict(&kill_one).await?;
    let mut seconds = Vec::new();
    for conversation in &mut conversations {
        conversation.ask();
        let label = format!("one picker killed, conversation {}", conversation.number);
        seconds.push(lab.send(shot(label, body(&conversation.request(&model, 2)))).await);
    }
    lab.check(answers.equal(all_answered(AFTER_THE_KILL), answered(&seconds)).detail(problems(&seconds)));
    let seconds = lab.collect(&mark, seconds.into_iter().map(|answer| answer.side).collect()).await?.traces;
    let same =
        |(first, second): (&crate::evidence::join::RequestTrace, &crate::evidence::join::RequestTrace)| {
            first.served_by.is_some() && first.served_by == second.served_by
        };
    let stayed = firsts.iter().zip(&seconds).filter(|(first, second)| same((first, second))).count();
    lab.check(affinity.equal(
        format!("{AFTER_THE_KILL} of {AFTER_THE_KILL} stay"),
        format!("{stayed} of {AFTER_THE_KILL} stay"),
    ));
    lab.cluster.end(&kill_one).await
}
