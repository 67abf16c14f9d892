//! Compares round 2 on the pod that answered round 1 with the same request on another pod, without jitter and sent to
//! the pods directly. The difference is the value of a warm cache, and the latency model predicts it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use load::stats::millis;

use crate::check::{Check, Claim, Group};
use crate::conversation::Conversation;
use crate::engine::Engine;
use crate::expectation::idle_ttft;
use crate::requests::{body, salted};
use crate::scenario::lab::{Lab, Shot, Via};

/// Prompt tokens of round 2 in the bash form. Round 1 leaves [`CACHED`] of them in the cache.
const PROMPT: u32 = 228;
const CACHED: u32 = 128;
/// Largest difference between the measured and the modelled gain on a quiet machine, as a share of the modelled one.
const TOLERANCE: f64 = 0.15;
/// The largest difference on a machine that is not quiet, as such a share.
const MAX_NOISE: f64 = 0.45;
/// Tokens that round 1 generates: the first one fills the eighth block, the second one writes it.
const ROUND1_TOKENS: u32 = 2;
/// Least number of pairs. Engines without jitter take the same time for each, and a busy machine only adds to it, so the
/// least of 15 is steady to a fraction of a millisecond while a median is not.
const PAIRS: usize = 15;
/// Number of pairs at which the measurement ends, however noisy it is.
const MAX_PAIRS: usize = 60;
/// Seed of the conversations with engines that are not ours.
const SEED: u64 = 31;
/// Reason why nothing is known of a real engine's cached tokens.
const UNTOLD: &str = "no answer tells cached tokens: vLLM does with --enable-prompt-tokens-details";
/// Largest time scale at which pods are measured side by side; above it, a millisecond of the machine weighs too much.
const SIDE_BY_SIDE_SCALE: f64 = 2.0;

/// Results of the same request on a warm and on a cold pod.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// Number of the turn. Pairs of one turn are measured side by side, and a busy machine adds to all of them.
    pub turn: usize,
    pub warm_ms: f64,
    pub cold_ms: f64,
    pub warm_cached: u32,
    pub cold_cached: u32,
}

/// Returns the milliseconds that `CACHED` tokens of round 2 save by the latency model.
pub fn modelled_gain_ms() -> f64 {
    millis(idle_ttft(PROMPT, 0).saturating_sub(idle_ttft(PROMPT, CACHED)))
}

/// Returns the largest difference between the measured and the modelled gain, in milliseconds: a share of the modelled
/// one, or the run's own noise if that is more. It stays below half of the modelled gain, so that a gain of zero and
/// the modelled one never pass for each other.
pub fn allowed_ms(noise_ms: f64) -> f64 {
    let modelled = modelled_gain_ms();
    (modelled * TOLERANCE).max(noise_ms).min(modelled * MAX_NOISE)
}

pub async fn run(lab: &Lab<'_>) -> Result<()> {
    let [cached_tokens, warm_is_faster, model] = lab.announce([
        Check::of(Group::Latency, "cached-tokens", "Warm pods hold round 1, cold ones nothing"),
        Check::of(Group::Latency, "warm-is-faster", "Round 2 gets its first token sooner on the warm pod"),
        Check::of(
            Group::Latency,
            "model",
            "The gain is what the latency model says, within 15 % or the run's noise",
        ),
    ]);
    match lab.engine() {
        Engine::Mock => lab.fresh(&["--jitter", "0"]).await?,
        Engine::Vllm => lab.fresh(&[]).await?,
    }
    let pairs = measure(lab, Group::Latency).await?;
    check_cached(lab, cached_tokens, &pairs);
    let Gain { warm_ms, cold_ms, gain_ms, noise_ms } = Gain::of(&pairs)?;
    lab.check(warm_is_faster.holds(
        format!("below {cold_ms:.1} ms, the cold pod's"),
        format!("{warm_ms:.1} ms"),
        warm_ms < cold_ms,
    ));
    lab.needs_mock("the times of the latency model")?;
    let (expected, allowed) = (modelled_gain_ms(), allowed_ms(noise_ms));
    lab.check(
        model
            .holds(
                format!("{expected:.1} ms ± {allowed:.1}"),
                format!("{gain_ms:.1} ms"),
                (gain_ms - expected).abs() <= allowed,
            )
            .detail(format!(
                "model: warm {:.1} ms, cold {:.1} ms; seen: warm {warm_ms:.1} ms, cold {cold_ms:.1} ms; virtual time, the least of {} pairs, noise {noise_ms:.1} ms",
                millis(idle_ttft(PROMPT, CACHED)),
                millis(idle_ttft(PROMPT, 0)),
                pairs.len(),
            )),
    );
    Ok(())
}

