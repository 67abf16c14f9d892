//! Negative controls: the effects that the other scenarios check disappear when their cause does.

use anyhow::{Context as _, Result};

use crate::check::{Check, Claim, Group};
use crate::conversation::Conversation;
use crate::requests::{Form, body};
use crate::scenario::conversations::{SideRun, through};
use crate::scenario::lab::{GOOD, Lab, Shot, Via};
use crate::scenario::latency::{Gain, allowed_ms, measure, modelled_gain_ms};
use crate::scenario::precise::ANNOTATION;
use crate::scenario::{part, texts};

/// Empty annotations in its place: the pool stays valid and loses its strategy.
const NO_ANNOTATION: &str = "{} # no strategy";
/// Header with which a client would choose its pod.
const DESTINATION: &str = "x-gateway-destination-endpoint";
/// Largest difference from 8080's hit ratio without the annotation. Both sides choose pods by chance, 100 times each.
const NEAR: f64 = 0.15;

pub async fn run(lab: &Lab<'_>) {
    let group = Group::Controls;
    part(lab, group, "round 2 first", round_two_first).await;
    part(lab, group, "annotation removed live", without_annotation).await;
    part(lab, group, "prefix caching off", without_cache).await;
}

fn claim(name: &str, title: &str) -> Claim {
    Check::of(Group::Controls, name, title)
}

/// Three controls that share a new cluster; they do not disturb each other, because their texts share no prefix.
async fn round_two_first(lab: &Lab<'_>) -> Result<()> {
    lab.fresh(&[]).await?;
    let mark = lab.mark();
    let body = lab.requests.curl(Form::Bash, 2)?;
    let answer = lab.send(Shot::new(Group::Controls, "round 2 first", Via::Picker, body)).await;
    lab.check(
        claim("round2-first/answer", "Round 2 without a round 1 is answered")
            .equal(GOOD.to_owned(), answer.verdict()),
    );
    let evidence = lab.collect(&mark, vec![answer.side]).await?;
    let decision = evidence.traces[0].decision.as_ref().context("the picker has no record of it")?;
    lab.check(claim("round2-first/log", "Round 2 without a round 1 is not routed by prefix").equal(
        "0 log lines, 0 bytes matched".to_owned(),
        format!("{} log lines, {} bytes matched", evidence.prefix_lines.len(), decision.best_match()),
    ));
    exactly_half(lab).await?;
    forged_header(lab).await
}

/// The threshold is strict: a match of exactly half does not count, eight bytes more do.
async fn exactly_half(lab: &Lab<'_>) -> Result<()> {
    let model = lab.requests.model();
    let send = async |name: &str, shared: usize| {
        let mark = lab.mark();
        let shot = |label: String, text: &str| {
            Shot::new(Group::Controls, label, Via::Picker, body(&texts::chat(&model, text)))
        };
        let (first, second) = texts::pair(name, shared);
        let first = lab.send(shot(format!("{name}, first"), &first)).await;
        let second = lab.send(shot(format!("{name}, second"), &second)).await;
        let verdict = second.verdict();
        let evidence = lab.collect(&mark, vec![first.side, second.side]).await?;
        let decision =
            evidence.traces[1].decision.as_ref().with_context(|| format!("no decision: {verdict}"))?;
        let (matched, total) = (decision.best_match(), decision.total_bytes);
        let lines = evidence.prefix_lines.len();
        anyhow::Ok(format!("{matched} of {total} bytes match, {lines} log lines"))
    };
    let half = texts::BYTES / 2;
    lab.check(claim("exactly-half", "A ratio of exactly 0.50 is not taken").equal(
        format!("{half} of {} bytes match, 0 log lines", texts::BYTES),
        send("exactly half", half).await?,
    ));
    let above = half + 8;
    lab.check(claim("above-half", "A ratio just above 0.50 is taken").equal(
        format!("{above} of {} bytes match, 1 log lines", texts::BYTES),
        send("above half", above).await?,
    ));
    Ok(())
}

/// A client cannot choose its pod.
async fn forged_header(lab: &Lab<'_>) -> Result<()> {
    let [forged_header] =
        lab.announce([claim("forged-header", "A forged x-gateway-destination-endpoint header is ignored")]);
    lab.needs_pods(2)?;
    let model = lab.requests.model();
    let mark = lab.mark();
    let mut conversation = Conversation::new(1, 0);
    let next = |conversation: &mut Conversation| {
        conversation.ask();
        body(&conversation.request(&model, 2))
    };
    let first = lab
        .send(Shot::new(Group::Controls, "before the forged header", Via::Picker, next(&mut conversation)))
        .await;
    conversation.answer(&first.chat.as_ref().map_or_else(String::new, |chat| chat.content.clone()));
    let own = lab.collect(&mark, vec![first.side]).await?.traces[0]
        .served_by
        .clone()
        .context("no pod served it")?;
    let address = mark.address_of(&own).context("that pod is gone")?;
    let other =
        lab.cluster.pods().into_iter().find(|pod| pod.name != own).context("there is one pod only")?;
    let shot = Shot::new(Group::Controls, "forged header", Via::Picker, next(&mut conversation));
    let second = lab.send(shot.header(DESTINATION, other.address.to_string())).await;
    let verdict = second.verdict();
    let evidence = lab.collect(&mark, vec![second.side]).await?;
    let seen = evidence.traces[0].envoy_upstream.clone().unwrap_or(verdict);
    lab.check(
        forged_header
            .equal(address.to_string(), seen)
            .detail(format!("the header asked for {}", other.address)),
    );
    Ok(())
}

