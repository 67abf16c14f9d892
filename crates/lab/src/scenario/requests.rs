//! Sends every kind of request to one pod, and compares the picker's prediction with what the pod had in its cache:
//! first with the estimate, then with the engine's own reports.

mod rows;

use anyhow::{Context as _, Result, ensure};
use load::client::Reply;

use self::rows::{Row, RowRequest, rows};
use crate::check::{Check, Claim, Group};
use crate::cluster::Fresh;
use crate::evidence::picker::{Candidate, Decision};
use crate::requests::body;
use crate::scenario::lab::{Lab, Via};
use crate::scenario::precise::{ANNOTATION, Mode, PRECISE};

/// Engine arguments that the rows need: tools, templates that show reasoning, and room for every prompt.
const ENGINE_ARGS: [&str; 12] = [
    "--vllm-version",
    "0.33",
    "--tokenizer",
    "Qwen/Qwen3-8B",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "hermes",
    "--enable-scale-out",
    "--num-gpu-blocks-override",
    "4000",
    // Times do not matter here.
    "--time-scale",
    "20",
];
/// Picker arguments with a long timeout, so that a slow machine does not turn exact predictions into estimates.
const PICKER_ARGS: [&str; 2] = ["--tokenize-timeout", "10s"];
/// The tutorial's number of pods. Here it is one, so that every request meets the caches of the requests before it.
const REPLICAS: &str = "replicas: 5";
const ONE_REPLICA: &str = "replicas: 1";
/// Tokens of a block: the largest error of a prediction from the engine's reports.
const BLOCK: f64 = 16.0;
/// Largest error of an estimate, in tokens or as a share of the prompt, whichever is more.
const ESTIMATE_TOKENS: f64 = 64.0;
const ESTIMATE_SHARE: f64 = 0.1;
/// Bytes per token, for prompts whose answer does not report its tokens.
const BYTES_PER_TOKEN: f64 = 4.0;

/// Sends requests one after the other.
struct Sender<'a> {
    lab: &'a Lab<'a>,
    mode: Mode,
    last_decision: u64,
}

/// One request, and what was seen of it.
#[derive(Debug, Clone)]
struct Seen {
    decision: Decision,
    /// Tokens of the whole prompt; `None` if the engine refused it.
    prompt_tokens: Option<f64>,
    cached_tokens: f64,
}

pub async fn run(lab: &Lab<'_>) -> Result<()> {
    for mode in [Mode::Estimate, Mode::Precise] {
        lab.announce_all(rows(mode.name()).iter().map(|row| claim(mode, row)).chain([control(mode)]));
    }
    let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
    let (engine_args, picker_args) = (owned(&ENGINE_ARGS), owned(&PICKER_ARGS));
    lab.start_anew(Fresh { engine_args, picker_args, ..Fresh::default() }).await?;
    let mut manifests = lab.cluster.manifests();
    manifests.replace(REPLICAS, ONE_REPLICA).context("have one pod")?;
    lab.apply(&manifests).await?;
    table(lab, Mode::Estimate).await?;
    manifests.replace_any(&ANNOTATION, PRECISE).context("make the pool precise")?;
    lab.apply(&manifests).await?;
    table(lab, Mode::Precise).await
}

fn claim(mode: Mode, row: &Row) -> Claim {
    let name = format!("{}/{}", mode.name(), row.name);
    Check::of(Group::Requests, name, format!("{} ({})", row.title, mode.name()))
}

fn control(mode: Mode) -> Claim {
    let title = format!("A picker that ignores a row's field fails the row ({})", mode.name());
    Check::of(Group::Requests, format!("{}/control", mode.name()), title)
}