/// Checks the cached tokens of each pair, if answers tell them.
fn check_cached(lab: &Lab<'_>, claim: Claim, pairs: &[Pair]) {
    let cached: Vec<_> = pairs.iter().map(|pair| (pair.warm_cached, pair.cold_cached)).collect();
    let are_enough = cached.len() >= PAIRS;
    lab.check(match lab.engine() {
        Engine::Mock => claim.holds(
            format!("{CACHED} and 0 cached tokens in each of {} pairs", cached.len()),
            distinct(&cached),
            are_enough && cached.iter().all(|pair| *pair == (CACHED, 0)),
        ),
        Engine::Vllm if cached.iter().all(|pair| *pair == (0, 0)) => claim.skipped(UNTOLD),
        Engine::Vllm => claim.holds(
            format!("more on the warm pod in each of {} pairs", cached.len()),
            distinct(&cached),
            are_enough && cached.iter().all(|(warm, cold)| warm > cold),
        ),
    });
}

/// The least time of each kind over all pairs, their difference, and its noise: the most by which the least of every
/// second turn differs from that of the others.
#[derive(Debug)]
pub struct Gain {
    pub warm_ms: f64,
    pub cold_ms: f64,
    pub gain_ms: f64,
    pub noise_ms: f64,
}

impl Gain {
    pub fn of(pairs: &[Pair]) -> Result<Self> {
        let (even, odd): (Vec<&Pair>, Vec<&Pair>) = pairs.iter().partition(|pair| pair.turn % 2 == 0);
        let least = |value: fn(&Pair) -> f64| {
            let of = |half: &[&Pair]| half.iter().map(|pair| value(pair)).min_by(f64::total_cmp);
            let (even, odd) = of(&even).zip(of(&odd)).context("no two turns were measured")?;
            anyhow::Ok((even.min(odd), (even - odd).abs()))
        };
        let ((warm_ms, warm_noise), (cold_ms, cold_noise)) =
            (least(|pair| pair.warm_ms)?, least(|pair| pair.cold_ms)?);
        Ok(Self { warm_ms, cold_ms, gain_ms: cold_ms - warm_ms, noise_ms: warm_noise.max(cold_noise) })
    }
}

