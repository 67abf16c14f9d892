//! Streams that run past the picker: the time between their tokens while it hangs for a moment, and the requests that it
//! counts while they run and when their users hang up.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::future::{join_all, try_join_all};
use gateway_config::attachment::Responses;
use load::stats::{millis, quantile};
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use tokio::time::{sleep, timeout};

use crate::check::{Check, Group};
use crate::cluster::Fresh;
use crate::cluster::fault::Fault;
use crate::in_flight::InFlight;
use crate::requests::body;
use crate::scenario::lab::{Answer, LITTLE_PATIENCE, Lab, MIDWAY, Shot, Via};
use crate::scenario::{part, texts};

/// Streams of each kind that run at the same time.
const STREAMS: u32 = 16;
/// Tokens of a stream whose tokens are timed.
const TIMED_TOKENS: u32 = 200;
/// Time for which the picker hangs: far more than between two tokens, and less than Envoy waits for a silent picker.
const PAUSE: Duration = Duration::from_secs(2);
/// Time within which a token leaves a pod after it is due. A difference below it is noise.
const PUNCTUALITY: Duration = Duration::from_millis(2);
/// Ways in which the streams of one path are divided to see its noise. A greater difference than in all of them comes by
/// chance once in so many runs.
const DIVISIONS: usize = 200;
/// Tokens of a stream that runs while requests are counted.
const LONG_TOKENS: u32 = 4000;
/// Users who hang up, and the virtual time by which each does so later than the one before.
const HANG_UPS: u32 = 20;
const HANG_UP_EVERY: Duration = Duration::from_millis(50);
/// Arguments of pods that never seem to be without requests.
const BUSY: [&str; 2] = ["--fault", "metrics-lie:metric=waiting,value=100"];
/// Metric of the requests whose end a picker did not learn from Envoy.
const UNREPORTED: &str = "epp_unreported_responses_total";

pub async fn run(lab: &Lab<'_>) {
    part(lab, Group::Faults, "picker paused under streams", paused).await;
    part(lab, Group::Faults, "requests in flight", counted).await;
    part(lab, Group::Faults, "users hang up at the pick", hung_up_at_the_pick).await;
}

fn shot(lab: &Lab<'_>, label: &str, via: Via, (number, n_tokens): (u32, u32)) -> Shot {
    let text = format!("{label}, {} {number}: a long story, please.", via.name());
    let request = texts::long_chat(&lab.requests.model(), &text, n_tokens);
    Shot::new(Group::Faults, format!("{label} {number}"), via, body(&request))
}

/// Milliseconds between two tokens of each stream.
struct Gaps {
    /// Through 8080, twice as many streams as through 8081.
    plain: Vec<Vec<f64>>,
    /// Through 8081.
    picker: Vec<Vec<f64>>,
}

impl Gaps {
    /// Returns the quantile of 8081, and the most that it may be: that of 8080, and the noise of 8080 against itself, but
    /// at least `least_noise`.
    fn quantile(&self, q: f64, least_noise: Duration) -> Result<(f64, f64)> {
        let Self { plain, picker } = self;
        let noise = noise(plain, q)?.max(millis(least_noise));
        Ok((at(picker, q)?, at(plain, q)? + noise))
    }
}

/// The quantile of the gaps of these streams.
fn at(streams: &[Vec<f64>], q: f64) -> Result<f64> {
    quantile(&streams.concat(), q).context("no stream has two tokens")
}

/// The greatest difference between two halves of these streams, however they are divided.
fn noise(streams: &[Vec<f64>], q: f64) -> Result<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut streams = streams.to_vec();
    let mut most = 0.0_f64;
    for _ in 0..DIVISIONS {
        streams.shuffle(&mut rng);
        let (one, other) = streams.split_at(streams.len() / 2);
        most = most.max((at(one, q)? - at(other, q)?).abs());
    }
    Ok(most)
}

/// The picker hangs for a moment while streams run on both ports at the same time.
async fn paused(lab: &Lab<'_>) -> Result<()> {
    let [p50, p99, longest, control] = lab.announce([
        Check::of_faults(
            "picker-paused/p50",
            "While the picker hangs, half of the tokens come on 8081 about as soon as on 8080",
        ),
        Check::of_faults(
            "picker-paused/p99",
            "While the picker hangs, 99 % of the tokens come on 8081 about as soon as on 8080",
        ),
        Check::of_faults("picker-paused/longest", "While the picker hangs, no token waits for it"),
        Check::of_faults(
            "picker-paused/control",
            "Tokens that go through the picker wait for it when it hangs",
        ),
    ]);
    lab.cluster.can(&Fault::HangPickers)?;
    let past = gaps(lab, Responses::default()).await?;
    // The longest wait of a busy machine is a matter of luck.
    let part_of_pause = PAUSE / 4;
    for (claim, q, noise) in
        [(p50, 0.5, PUNCTUALITY), (p99, 0.99, PUNCTUALITY), (longest, 1.0, part_of_pause)]
    {
        let (picker, most) = past.quantile(q, noise)?;
        let seen = format!("{picker:.1} ms between two tokens");
        lab.check(claim.holds(format!("at most {most:.1} ms"), seen, picker <= most));
    }
    let (picker, most) = gaps(lab, Responses::Through).await?.quantile(1.0, part_of_pause)?;
    lab.check(control.holds(format!("more than {most:.1} ms"), format!("{picker:.1} ms"), picker > most));
    Ok(())
}

