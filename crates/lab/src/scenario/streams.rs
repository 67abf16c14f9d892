//! Streams that run past the picker: the time between their tokens while it hangs for a moment, and the requests that it
//! counts while they run.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::future::{join_all, try_join_all};
use gateway_config::attachment::Responses;
use load::stats::{millis, quantile};
use tokio::time::{sleep, timeout};

use crate::check::{Check, Claim, Group};
use crate::cluster::Fresh;
use crate::cluster::fault::Fault;
use crate::in_flight::InFlight;
use crate::requests::body;
use crate::scenario::lab::{Answer, Lab, Shot, Via};
use crate::scenario::{part, texts};

/// Streams of each kind that run at the same time.
const STREAMS: u32 = 16;
/// Tokens of a stream whose tokens are timed.
const TIMED_TOKENS: u32 = 200;
/// Virtual time from the requests to the fault. A pod generates 25 to 45 tokens per second.
const MIDWAY: Duration = Duration::from_secs(1);
/// Time for which the picker hangs: far more than between two tokens, and less than Envoy waits for a silent picker.
const PAUSE: Duration = Duration::from_secs(2);
/// Least difference between two paths that is not noise, as a share of the time between two tokens.
const NOISE: f64 = 0.5;
/// Tokens of a stream that runs while requests are counted.
const LONG_TOKENS: u32 = 4000;
/// Users who hang up, and the virtual time by which each does so later than the one before.
const HANG_UPS: u32 = 20;
const HANG_UP_EVERY: Duration = Duration::from_millis(50);

/// Arguments of a picker that does not wait for its streams when it is replaced.
const LITTLE_PATIENCE: [&str; 2] = ["--grace-period", "10ms"];

pub async fn run(lab: &Lab<'_>) {
    part(lab, Group::Faults, "picker paused under streams", paused).await;
    part(lab, Group::Faults, "requests in flight", counted).await;
}

fn claim(name: &str, title: &str) -> Claim {
    Check::of(Group::Faults, name, title)
}

fn shot(lab: &Lab<'_>, label: &str, via: Via, (number, n_tokens): (u32, u32)) -> Shot {
    let text = format!("{label}, {} {number}: a long story, please.", via.name());
    let mut request = texts::chat(&lab.requests.model(), &text);
    request["max_tokens"] = n_tokens.into();
    request["min_tokens"] = n_tokens.into();
    Shot::new(Group::Faults, format!("{label} {number}"), via, body(&request))
}

/// Milliseconds between two tokens: through 8080, through 8080 as well, and through 8081.
struct Gaps {
    plain: Vec<f64>,
    again: Vec<f64>,
    picker: Vec<f64>,
}

impl Gaps {
    /// Returns the quantile of 8081, and the most that it may be: that of 8080, and the noise of 8080 against itself, but
    /// at least `least_noise`.
    fn quantile(&self, q: f64, least_noise: Duration) -> Result<(f64, f64)> {
        let Self { plain, again, picker } = self;
        let at = |gaps: &[f64]| quantile(gaps, q).context("no stream has two tokens");
        let (plain, again) = (at(plain)?, at(again)?);
        let most = plain.max(again);
        let noise = (plain - again).abs().max(NOISE * most).max(millis(least_noise));
        Ok((at(picker)?, most + noise))
    }
}

/// The picker hangs for a moment while streams run on both ports at the same time.
async fn paused(lab: &Lab<'_>) -> Result<()> {
    let [p50, p99, longest, control] = lab.announce([
        claim(
            "picker-paused/p50",
            "While the picker hangs, half of the tokens come on 8081 about as soon as on 8080",
        ),
        claim(
            "picker-paused/p99",
            "While the picker hangs, 99 % of the tokens come on 8081 about as soon as on 8080",
        ),
        claim("picker-paused/longest", "While the picker hangs, no token waits for it"),
        claim("picker-paused/control", "Tokens that go through the picker wait for it when it hangs"),
    ]);
    lab.cluster.can(&Fault::HangPickers)?;
    let past = gaps(lab, Responses::default()).await?;
    // The longest wait of a busy machine is a matter of luck.
    let part_of_pause = PAUSE / 4;
    for (claim, q, noise) in
        [(p50, 0.5, Duration::ZERO), (p99, 0.99, Duration::ZERO), (longest, 1.0, part_of_pause)]
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
    let series = [Via::Plain, Via::Plain, Via::Picker];
    let series = series.into_iter().zip(["8080", "8080 again", "8081"]).map(|(via, name)| async move {
        let label = format!("{responses} responses, {name}");
        let send = async |number| {
            let answer = lab.send(shot(lab, &label, via, (number, TIMED_TOKENS))).await;
            let chat = answer.chat.as_ref().with_context(|| format!("{label}: {}", answer.verdict()))?;
            anyhow::Ok(chat.gaps.iter().copied().map(millis).collect::<Vec<f64>>())
        };
        anyhow::Ok(try_join_all((0..STREAMS).map(send)).await?.concat())
    });
    let pause = async {
        lab.pause(MIDWAY).await;
        lab.cluster.inflict(&Fault::HangPickers).await?;
        sleep(PAUSE).await;
        lab.cluster.end(&Fault::HangPickers).await
    };
    let (found, ()) = tokio::try_join!(try_join_all(series), pause)?;
    let [plain, again, picker] = found.try_into().ok().context("three series")?;
    Ok(Gaps { plain, again, picker })
}

/// The picker and the pods count the same requests while streams run, after users hung up, a pod died, and the picker was
/// killed and replaced. The control loses the reports of streams that end.
async fn counted(lab: &Lab<'_>) -> Result<()> {
    let [running, over, control] = lab.announce([
        claim("in-flight/running", "The picker counts as many streams to each pod as it has"),
        claim("in-flight/over", "After the streams the picker counts none"),
        claim("in-flight/control", "A picker whose reports are lost counts streams that are over"),
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