/// Measures pairs until their noise is small. Each has its own salt, so that a pod is warm for one pair only. Whether the
/// warm or the cold pod comes first alternates.
pub async fn measure(lab: &Lab<'_>, group: Group) -> Result<Vec<Pair>> {
    lab.needs_pods(2)?;
    let pods: Vec<SocketAddr> = lab.cluster.pods().iter().map(|pod| pod.address).collect();
    let lanes = if lab.time_scale > SIDE_BY_SIDE_SCALE { 1 } else { pods.len() };
    let mark = lab.mark();
    let (mut pairs, mut sides): (Vec<Pair>, Vec<_>) = (Vec::new(), Vec::new());
    // The noise of other engines has no model that it could hide.
    let may_go_on =
        |pairs: &[Pair]| lab.engine() == Engine::Mock && is_noisy(pairs) && pairs.len() < MAX_PAIRS;
    while pairs.len() < PAIRS || may_go_on(&pairs) {
        let numbers = pairs.len()..pairs.len() + lanes;
        let turn = numbers.start / lanes;
        // Send one request at a time to each pod: all warm up together, then all measure their first request, then
        // their second.
        let first = numbers.clone().map(|number| send(lab, group, (number, 1), pods[number % pods.len()]));
        sides.extend(try_join_all(first).await?.into_iter().map(|answer| answer.side));
        let mut measured = Vec::new();
        let warm_first = turn % 2 == 0;
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
            turn,
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

/// True if noise could hide a difference that is not allowed on a quiet machine.
fn is_noisy(pairs: &[Pair]) -> bool {
    Gain::of(pairs).is_ok_and(|gain| gain.noise_ms > modelled_gain_ms() * TOLERANCE / 2.0)
}

struct Sent {
    ttft_ms: f64,
    cached: u32,
    side: crate::evidence::join::ClientSide,
}

async fn send(lab: &Lab<'_>, group: Group, (pair, round): (usize, u32), pod: SocketAddr) -> Result<Sent> {
    let request = match lab.engine() {
        Engine::Mock => of_tutorial(lab, (pair, round))?,
        Engine::Vllm => body(&long(pair, round).request(&lab.requests.model(), ROUND1_TOKENS)),
    };
    let shot = Shot::new(group, format!("pair {pair}, round {round}"), Via::Pod(pod), request);
    let answer = lab.send(shot).await;
    let verdict = answer.verdict();
    let ttft_ms = answer.side.ttft_ms.with_context(|| format!("pair {pair}, round {round}: {verdict}"))?;
    Ok(Sent { ttft_ms, cached: answer.cached_tokens().unwrap_or_default(), side: answer.side })
}

/// Returns a request of the tutorial's with a salt of its pair.
fn of_tutorial(lab: &Lab<'_>, (pair, round): (usize, u32)) -> Result<Bytes> {
    let mut request = lab.requests.bash_json(round)?;
    if round == 1 {
        request["max_tokens"] = ROUND1_TOKENS.into();
    }
    Ok(salted(&request, &format!("pair-{pair}")))
}

/// Returns a round of a conversation of its pair alone, so long that any GPU takes a while for it. Engines that know no
/// salts, such as vLLM 0.8.5, share no block of it with other pairs but the first.
fn long(pair: usize, round: u32) -> Conversation {
    let mut conversation = Conversation::new(SEED, pair);
    conversation.ask();
    for _ in 1..round {
        conversation.answer("Nobody does.");
        conversation.ask();
    }
    conversation
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
    use super::{Gain, Pair, allowed_ms, distinct, is_noisy, modelled_gain_ms};

    #[test]
    fn the_model_values_128_cached_tokens() {
        // Computed by hand: a step takes 82.9 ms for 228 new tokens and 56.0 ms for 100.
        assert!((modelled_gain_ms() - 26.9).abs() < 0.5, "{}", modelled_gain_ms());
    }

    #[test]
    fn the_gain_is_the_difference_of_the_least() {
        let pair = |turn: usize, warm_ms: f64, cold_ms: f64| Pair {
            turn,
            warm_ms,
            cold_ms,
            warm_cached: 128,
            cold_cached: 0,
        };
        let pairs = [pair(0, 100.0, 120.0), pair(1, 101.0, 151.0), pair(2, 90.0, 112.0)];
        let gain = Gain::of(&pairs).unwrap();
        assert_eq!((gain.warm_ms, gain.cold_ms, gain.gain_ms, gain.noise_ms), (90.0, 112.0, 22.0, 39.0));
        assert!(is_noisy(&pairs));
        // Time that a busy machine adds to all pairs of a turn is noise as well.
        let together = [pair(0, 104.0, 104.0), pair(0, 104.0, 104.0), pair(1, 100.0, 108.0)];
        assert!((Gain::of(&together).unwrap().noise_ms - 4.0).abs() < f64::EPSILON);
        let quiet = [pair(0, 100.0, 120.0), pair(1, 100.5, 120.0)];
        assert!(!is_noisy(&quiet));
        assert!(Gain::of(&[]).is_err() && Gain::of(&quiet[..1]).is_err());
    }

    #[test]
    fn noise_widens_what_is_allowed_but_never_hides_a_gain() {
        let quiet = allowed_ms(0.0);
        assert!((quiet - 4.0).abs() < 0.1, "{quiet}");
        assert!((allowed_ms(5.0) - 5.0).abs() < f64::EPSILON);
        assert!(
            2.0 * allowed_ms(1000.0) < modelled_gain_ms(),
            "one gain cannot be both none and the modelled one"
        );
    }

    #[test]
    fn counts_of_pairs_are_grouped() {
        assert_eq!(distinct(&[(128, 0), (128, 0), (112, 0)]), "128 and 0 in 2 pairs, 112 and 0 in 1 pairs");
    }
}