async fn gaps(lab: &Lab<'_>, responses: Responses) -> Result<Gaps> {
    lab.start_anew(Fresh { responses: Some(responses), ..Fresh::default() }).await?;
    let streams = async |via: Via, n_streams: u32| {
        let label = format!("{responses} responses, {}", via.name());
        let send = async |number| {
            let answer = lab.send(shot(lab, &label, via, (number, TIMED_TOKENS))).await;
            let chat = answer.chat.as_ref().with_context(|| format!("{label}: {}", answer.verdict()))?;
            anyhow::Ok(chat.gaps.iter().copied().map(millis).collect::<Vec<f64>>())
        };
        try_join_all((0..n_streams).map(send)).await
    };
    let pause = async {
        lab.pause(MIDWAY).await;
        lab.cluster.inflict(&Fault::HangPickers).await?;
        sleep(PAUSE).await;
        lab.cluster.end(&Fault::HangPickers).await
    };
    let (plain, picker) = (streams(Via::Plain, 2 * STREAMS), streams(Via::Picker, STREAMS));
    let (plain, picker, ()) = tokio::try_join!(plain, picker, pause)?;
    Ok(Gaps { plain, picker })
}

/// The picker and the pods count the same requests while streams run, after users hung up, a pod died, and the picker was
/// killed and replaced. The control loses the reports of streams that end.
async fn counted(lab: &Lab<'_>) -> Result<()> {
    let [running, over, control] = lab.announce([
        Check::of_faults("in-flight/running", "The picker counts as many streams to each pod as it has"),
        Check::of_faults("in-flight/over", "After the streams the picker counts none"),
        Check::of_faults("in-flight/control", "A picker whose reports are lost counts streams that are over"),
    ]);
    lab.needs_pods(2)?;
    let picker_args = LITTLE_PATIENCE.map(str::to_owned).to_vec();
    lab.start_anew(Fresh { responses: Some(Responses::default()), picker_args, ..Fresh::default() }).await?;
    let one = lab.cluster.status().pickers.first().context("there is no picker")?.name.clone();
    disturb(lab, &one).await?;
    let found = while_streams_run(lab, async || InFlight::with(lab.cluster, STREAMS.into()).await).await?;
    let expected = |n_streams: u32| format!("{n_streams} requests, 0 pods with another count");
    lab.check(running.equal(expected(STREAMS), summary(&found)).detail(found.differences().join("\n")));
    let found = InFlight::with(lab.cluster, 0).await?;
    lab.check(over.equal(expected(0), summary(&found)).detail(found.differences().join("\n")));
    lab.cluster.can(&Fault::LoseMessages)?;
    let responses = Some(Responses::default());
    lab.start_anew(Fresh { responses, relayed: true, ..Fresh::default() }).await?;
    let told = while_streams_run(lab, async || {
        let found = InFlight::with(lab.cluster, STREAMS.into()).await?;
        lab.cluster.inflict(&Fault::LoseMessages).await.map(|()| found)
    });
    let told = told.await?;
    let found = InFlight::at_pods(lab.cluster, 0).await?;
    lab.check(control.holds(
        format!("{}, then other counts", expected(STREAMS)),
        format!("{}, then {}", summary(&told), summary(&found)),
        told.differences().is_empty() && !found.differences().is_empty(),
    ));
    lab.cluster.end(&Fault::LoseMessages).await
}