/// Sends the rows, and each row that has a field also without it.
async fn table(lab: &Lab<'_>, mode: Mode) -> Result<()> {
    let mut blind = Vec::new();
    let mut sender = Sender { lab, mode, last_decision: lab.last_decision().await? };
    for row in rows(mode.name()) {
        let probes = sender.send(&row).await?;
        let mut wrong: Vec<String> = probes.iter().filter_map(|seen| mode.miss(seen)).collect();
        let is_served = |seen: &Seen| seen.prompt_tokens.is_some();
        if probes.iter().any(|seen| is_served(seen) != row.is_served) {
            wrong.push(
                if row.is_served { "the engine refused it" } else { "the engine served it" }.to_owned(),
            );
        }
        let shown: Vec<String> = probes.iter().map(|seen| seen.shown()).collect();
        lab.check(
            claim(mode, &row)
                .holds("the prediction equals what is cached", shown.join("; "), wrong.is_empty())
                .detail(wrong.join("\n")),
        );
        let blind_tag = format!("{} blind", mode.name());
        let stripped = rows(&blind_tag).into_iter().find(|stripped| stripped.name == row.name);
        if let Some(stripped) = stripped.and_then(Row::without_field) {
            let stripped = sender.send(&stripped).await?;
            blind.extend(probes.first().cloned().zip(stripped.first().cloned()).map(|pair| (row.name, pair)));
        }
    }
    check_controls(lab, mode, &blind);
    Ok(())
}

/// Checks that each field matters: a picker that ignored it would predict for the probe what it predicts without the
/// field, and so fail the row.
fn check_controls(lab: &Lab<'_>, mode: Mode, blind: &[(&str, (Seen, Seen))]) {
    let told = |(name, (seen, stripped)): &(&str, (Seen, Seen))| {
        let mistaken = Seen { decision: stripped.decision.clone(), ..seen.clone() };
        let noticed = mode.miss(&mistaken).is_some();
        (!noticed).then(|| format!("{name}: {}", mistaken.shown()))
    };
    let unnoticed: Vec<String> = blind.iter().filter_map(told).collect();
    lab.check(
        control(mode)
            .equal(
                format!("{} of {}", blind.len(), blind.len()),
                format!("{} of {}", blind.len() - unnoticed.len(), blind.len()),
            )
            .detail(unnoticed.join("\n")),
    );
}

// === impl Sender ===

impl Sender<'_> {
    /// Sends a row's requests, and returns what was seen of its probes.
    async fn send(&mut self, row: &Row) -> Result<Vec<Seen>> {
        for sent in &row.before {
            let seen = self.exchange(sent).await;
            seen.with_context(|| format!("{}: send what comes before", row.name))?;
        }
        let mut probes = Vec::new();
        for sent in &row.probes {
            let seen = self.exchange(sent).await;
            probes.push(seen.with_context(|| format!("{}: send the probe", row.name))?);
        }
        Ok(probes)
    }

    /// Sends one request, and waits until the picker has seen the whole answer and the pod's events.
    async fn exchange(&mut self, sent: &RowRequest) -> Result<Seen> {
        let Self { lab, mode, last_decision } = self;
        let RowRequest { path, body: request } = sent;
        let mut request = request.clone();
        if let Some(fields) = request.as_object_mut() {
            fields.insert("model".to_owned(), lab.requests.model().into());
        }
        let reply = lab.post(Via::Picker, path, &[], body(&request)).await?;
        let decision = lab.decision_after(*last_decision).await?;
        *last_decision = decision.seq;
        if *mode == Mode::Precise {
            lab.index_agrees().await?;
        }
        Seen::new(decision, &reply)
    }
}

// === impl Mode ===

impl Mode {
    /// Describes the error of a prediction if it is too large.
    fn miss(self, seen: &Seen) -> Option<String> {
        let told = seen.told_tokens();
        if self == Self::Precise && told.is_none() && seen.cached_tokens > 0.0 {
            return Some(format!("the engine's KV events were not used: {}", seen.shown()));
        }
        let predicted = told.unwrap_or_else(|| seen.estimated_tokens());
        let most = match (self, seen.prompt_tokens) {
            // A request that the engine refuses is estimated, and caches nothing.
            (Self::Precise | Self::Estimate, None) => ESTIMATE_TOKENS,
            (Self::Precise, Some(_)) => BLOCK,
            (Self::Estimate, Some(prompt_tokens)) => ESTIMATE_TOKENS.max(ESTIMATE_SHARE * prompt_tokens),
        };
        let off = (predicted - seen.cached_tokens).abs();
        (off > most).then(|| format!("off by {off:.0} tokens, at most {most:.0}: {}", seen.shown()))
    }
}

