//! Sends 20 conversations of 5 turns, first through the picker and then through plain least-request, each on empty
//! caches.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::join_all;

use crate::check::{Check, Group};
use crate::conversation::Conversation;
use crate::engine::Engine;
use crate::evidence::join::{ClientSide, RequestTrace};
use crate::evidence::pod::CacheCounters;
use crate::report::{PodCache, Side};
use crate::requests::body;
use crate::scenario::lab::{Evidence, Lab, Shot, Via};

const CONVERSATIONS: usize = 20;
const TURNS: usize = 5;
/// Tokens of an answer. Short answers keep the run short, and still fill blocks that the next turn finds.
const ANSWER_TOKENS: u32 = 8;
/// Virtual time between the starts of two conversations. Some overlap, but their first turns do not come all at once.
const STAGGER: Duration = Duration::from_millis(60);
/// Virtual time that a user reads before the next question, in milliseconds. Without it, the pod that has just answered
/// would be the idlest one, and balancing by load alone would look like affinity.
const READING: std::ops::Range<u64> = 150..450;
/// Seed of the texts, the same on every run.
const SEED: u64 = 20_250_523;

/// Figures of one side, and the records made while it ran.
#[derive(Debug)]
pub struct SideRun {
    pub side: Side,
    pub evidence: Evidence,
    pub answered: usize,
}

pub async fn run(lab: &Lab<'_>) -> Result<()> {
    lab.fresh(&[]).await?;
    let picked = through(lab, Group::Conversations, (Via::Picker, "8081")).await?;
    check_answers(lab, &picked);
    check_affinity(lab, &picked);
    lab.fresh(&[]).await?;
    let plain = through(lab, Group::Conversations, (Via::Plain, "8080")).await?;
    check_answers(lab, &plain);
    compare(lab, &picked.side, &plain.side)
}

/// Sends all conversations through `via`, and journals the side under `name`.
pub async fn through(lab: &Lab<'_>, group: Group, (via, name): (Via, &str)) -> Result<SideRun> {
    let lab = &lab.section(group, &format!("{CONVERSATIONS} conversations through {name}"));
    let mark = lab.mark();
    let before = lab.counters().await?;
    let sent = join_all((0..CONVERSATIONS).map(|number| converse(lab, group, via, number))).await;
    let after = lab.counters().await?;
    let sides: Vec<ClientSide> = sent.into_iter().flatten().collect();
    let answered = sides.iter().filter(|side| side.error.is_none()).count();
    let evidence = lab.collect(&mark, sides).await?;
    let own = own_pod_turns(&evidence.traces);
    let side = Side {
        name: name.to_owned(),
        ttft_ms: in_order_of_sending(&evidence.traces),
        own_pod_turns: own,
        later_turns: CONVERSATIONS * (TURNS - 1),
        pods: pods(&before, &after, &evidence.traces),
    };
    lab.journal.side(side.clone());
    Ok(SideRun { side, evidence, answered })
}

/// Holds one conversation; it ends early if a turn is not answered.
async fn converse(lab: &Lab<'_>, group: Group, via: Via, number: usize) -> Vec<ClientSide> {
    let model = lab.requests.model();
    let mut conversation = Conversation::new(SEED, number);
    let mut sides = Vec::new();
    lab.pause(STAGGER.mul_f64(load::stats::as_f64(number))).await;
    for turn in 1..=TURNS {
        conversation.ask();
        let request = body(&conversation.request(&model, ANSWER_TOKENS));
        let label = label(number, turn);
        if turn > 1 {
            lab.pause(Duration::from_millis(conversation.draw(READING))).await;
        }
        let answer = lab.send(Shot::new(group, label, via, request)).await;
        sides.push(answer.side);
        match answer.chat {
            Some(chat) if turn < TURNS => conversation.answer(&chat.content),
            Some(_) | None => break,
        }
    }
    sides
}

fn label(number: usize, turn: usize) -> String {
    format!("conversation {}, turn {turn}", number + 1)
}

/// Returns the number of later turns that went to the pod of their conversation's first turn.
fn own_pod_turns(traces: &[RequestTrace]) -> usize {
    let pod_of = |label: &str| {
        traces.iter().find(|trace| trace.client.label == label).and_then(|trace| trace.served_by.as_deref())
    };
    let turns = (0..CONVERSATIONS).flat_map(|number| (2..=TURNS).map(move |turn| (number, turn)));
    turns
        .filter(|(number, turn)| {
            let first = pod_of(&label(*number, 1));
            first.is_some() && first == pod_of(&label(*number, *turn))
        })
        .count()
}

fn in_order_of_sending(traces: &[RequestTrace]) -> Vec<f64> {
    let mut sent: Vec<(f64, f64)> =
        traces.iter().filter_map(|trace| Some((trace.client.sent_at, trace.client.ttft_ms?))).collect();
    sent.sort_by(|a, b| a.0.total_cmp(&b.0));
    sent.into_iter().map(|(_, ttft_ms)| ttft_ms).collect()
}

