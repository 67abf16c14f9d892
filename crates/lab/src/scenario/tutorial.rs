//! Steps 1-4 of the tutorial: round 1, round 2 and the picker's log, in the three forms that shells make of the
//! requests.

use anyhow::{Context as _, Result};

use crate::check::{Check, Claim, Group};
use crate::engine::Engine;
use crate::evidence::join::RequestTrace;
use crate::evidence::picker::{self, LogLine};
use crate::evidence::pod::CacheCounters;
use crate::requests::Form;
use crate::scenario::lab::{Answer, Evidence, GOOD, Lab, Shot, Via};
use crate::scenario::part;

/// The tutorial's answer to round 1: 24 Qwen tokens, as quoted in its round 2.
const ROUND1_ANSWER: &str =
    "Hi there! It looks like you're setting up a fun test. I'm ready to play Zork! You can";
/// Reason why an answer of a real engine is not compared with the tutorial's.
const OWN_WORDS: &str = "a real engine answers in its model's own words, and counts them by its tokenizer";
/// Ratio in the tutorial's log line.
const RATIO: &str = " 0.54 > 0.50";

/// Names and titles of the checks of what pods have in their caches.
const CACHED: (&str, &str) = ("cached-tokens", "Round 2 finds the blocks of round 1 in the cache");
const COLD: (&str, &str) = ("round1-cold", "Round 1 starts on an empty cache");

/// Prompt tokens of round 2, and how many of them the pod of round 1 holds: the full 16-token blocks that round 1 with
/// its answer (151 tokens) and round 2 have in common. Without apostrophes, the answers agree in 6 tokens only.
struct Counts {
    round2_prompt: u32,
    round2_cached: u32,
}

fn counts(form: Form) -> Counts {
    match form {
        Form::Bash => Counts { round2_prompt: 228, round2_cached: 128 },
        Form::Quoted => Counts { round2_prompt: 230, round2_cached: 144 },
        Form::Dash => Counts { round2_prompt: 224, round2_cached: 128 },
    }
}