/// Without the annotation, the same pods, picker process and conversations show no affinity.
async fn without_annotation(lab: &Lab<'_>) -> Result<()> {
    lab.fresh(&[]).await?;
    let mut manifests = lab.cluster.manifests();
    manifests.replace_any(&ANNOTATION, NO_ANNOTATION).context("remove the pool's annotation")?;
    lab.apply(&manifests).await?;
    let bare = through(lab, Group::Controls, (Via::Picker, "8081, no annotation")).await?;
    lab.check(
        claim("no-annotation/answers", "Without the annotation every turn is still answered")
            .equal(bare.evidence.traces.len(), bare.answered),
    );
    lab.check(
        claim("no-annotation/log", "Without the annotation the picker routes nothing by prefix")
            .equal(0, bare.evidence.prefix_lines.len()),
    );
    compare_bare(lab, &bare).await?;
    lab.reset().await?;
    let lab = &lab.section(Group::Controls, "annotation back");
    let mark = lab.mark();
    let mut sides = Vec::new();
    for round in [1, 2] {
        let body = lab.requests.curl(Form::Bash, round)?;
        let label = format!("annotation back, round {round}");
        sides.push(lab.send(Shot::new(Group::Controls, label, Via::Picker, body)).await.side);
    }
    let evidence = lab.collect(&mark, sides).await?;
    lab.check(
        claim("annotation-back", "With the annotation back, round 2 is routed by prefix again")
            .equal(1, evidence.prefix_lines.len()),
    );
    Ok(())
}

async fn compare_bare(lab: &Lab<'_>, bare: &SideRun) -> Result<()> {
    let plain = match lab.journal.side_named("8080") {
        Some(side) => side,
        None => {
            let edited = lab.cluster.manifests();
            lab.fresh(&[]).await?;
            let side = through(lab, Group::Controls, (Via::Plain, "8080")).await?.side;
            lab.apply(&edited).await?;
            side
        }
    };
    let bare_hit = bare.side.hit_ratio().context("no look-up")?;
    let plain_hit = plain.hit_ratio().context("no look-up")?;
    lab.check(
        claim("no-annotation/hit-ratio", "Without the annotation the hit ratio falls to 8080's").holds(
            format!("{:.1} % ± {:.0}", plain_hit * 100.0, NEAR * 100.0),
            format!("{:.1} %", bare_hit * 100.0),
            (bare_hit - plain_hit).abs() <= NEAR,
        ),
    );
    if let Some(picked_hit) = lab.journal.side_named("8081").and_then(|side| side.hit_ratio()) {
        let middle = f64::midpoint(picked_hit, plain_hit);
        lab.check(claim("no-annotation/gap", "Without the annotation most of the gain is gone").holds(
            format!("below {:.1} %, half way to 8081 with it", middle * 100.0),
            format!("{:.1} %", bare_hit * 100.0),
            bare_hit < middle,
        ));
    }
    Ok(())
}

/// Pods cache nothing: round 2 is as slow on round 1's pod as on another.
async fn without_cache(lab: &Lab<'_>) -> Result<()> {
    let [cached_tokens, ttft] = lab.announce([
        claim("no-cache/cached-tokens", "Without prefix caching nothing is cached"),
        claim("no-cache/ttft", "Without prefix caching round 2 gains nothing"),
    ]);
    lab.fresh(&["--no-enable-prefix-caching", "--jitter", "0"]).await?;
    let pairs = measure(lab, Group::Controls).await?;
    let most = pairs.iter().map(|pair| pair.warm_cached.max(pair.cold_cached)).max();
    lab.check(cached_tokens.equal(
        "0 cached tokens at most".to_owned(),
        format!("{} cached tokens at most", most.unwrap_or(u32::MAX)),
    ));
    let Gain { gain_ms, noise_ms, .. } = Gain::of(&pairs)?;
    let allowed = allowed_ms(noise_ms);
    lab.check(
        ttft.holds(
            format!("0 ms ± {allowed:.1}, where a cache gains {:.1} ms", modelled_gain_ms()),
            format!("{gain_ms:.1} ms"),
            gain_ms.abs() <= allowed,
        )
        .detail(format!("noise {noise_ms:.1} ms")),
    );
    Ok(())
}