fn pods(
    before: &BTreeMap<String, CacheCounters>,
    after: &BTreeMap<String, CacheCounters>,
    traces: &[RequestTrace],
) -> Vec<PodCache> {
    after
        .iter()
        .map(|(pod, counters)| PodCache {
            pod: pod.clone(),
            requests: traces.iter().filter(|trace| trace.served_by.as_deref() == Some(pod)).count(),
            tokens: counters.since(before.get(pod).copied().unwrap_or_default()),
        })
        .collect()
}

fn check_answers(lab: &Lab<'_>, side_run: &SideRun) {
    let name = &side_run.side.name;
    lab.check(
        Check::of(
            Group::Conversations,
            format!("{name}/answers"),
            format!("Every turn through {name} is answered"),
        )
        .equal(CONVERSATIONS * TURNS, side_run.answered),
    );
    let told: f64 = side_run
        .evidence
        .traces
        .iter()
        .filter_map(|trace| trace.client.usage)
        .map(|usage| f64::from(usage.cached_tokens()))
        .sum();
    let counted: f64 = side_run.side.pods.iter().map(|pod| pod.tokens.hits).sum();
    let equal = Check::of(
        Group::Conversations,
        format!("{name}/counters"),
        format!("The pods' hit counters equal the cached tokens in the answers through {name}"),
    );
    lab.check(match lab.engine() {
        Engine::Mock => equal.equal(told, counted),
        Engine::Vllm => equal.skipped("a real engine counts a request again for each time it has to wait"),
    });
}

fn check_affinity(lab: &Lab<'_>, side_run: &SideRun) {
    let Side { own_pod_turns, later_turns, .. } = &side_run.side;
    lab.check(
        Check::of(Group::Conversations, "8081/own-pod", "Every later turn on 8081 goes to its own pod")
            .equal(format!("{later_turns} of {later_turns}"), format!("{own_pod_turns} of {later_turns}")),
    );
    let disagreements: Vec<String> =
        side_run.evidence.traces.iter().filter_map(|trace| trace.agreed_pod(lab.engine()).err()).collect();
    lab.check(
        Check::of(
            Group::Conversations,
            "8081/records",
            format!("{} name the same pod for every turn on 8081", lab.engine().witnesses()),
        )
        .equal(0, disagreements.len())
        .detail(disagreements.join("\n")),
    );
    let by_prefix = side_run.evidence.prefix_lines.len();
    lab.check(
        Check::of(Group::Conversations, "8081/log-lines", "The picker logs one line per later turn")
            .equal(*later_turns, by_prefix),
    );
}

fn compare(lab: &Lab<'_>, picked: &Side, plain: &Side) -> Result<()> {
    lab.check(
        Check::of(
            Group::Conversations,
            "8080/spread",
            "Least request does not keep conversations on their pod",
        )
        .holds(
            format!("fewer than {} of {}", plain.later_turns, plain.later_turns),
            plain.own_pod_turns,
            plain.own_pod_turns < plain.later_turns,
        ),
    );
    let hit = |side: &Side| side.hit_ratio().with_context(|| format!("no look-up through {}", side.name));
    let (picked_hit, plain_hit) = (hit(picked)?, hit(plain)?);
    lab.check(
        Check::of(Group::Conversations, "hit-ratio", "The token hit ratio of 8081 beats that of 8080").holds(
            format!("above {:.1} %", plain_hit * 100.0),
            format!("{:.1} %", picked_hit * 100.0),
            picked_hit > plain_hit,
        ),
    );
    let ttft = |side: &Side| side.mean_ttft_ms().with_context(|| format!("no answer through {}", side.name));
    let (picked_ttft, plain_ttft) = (ttft(picked)?, ttft(plain)?);
    lab.check(
        Check::of(
            Group::Conversations,
            "mean-ttft",
            "The mean time to first token of 8081 beats that of 8080",
        )
        .holds(
            format!("below {plain_ttft:.0} ms"),
            format!("{picked_ttft:.0} ms"),
            picked_ttft < plain_ttft,
        ),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{label, own_pod_turns};
    use crate::evidence::join::{RequestTrace, join, tests::client};

    fn served(number: usize, turn: usize, pod: Option<&str>) -> RequestTrace {
        let mut side = client(None);
        side.label = label(number, turn);
        let mut trace = join(vec![side], &[], &[], &[]).remove(0);
        trace.served_by = pod.map(str::to_owned);
        trace
    }

    #[test]
    fn only_turns_on_the_first_turns_pod_count() {
        let traces = [
            served(0, 1, Some("a")),
            served(0, 2, Some("a")),
            served(0, 3, Some("b")),
            served(1, 1, None),
            served(1, 2, None),
            served(2, 2, Some("a")),
        ];
        assert_eq!(own_pod_turns(&traces), 1);
    }
}