pub async fn run(lab: &Lab<'_>) {
    for form in Form::ALL {
        let name = format!("requests as {form} writes them");
        part(lab, Group::Tutorial, &name, async |lab: &Lab<'_>| rounds(lab, form).await).await;
    }
}

fn claim(form: Form, name: &str, title: &str) -> Claim {
    Check::of(Group::Tutorial, format!("{form}/{name}"), format!("{title} ({form})"))
}

async fn rounds(lab: &Lab<'_>, form: Form) -> Result<()> {
    lab.fresh(&[]).await?;
    let mark = lab.mark();
    let round = |number: u32| -> Result<Shot> {
        let body = lab.requests.curl(form, number)?;
        Ok(Shot::new(Group::Tutorial, format!("round {number} ({form})"), Via::Picker, body))
    };
    let (first, cold) = counted(lab, round(1)?).await?;
    check_answer(lab, form, &first, ("round 1", 127, 24));
    if let Some(chat) = &first.chat {
        let text = claim(form, "round1-text", "Round 1 is answered as in the tutorial");
        lab.check(match lab.engine() {
            Engine::Mock => text.equal(ROUND1_ANSWER, chat.content.as_str()),
            Engine::Vllm => text.skipped(OWN_WORDS),
        });
    }
    let lines_before = lab.prefix_lines(&mark).len();
    let (second, warm) = counted(lab, round(2)?).await?;
    let Counts { round2_prompt, round2_cached } = counts(form);
    check_answer(lab, form, &second, ("round 2", round2_prompt, 3));
    let evidence = lab.collect(&mark, vec![first.side, second.side]).await?;
    check_pods(lab, form, &evidence)?;
    match lab.engine() {
        Engine::Mock => check_cached(lab, form, &evidence, round2_cached)?,
        Engine::Vllm => check_counted(lab, form, cold, warm),
    }
    check_log(lab, form, lines_before, &evidence);
    Ok(())
}

/// Sends a request, and returns what pods count of it in their caches if nothing else tells that.
async fn counted(lab: &Lab<'_>, shot: Shot) -> Result<(Answer, CacheCounters)> {
    match lab.engine() {
        Engine::Mock => Ok((lab.send(shot).await, CacheCounters::default())),
        Engine::Vllm => {
            let before = lab.cache_use().await?;
            let answer = lab.send(shot).await;
            Ok((answer, lab.cache_use_since(before).await?))
        }
    }
}

fn check_answer(lab: &Lab<'_>, form: Form, answer: &Answer, (round, prompt, completion): (&str, u32, u32)) {
    let name = round.replace(' ', "");
    lab.check(
        claim(form, &format!("{name}-stream"), &format!("The stream of {round} is well formed"))
            .equal(GOOD.to_owned(), answer.verdict()),
    );
    let tokens = |prompt: u32, completion: u32| format!("{prompt} prompt + {completion} completion tokens");
    let seen = answer
        .side
        .usage
        .map_or_else(|| "no usage".to_owned(), |usage| tokens(usage.prompt_tokens, usage.completion_tokens));
    let usage = claim(form, &format!("{name}-usage"), &format!("The usage of {round} is exact"));
    lab.check(match lab.engine() {
        Engine::Mock => usage.equal(tokens(prompt, completion), seen),
        Engine::Vllm => usage.skipped(OWN_WORDS),
    });
}

fn check_pods(lab: &Lab<'_>, form: Form, evidence: &Evidence) -> Result<()> {
    let [first, second] = evidence.traces.as_slice() else { anyhow::bail!("two requests have two traces") };
    let witnesses = lab.engine().witnesses();
    let pod = |trace: &RequestTrace| match trace.agreed_pod(lab.engine()) {
        Ok(pod) => format!("{witnesses} say {pod}"),
        Err(difference) => difference,
    };
    let expected =
        first.served_by.as_ref().map_or_else(|| "a pod".to_owned(), |pod| format!("{witnesses} say {pod}"));
    lab.check(
        claim(form, "round1-records", "Every record names the same pod for round 1")
            .equal(expected.clone(), pod(first)),
    );
    lab.check(
        claim(form, "affinity", "Round 2 goes to the pod of round 1, by every record")
            .equal(expected, pod(second)),
    );
    Ok(())
}

fn check_cached(lab: &Lab<'_>, form: Form, evidence: &Evidence, cached: u32) -> Result<()> {
    let [first, second] = evidence.traces.as_slice() else { anyhow::bail!("two requests have two traces") };
    let told = second.client.usage.map(|usage| usage.cached_tokens());
    let logged = second.pod.as_ref().map(|entry| entry.cached_tokens);
    let show = |told: Option<u32>, logged: Option<u32>| match (told, logged) {
        (Some(told), Some(logged)) => format!("{told} in usage, {logged} in the pod's log"),
        (_, _) => "no record".to_owned(),
    };
    lab.check(claim(form, CACHED.0, CACHED.1).equal(show(Some(cached), Some(cached)), show(told, logged)));
    let cold = first.client.usage.map(|usage| usage.cached_tokens()).context("round 1 has no usage")?;
    lab.check(claim(form, COLD.0, COLD.1).equal(0, cold));
    Ok(())
}

/// Checks what pods have counted: an answer tells cached tokens only if its engine was asked to.
fn check_counted(lab: &Lab<'_>, form: Form, cold: CacheCounters, warm: CacheCounters) {
    let shown =
        |used: CacheCounters| format!("{} of {} tokens by the pods' counters", used.hits, used.queries);
    let has_hits = warm.hits > 0.0;
    lab.check(claim(form, CACHED.0, CACHED.1).holds("more than 0 tokens", shown(warm), has_hits));
    let is_cold = cold.queries > 0.0 && cold.hits.abs() < 1.0;
    lab.check(claim(form, COLD.0, COLD.1).holds("0 tokens of some", shown(cold), is_cold));
}

fn check_log(lab: &Lab<'_>, form: Form, lines_before: usize, evidence: &Evidence) {
    lab.check(
        claim(form, "log-quiet", "The picker logs no prefix-aware routing for round 1")
            .equal(0, lines_before),
    );
    let lines = &evidence.prefix_lines;
    let decided = evidence.traces.get(1).and_then(|trace| trace.decision.as_ref());
    let name = decided.map_or("?", |decision| decision.request.as_str());
    let expected = format!("1 line, of round 2 ({name}), ratio `{RATIO}`, in the tutorial's shape");
    lab.check(
        claim(form, "log-line", "The picker logs `Do prefix-aware routing!` once, for round 2")
            .equal(expected, describe(lines, name))
            .detail(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")),
    );
}

/// Describes the lines about prefix-aware routing in the words of the expectation.
fn describe(lines: &[LogLine], name: &str) -> String {
    let [line] = lines else { return format!("{} lines", lines.len()) };
    let field = |key: &str| line.fields.get(key).and_then(|value| value.as_str()).unwrap_or("absent");
    let ratio = field("matching ratio");
    let whose = if field("request") == name {
        format!("of round 2 ({name})")
    } else {
        "of another request".to_owned()
    };
    let shape =
        if picker::has_tutorial_shape(line, ratio) { "in the tutorial's shape" } else { "in another shape" };
    format!("1 line, {whose}, ratio `{ratio}`, {shape}")
}

#[cfg(test)]
mod tests {
    use super::{RATIO, describe};
    use crate::evidence::picker::prefix_aware_lines;

    const LINE: &str = "2025-05-23T03:33:09Z\tINFO\ta/b.rs:3\tDo prefix-aware routing!\t{\"request\": \"v68m4zx472\", \"matching ratio\": \" 0.54 > 0.50\"}\n";

    #[test]
    fn a_line_is_described_by_owner_ratio_and_shape() {
        let one = prefix_aware_lines(LINE);
        assert_eq!(
            describe(&one, "v68m4zx472"),
            format!("1 line, of round 2 (v68m4zx472), ratio `{RATIO}`, in the tutorial's shape")
        );
        assert!(describe(&one, "other").contains("of another request"));
        assert!(
            describe(&prefix_aware_lines(&LINE.replace("Z\t", " \t")), "v68m4zx472")
                .contains("another shape")
        );
        assert_eq!(describe(&prefix_aware_lines(&LINE.repeat(2)), "v68m4zx472"), "2 lines");
    }
}