/// Users hang up when the picker has picked, and before Envoy has the answer with the ticket: Envoy tells of their
/// requests by their ids, and pods that seem busy tell nothing. The control loses what Envoy tells.
async fn hung_up_at_the_pick(lab: &Lab<'_>) -> Result<()> {
    let [told, control] = lab.announce([
        Check::of_faults(
            "hung-up-at-the-pick/told",
            "Envoy tells the picker of requests whose users hang up before it has the answer",
        ),
        Check::of_faults("hung-up-at-the-pick/control", "A picker that is not told must ask the engines"),
    ]);
    lab.cluster.can(&Fault::HoldAnswers)?;
    for (claim, engine_args, n_unreported) in [(told, &BUSY[..], 0), (control, &[], STREAMS)] {
        let engine_args = engine_args.iter().copied().map(str::to_owned).collect();
        let responses = Some(Responses::default());
        lab.start_anew(Fresh { engine_args, responses, relayed: true, ..Fresh::default() }).await?;
        lab.cluster.inflict(&Fault::HoldAnswers).await?;
        let counted = while_streams_run(lab, async || {
            let counted = InFlight::at_pickers(lab.cluster, STREAMS.into()).await?;
            if n_unreported > 0 {
                lab.cluster.inflict(&Fault::LoseMessages).await?;
            }
            Ok(counted)
        });
        let counted = counted.await?.n_counted();
        let left = InFlight::at_pickers(lab.cluster, 0).await?.n_counted();
        let seen = lab.picker_metric(UNREPORTED).await?;
        lab.check(claim.equal(
            format!("{STREAMS} requests, then 0, of which {n_unreported} ended without news"),
            format!("{counted} requests, then {left}, of which {seen} ended without news"),
        ));
        lab.cluster.end(&Fault::HoldAnswers).await?;
    }
    Ok(())
}

/// Looks while streams run that are longer than any look. Then all of their users hang up.
async fn while_streams_run(lab: &Lab<'_>, look: impl AsyncFnOnce() -> Result<InFlight>) -> Result<InFlight> {
    let streams =
        (0..STREAMS).map(|number| lab.send(shot(lab, "counted stream", Via::Picker, (number, LONG_TOKENS))));
    tokio::select! {
        answers = join_all(streams) => {
            let verdicts: Vec<String> = answers.iter().map(Answer::verdict).collect();
            bail!("the streams ended before they were counted: {}", verdicts.join(", "));
        }
        found = look() => found,
    }
}

fn summary(found: &InFlight) -> String {
    format!("{} requests, {} pods with another count", found.n_requests(), found.differences().len())
}

/// Users hang up at different times, while a pod is killed; then the picker is killed, and replaced.
async fn disturb(lab: &Lab<'_>, picker: &str) -> Result<()> {
    let users = (0..HANG_UPS).map(|number| {
        let answer = lab.send(shot(lab, "user who hangs up", Via::Picker, (number, LONG_TOKENS)));
        timeout((HANG_UP_EVERY * number).div_f64(lab.time_scale), answer)
    });
    let victim = lab.cluster.pods().first().context("there is no pod")?.name.clone();
    let kill = async {
        lab.pause(HANG_UP_EVERY * HANG_UPS / 2).await;
        lab.cluster.inflict(&Fault::KillPod(victim)).await
    };
    let (_, killed) = tokio::join!(join_all(users), kill);
    killed?;
    for fault in [Fault::KillPicker(picker.to_owned()), Fault::ReplacePicker(picker.to_owned())] {
        lab.cluster.inflict(&fault).await?;
        lab.cluster.end(&fault).await?;
    }
    lab.cluster.settled().await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha8Rng;

    use super::Gaps;

    /// Streams of 200 tokens, with gaps from 40 to 50 ms; one in so many is 100 ms longer.
    fn streams(n_streams: usize, seed: u64, slower_by: f64) -> Vec<Vec<f64>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut gap = || {
            let stall = if rng.random_ratio(1, 50) { 100.0 } else { 0.0 };
            rng.random_range(40.0..50.0) + stall + slower_by
        };
        (0..n_streams).map(|_| (0..200).map(|_| gap()).collect()).collect()
    }

    #[test]
    fn only_what_is_slower_than_the_noise_is_late() {
        for seed in 0..3 {
            let plain = streams(32, seed, 0.0);
            for (slower_by, is_late) in [(0.0, false), (20.0, true)] {
                let gaps = Gaps { plain: plain.clone(), picker: streams(16, seed + 100, slower_by) };
                for q in [0.5, 0.99] {
                    let (picker, most) = gaps.quantile(q, Duration::ZERO).unwrap();
                    assert_eq!(picker > most, is_late, "{seed} {q}: {picker} {most}");
                }
            }
        }
    }

    #[test]
    fn a_difference_below_the_least_noise_is_none() {
        let gaps = Gaps { plain: vec![vec![40.0; 200]; 32], picker: vec![vec![41.0; 200]; 16] };
        for (least_noise, is_late) in [(2, false), (0, true)] {
            let (picker, most) = gaps.quantile(0.5, Duration::from_millis(least_noise)).unwrap();
            assert_eq!(picker > most, is_late);
        }
    }
}
