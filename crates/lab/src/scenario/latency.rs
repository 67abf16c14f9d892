//! Compares round 2 on the pod that answered round 1 with the same request on another pod, without jitter and sent to
//! the pods directly. The difference is the value of a warm cache, and the latency model predicts it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use load::stats::millis;

use crate::check::{Check, Group};
use crate::expectation::idle_ttft;
use crate::requests::salted;
use crate::scenario::lab::{Lab, Shot, Via};

/// Prompt tokens of round 2 in the bash form. Round 1 leaves [`CACHED`] of them in the cache.
const PROMPT: u32 = 228;
const CACHED: u32 = 128;
/// Largest difference between the measured and the modelled gain, as a share of the modelled one.
pub const TOLERANCE: f64 = 0.15;
/// Tokens that round 1 generates: the first one fills the eighth block, the second one writes it.
const ROUND1_TOKENS: u32 = 2;
/// Number of pairs. Engines without jitter take the same time for each, and a busy machine only adds to it, so the
/// least of 15 is steady to a fraction of a millisecond while a median is not.
const PAIRS: usize = 15;
/// Largest time scale at which pods are measured side by side; above it, a millisecond of the machine weighs too much.
const SIDE_BY_SIDE_SCALE: f64 = 2.0;

/// Results of the same request on a warm and on a cold pod.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    pub warm_ms: f64,
    pub cold_ms: f64,
    pub warm_cached: u32,
    pub cold_cached: u32,
}

/// Returns the milliseconds that `CACHED` tokens of round 2 save by the latency model.
pub fn modelled_gain_ms() -> f64 {
    millis(idle_ttft(PROMPT, 0).saturating_sub(idle_ttft(PROMPT, CACHED)))
}

pub async fn run(lab: &Lab<'_>) -> Result<()> {
    let [cached_tokens, warm_is_faster, model] = lab.announce([
        Check::of(Group::Latency, "cached-tokens", "Warm pods hold round 1, cold ones nothing"),
        Check::of(Group::Latency, "warm-is-faster", "Round 2 gets its first token sooner on the warm pod"),
        Check::of(Group::Latency, "model", "The gain is what the latency model says, within 15 %"),
    ]);
    lab.fresh(&["--jitter", "0"]).await?;
    let pairs = measure(lab, Group::Latency).await?;
    let cached: Vec<_> = pairs.iter().map(|pair| (pair.warm_cached, pair.cold_cached)).collect();
    lab.check(cached_tokens.holds(
        format!("{CACHED} and 0 cached tokens in each of {PAIRS} pairs"),
        distinct(&cached),
        cached.len() == PAIRS && cached.iter().all(|pair| *pair == (CACHED, 0)),
    ));
    let Gain { warm_ms, cold_ms, gain_ms } = Gain::of(&pairs)?;
    lab.check(warm_is_faster.holds(
        format!("below {cold_ms:.1} ms, the cold pod's"),
        format!("{warm_ms:.1} ms"),
        warm_ms < cold_ms,
    ));
    let expected = modelled_gain_ms();
    lab.check(
        model
            .holds(
                format!("{expected:.1} ms ± {:.1}", expected * TOLERANCE),
                format!("{gain_ms:.1} ms"),
                (gain_ms - expected).abs() <= expected * TOLERANCE,
            )
            .detail(format!(
                "model: warm {:.1} ms, cold {:.1} ms; seen: warm {warm_ms:.1} ms, cold {cold_ms:.1} ms; virtual time, the least of {PAIRS} pairs",
                millis(idle_ttft(PROMPT, CACHED)),
                millis(idle_ttft(PROMPT, 0)),
            )),
    );
    Ok(())
}

/// The least time of each kind over all pairs, and their difference.
#[derive(Debug)]
pub struct Gain {
    pub warm_ms: f64,
    pub cold_ms: f64,
    pub gain_ms: f64,
}

impl Gain {
    pub fn of(pairs: &[Pair]) -> Result<Self> {
        let least = |value: &dyn Fn(&Pair) -> f64| {
            pairs.iter().map(value).min_by(f64::total_cmp).context("no pair was measured")
        };
        let (warm_ms, cold_ms) = (least(&|pair| pair.warm_ms)?, least(&|pair| pair.cold_ms)?);
        Ok(Self { warm_ms, cold_ms, gain_ms: cold_ms - warm_ms })
    }
}

