//! The pool reads engines' KV events: what the picker predicts about the cache is what the engine finds, while caches
//! are full and blocks are evicted all the time.

use anyhow::{Context as _, Result};

use crate::check::{Check, Claim, Group};
use crate::conversation::Conversation;
use crate::evidence::join::RequestTrace;
use crate::requests::body;
use crate::scenario::lab::{Answer, Lab, Shot, Via};

/// The pool's annotation, as in the tutorial and as kubectl builds a kustomization.
pub(super) const ANNOTATION: [&str; 2] = [
    "inference.networking.x-k8s.io/routing-strategy: \"PREFIX_CACHE\"",
    "inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE",
];
/// That annotation, followed by ours.
pub(super) const PRECISE: &str = "inference.networking.x-k8s.io/routing-strategy: \"PREFIX_CACHE\"\n    \
                       inference.networking.x-k8s.io/prefix-cache-mode: \"precise\"";
/// Blocks of a pod's cache, enough for two or three conversations of about 1,200 tokens.
const BLOCKS: &str = "200";
/// Number of conversations. Of five pods, one has three or more, which it has no room for, and one has two at most.
const CONVERSATIONS: usize = 11;
/// Number of conversations before the pool is made precise.
const CONTROLS: usize = 2;
const TURNS: usize = 2;
/// Length of an answer. The engine computes the prompt in one step and the answer's last token in none, so one batch of
/// events has all that a request changes in the cache.
const ANSWER_TOKENS: u32 = 1;
const SEED: u64 = 77;
/// Tokens that are most of a prompt and more than all prompts have in common.
const MOST: u64 = 800;
/// Series that counts the events that the picker's index has applied.
const KV_EVENTS: &str = "epp_kv_events_total";

/// Source of the picker's predictions: what it has sent to the engines, or their KV events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Estimate,
    Precise,
}

pub async fn run(lab: &Lab<'_>) -> Result<()> {
    let [exact_claim, churn, no_regret, control] = lab.announce([
        claim("exact", "The picker predicts from KV events exactly the tokens that the engine finds"),
        claim("churn", "Some conversations find their cache again, and some have lost it"),
        claim("no-regret", "No request goes to another pod while an engine has most of its prompt"),
        claim("control", "Without the annotation the picker does not use the engines' KV events"),
    ]);
    lab.fresh(&["--num-gpu-blocks-override", BLOCKS, "--max-model-len", "3000"]).await?;
    let estimated = converse(lab, Mode::Estimate, CONTROLS).await?;
    let mut manifests = lab.cluster.manifests();
    manifests.replace_any(&ANNOTATION, PRECISE).context("make the pool precise")?;
    // This restarts the pods, now with KV events.
    lab.apply(&manifests).await?;
    let precise = converse(lab, Mode::Precise, CONVERSATIONS).await?;
    let n = CONVERSATIONS * TURNS;
    let exact = precise.iter().filter(|trace| is_exact(trace)).count();
    lab.check(exact_claim.equal(format!("{n} of {n}"), format!("{exact} of {n}")).detail(misses(&precise)));
    let second_turns = &precise[CONVERSATIONS..];
    let kept = second_turns.iter().filter(|trace| cached(trace).is_some_and(|cached| cached > MOST)).count();
    lab.check(churn.holds(
        format!("more than 0 and less than {CONVERSATIONS}"),
        format!("{kept} of {CONVERSATIONS} second turns find their first"),
        kept > 0 && kept < CONVERSATIONS,
    ));
    let missed = precise.iter().filter(|trace| misses_a_cache(trace)).count();
    lab.check(no_regret.equal(0, missed));
    let told = estimated.iter().filter(|trace| predicted(trace).is_some()).count();
    lab.check(control.equal(format!("0 of {}", CONTROLS * TURNS), format!("{told} of {}", estimated.len())));
    Ok(())
}

fn claim(name: &str, title: &str) -> Claim {
    Check::of(Group::Precise, name, title)
}

/// Sends the first turn of every conversation, then the second turn of each; by then, some first ones are evicted.
/// In precise mode each request waits for the events of the one before.
async fn converse(lab: &Lab<'_>, mode: Mode, n_conversations: usize) -> Result<Vec<RequestTrace>> {
    let model = lab.requests.model();
    let mark = lab.mark();
    let mut conversations: Vec<Conversation> =
        (0..n_conversations).map(|number| Conversation::new(SEED, number)).collect();
    let mut answers: Vec<Answer> = Vec::new();
    for turn in 0..TURNS {
        for conversation in &mut conversations {
            conversation.ask();
            let label = format!("{}, conversation {}, turn {}", mode.name(), conversation.number, turn + 1);
            let body = body(&conversation.request(&model, ANSWER_TOKENS));
            let n_events = lab.picker_metric(KV_EVENTS).await?;
            let answer = lab.send(Shot::new(Group::Precise, label, Via::Picker, body)).await;
            conversation.answer(answer.chat.as_ref().map_or("", |chat| &chat.content));
            answers.push(answer);
            if mode == Mode::Precise {
                lab.picker_metric_above(KV_EVENTS, n_events).await?;
            }
        }
    }
    Ok(lab.collect(&mark, answers.into_iter().map(|answer| answer.side).collect()).await?.traces)
}

// === impl Mode ===

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Estimate => "estimate",
            Self::Precise => "precise",
        }
    }
}

fn cached(trace: &RequestTrace) -> Option<u64> {
    Some(trace.client.usage?.cached_tokens().into())
}

/// Returns the cached tokens that the engine of the picked pod reported.
fn predicted(trace: &RequestTrace) -> Option<u64> {
    let decision = trace.decision.as_ref()?;
    decision
        .candidates
        .iter()
        .find(|candidate| Some(&candidate.endpoint) == decision.endpoint.as_ref())?
        .cached_tokens
}

fn is_exact(trace: &RequestTrace) -> bool {
    predicted(trace).is_some() && predicted(trace) == cached(trace)
}

fn misses(traces: &[RequestTrace]) -> String {
    let missed = traces.iter().filter(|trace| !is_exact(trace));
    let lines = missed.map(|trace| {
        format!("{}: predicted {:?}, found {:?}", trace.client.label, predicted(trace), cached(trace))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// True if an engine that was not picked reported most of the prompt as cached, and more than the picked one.
fn misses_a_cache(trace: &RequestTrace) -> bool {
    let Some(decision) = &trace.decision else { return true };
    let best = decision.candidates.iter().filter_map(|candidate| candidate.cached_tokens).max().unwrap_or(0);
    best > MOST && predicted(trace) != Some(best)
}