// === impl Seen ===

impl Seen {
    fn new(decision: Decision, reply: &Reply) -> Result<Self> {
        let told = reply.headers.get("x-mock-vllm-cache").map(|value| value.to_str().unwrap_or_default());
        let Some(told) = told else {
            ensure!(
                reply.status.is_client_error(),
                "{} without a word on the cache: {}",
                reply.status,
                reply.text()
            );
            return Ok(Self { decision, prompt_tokens: None, cached_tokens: 0.0 });
        };
        let number = |name: &str| {
            let value = told.split(", ").find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            value
                .and_then(|value| value.parse::<f64>().ok())
                .with_context(|| format!("no {name} in {told:?}"))
        };
        let (prompt_tokens, cached_tokens) = (Some(number("prompt_tokens")?), number("cached_tokens")?);
        Ok(Self { decision, prompt_tokens, cached_tokens })
    }

    /// Returns the cached tokens that the picked engine reported; `None` if the picker did not use that.
    fn told_tokens(&self) -> Option<f64> {
        let is_picked = |candidate: &&Candidate| Some(&candidate.endpoint) == self.decision.endpoint.as_ref();
        let told = self.decision.candidates.iter().find(is_picked)?.cached_tokens?;
        #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 tokens")]
        Some(told as f64)
    }

    fn estimated_tokens(&self) -> f64 {
        let Self { decision, prompt_tokens, .. } = self;
        #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
        prompt_tokens.map_or(decision.matched_bytes as f64 / BYTES_PER_TOKEN, |prompt_tokens| {
            decision.ratio * prompt_tokens
        })
    }

    fn shown(&self) -> String {
        let of = self.prompt_tokens.map_or_else(|| "a refused prompt".to_owned(), |n| format!("{n:.0}"));
        let predicted = match self.told_tokens() {
            Some(told) => format!("told {told:.0}"),
            None => format!("estimated {:.0}", self.estimated_tokens()),
        };
        format!("{predicted}, cached {:.0} of {of}", self.cached_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::{Mode, Seen};
    use crate::evidence::picker::parse_decisions;

    fn seen(ratio: f64, told: Option<u64>, cached_tokens: f64) -> Seen {
        let told = told.map_or_else(|| "null".to_owned(), |told| told.to_string());
        let body = format!(
            r#"{{"decisions":[{{"seq":1,"request":"r","x_request_id":null,"strategy":null,"outcome":"picked",
                "endpoint":"e","pod":null,"reason":null,"matched_bytes":8000,"ratio":{ratio},"threshold":null,
                "candidates":[{{"endpoint":"e","pod":null,"cached_tokens":{told}}}]}}]}}"#
        );
        let decision = parse_decisions(body.as_bytes()).unwrap().remove(0);
        Seen { decision, prompt_tokens: Some(1000.0), cached_tokens }
    }

    #[test]
    fn the_estimate_may_be_off_by_a_tenth_and_an_engines_word_by_a_block() {
        for (mode, seen, is_right) in [
            (Mode::Estimate, seen(0.5, None, 590.0), true),
            (Mode::Estimate, seen(0.5, None, 610.0), false),
            (Mode::Estimate, seen(0.0, None, 0.0), true),
            (Mode::Precise, seen(0.5, Some(608), 592.0), true),
            (Mode::Precise, seen(0.5, Some(624), 592.0), false),
            (Mode::Precise, seen(0.5, None, 530.0), false),
        ] {
            assert_eq!(mode.miss(&seen).is_none(), is_right, "{}", seen.shown());
        }
    }

    #[test]
    fn what_the_engine_refuses_is_not_cached() {
        let refused = |matched_ratio| Seen { prompt_tokens: None, ..seen(matched_ratio, None, 0.0) };
        assert!(Mode::Precise.miss(&refused(0.9)).is_some(), "2000 tokens were predicted");
    }
}