/// Measures all pairs. Each has its own salt, so that a pod is warm for one pair only. Whether the warm or the cold pod
/// comes first alternates.
pub async fn measure(lab: &Lab<'_>, group: Group) -> Result<Vec<Pair>> {
    lab.needs_pods(2)?;
    let pods: Vec<SocketAddr> = lab.cluster.pods().iter().map(|pod| pod.address).collect();
    let lanes = if lab.time_scale > SIDE_BY_SIDE_SCALE { 1 } else { pods.len() };
    let mark = lab.mark();
    let (mut pairs, mut sides) = (Vec::new(), Vec::new());
    while pairs.len() < PAIRS {
        let numbers = pairs.len()..(pairs.len() + lanes).min(PAIRS);
        // Send one request at a time to each pod: all warm up together, then all measure their first request, then
        // their second.
        let first = numbers.clone().map(|number| send(lab, group, (number, 1), pods[number % pods.len()]));
        sides.extend(try_join_all(first).await?.into_iter().map(|answer| answer.side));
        let mut measured = Vec::new();
        let warm_first = numbers.start / lanes % 2 == 0;
        for warm in [warm_first, !warm_first] {
            let offset = usize::from(!warm);
            let shots = numbers
                .clone()
                .map(|number| send(lab, group, (number, 2), pods[(number + offset) % pods.len()]));
            measured.push((warm, try_join_all(shots).await?));
        }
        measured.sort_by_key(|(warm, _)| !warm);
        let [(_, warm), (_, cold)] = measured.as_slice() else { continue };
        pairs.extend(warm.iter().zip(cold).map(|(warm, cold)| Pair {
            warm_ms: warm.ttft_ms,
            cold_ms: cold.ttft_ms,
            warm_cached: warm.cached,
            cold_cached: cold.cached,
        }));
        sides.extend(measured.into_iter().flat_map(|(_, sent)| sent).map(|sent| sent.side));
        lab.pause(Duration::from_millis(20)).await;
    }
    lab.collect(&mark, sides).await?;
    Ok(pairs)
}

struct Sent {
    ttft_ms: f64,
    cached: u32,
    side: crate::evidence::join::ClientSide,
}

async fn send(lab: &Lab<'_>, group: Group, (pair, round): (usize, u32), pod: SocketAddr) -> Result<Sent> {
    let mut request = lab.requests.bash_json(round)?;
    if round == 1 {
        request["max_tokens"] = ROUND1_TOKENS.into();
    }
    let shot = Shot::new(
        group,
        format!("pair {pair}, round {round}"),
        Via::Pod(pod),
        salted(&request, &format!("pair-{pair}")),
    );
    let answer = lab.send(shot).await;
    let verdict = answer.verdict();
    let ttft_ms = answer.side.ttft_ms.with_context(|| format!("pair {pair}, round {round}: {verdict}"))?;
    Ok(Sent { ttft_ms, cached: answer.cached_tokens().unwrap_or_default(), side: answer.side })
}

/// Returns a text such as `128/0 (15 times)`, for messages.
fn distinct(cached: &[(u32, u32)]) -> String {
    let mut seen: Vec<((u32, u32), usize)> = Vec::new();
    for pair in cached {
        match seen.iter_mut().find(|(known, _)| known == pair) {
            Some((_, times)) => *times += 1,
            None => seen.push((*pair, 1)),
        }
    }
    let parts: Vec<String> =
        seen.iter().map(|((warm, cold), times)| format!("{warm} and {cold} in {times} pairs")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::{Gain, Pair, distinct, modelled_gain_ms};

    #[test]
    fn the_model_values_128_cached_tokens() {
        // Computed by hand: a step takes 82.9 ms for 228 new tokens and 56.0 ms for 100.
        assert!((modelled_gain_ms() - 26.9).abs() < 0.5, "{}", modelled_gain_ms());
    }

    #[test]
    fn the_gain_is_the_difference_of_the_least() {
        let pair = |warm_ms: f64, cold_ms: f64| Pair { warm_ms, cold_ms, warm_cached: 128, cold_cached: 0 };
        let gain = Gain::of(&[pair(100.0, 120.0), pair(101.0, 151.0), pair(90.0, 112.0)]).unwrap();
        assert_eq!((gain.warm_ms, gain.cold_ms, gain.gain_ms), (90.0, 112.0, 22.0));
        assert!(Gain::of(&[]).is_err());
    }

    #[test]
    fn counts_of_pairs_are_grouped() {
        assert_eq!(distinct(&[(128, 0), (128, 0), (112, 0)]), "128 and 0 in 2 pairs, 112 and 0 in 1 pairs");
    }
}
