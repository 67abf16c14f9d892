//! The published table, line by line: what is expected, within which band, and what was seen.

use comfy_table::Table;
use serde::Serialize;
use serde_json::{Value, json};

use crate::multi_round_qa::records::Summary;
use crate::report::summary::new_table;
use crate::stats::{as_f64, mean};
use crate::step5::data::{INPUT_TOKENS, OUTPUT_TOKENS};

/// What one run of one side gave.
#[derive(Debug, Clone)]
pub struct Figures {
    pub summary: Summary,
    pub sessions: usize,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Requests that found less than 1,000 tokens.
    pub cold: usize,
    /// Cached tokens by prompt tokens.
    pub hit_ratio: f64,
    /// Share of the requests that the busiest pod got, where that is known.
    pub busiest_share: Option<f64>,
}

/// So many runs have means that tell a right system from a wrong one.
const MANY: usize = 5;

/// One thing that is asserted. Bands are those in which a right system stays over five seeds, and wrong ones do not; those of
/// a mean over fewer are wider.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    pub name: &'static str,
    pub published: Option<f64>,
    pub low: f64,
    pub high: f64,
    /// In every seed, or the mean of all.
    pub seen: Vec<f64>,
    pub holds: bool,
}

impl Line {
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// Each of the values lies in the band.
    fn each(name: &'static str, published: Option<f64>, (low, high): (f64, f64), seen: Vec<f64>) -> Self {
        let holds = !seen.is_empty() && seen.iter().all(|value| (low..=high).contains(value));
        Self { name, published, low, high, seen, holds }
    }

    fn of_mean(name: &'static str, published: Option<f64>, band: (f64, f64), seen: &[f64]) -> Self {
        Self::each(name, published, band, mean(seen).into_iter().collect())
    }
}

/// Every line, for runs of as many seeds on each side.
pub fn lines(plain: &[Figures], picked: &[Figures]) -> Vec<Line> {
    let mut lines = counts(plain, picked);
    lines.extend(rates(plain, picked));
    lines.extend(routing(plain, picked));
    lines
}

fn of(side: &[Figures], value: fn(&Figures) -> f64) -> Vec<f64> {
    side.iter().map(value).collect()
}

fn exactly(value: f64) -> (f64, f64) {
    (value, value)
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
fn tokens(count: u64) -> f64 {
    count as f64
}

/// What the load is: the same whoever places it.
fn counts(plain: &[Figures], picked: &[Figures]) -> Vec<Line> {
    let exact = |name, published: f64, value: fn(&Figures) -> f64| {
        let seen = plain.iter().chain(picked).map(value).collect();
        Line::each(name, Some(published), exactly(published), seen)
    };
    vec![
        exact("requests", 63.0, |figures| as_f64(figures.summary.n_finished)),
        exact("sessions", 12.0, |figures| as_f64(figures.sessions)),
        exact("input tokens", tokens(INPUT_TOKENS), |figures| tokens(figures.input_tokens)),
        exact("output tokens", tokens(OUTPUT_TOKENS), |figures| tokens(figures.output_tokens)),
    ]
}

/// What the summary's lines say of time.
fn rates(plain: &[Figures], picked: &[Figures]) -> Vec<Line> {
    let each = |name, published: f64, band: (f64, f64), value: fn(&Figures) -> f64| {
        let seen = plain.iter().chain(picked).map(value).collect();
        Line::each(name, Some(published), band, seen)
    };
    let around = |value: f64, share: f64| (value * (1.0 - share), value * (1.0 + share));
    vec![
        each("processing speed [req/s]", 0.108, (0.1074, 0.1086), |figures| figures.summary.speed),
        each("time range [s]", 583.2, (580.5, 586.0), |figures| {
            figures.summary.window.end - figures.summary.window.start
        }),
        each("input [tokens/s]", 259.07, around(259.07, 0.01), |figures| figures.summary.input_rate),
        each("output [tokens/s]", 4.858, around(4.858, 0.015), |figures| figures.summary.output_rate),
        each("generation [tokens/req/s]", 26.67, around(26.8, 0.04), |figures| {
            figures.summary.generation_rate
        }),
    ]
}

/// What depends on who places the requests.
fn routing(plain: &[Figures], picked: &[Figures]) -> Vec<Line> {
    let ttft = |figures: &Figures| figures.summary.ttft;
    let band = |many: (f64, f64), one: (f64, f64)| if plain.len() >= MANY { many } else { one };
    let cold = |figures: &Figures| as_f64(figures.cold);
    let shares: Vec<f64> = picked.iter().filter_map(|figures| figures.busiest_share).collect();
    let ratio = mean(&of(picked, ttft)).zip(mean(&of(plain, ttft))).map(|(picked, plain)| picked / plain);
    let mut lines = vec![
        Line::each("8081: cold requests", Some(12.0), exactly(12.0), of(picked, cold)),
        Line::each("8081: token hit ratio", None, (0.8, 1.0), of(picked, |figures| figures.hit_ratio)),
        Line::of_mean("8080: cold requests, mean", None, band((20.0, 24.0), (19.0, 25.0)), &of(plain, cold)),
        Line::of_mean(
            "8080: TTFT, mean [s]",
            Some(0.3669),
            band((0.335, 0.4), (0.31, 0.43)),
            &of(plain, ttft),
        ),
        Line::of_mean(
            "8081: TTFT, mean [s]",
            Some(0.2761),
            band((0.24, 0.3), (0.235, 0.32)),
            &of(picked, ttft),
        ),
        Line::each(
            "TTFT, 8081 by 8080",
            Some(0.7525),
            band((0.6, 0.83), (0.55, 0.95)),
            ratio.into_iter().collect(),
        ),
    ];
    if !shares.is_empty() {
        lines.push(Line::of_mean("8081: busiest pod's share, mean", None, (0.0, 0.8), &shares));
    }
    lines
}

pub fn table(lines: &[Line]) -> Table {
    let mut table = new_table(&["", "published", "band", "seen", "difference", ""], 1);
    for Line { name, published, low, high, seen, holds } in lines {
        let least = seen.iter().copied().fold(f64::INFINITY, f64::min);
        let most = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let middle = mean(seen).unwrap_or(f64::NAN);
        let span = |low: f64, high: f64| match (high - low).abs() < 1e-12 {
            true => number(low),
            false => format!("{} to {}", number(low), number(high)),
        };
        let difference = published.map(|published| format!("{:+.1} %", (middle / published - 1.0) * 100.0));
        table.add_row([
            (*name).to_owned(),
            published.map_or_else(String::new, number),
            span(*low, *high),
            span(least, most),
            difference.unwrap_or_default(),
            if *holds { "ok" } else { "FAILED" }.to_owned(),
        ]);
    }
    table
}

fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub fn json(plain: &[Figures], picked: &[Figures], lines: &[Line]) -> Value {
    let side = |figures: &[Figures]| {
        let run = |figures: &Figures| {
            let mut run = figures.summary.json();
            run["sessions"] = figures.sessions.into();
            run["input_tokens"] = figures.input_tokens.into();
            run["output_tokens"] = figures.output_tokens.into();
            run["cold_requests"] = figures.cold.into();
            run["token_hit_ratio"] = figures.hit_ratio.into();
            run["busiest_share"] = figures.busiest_share.into();
            run
        };
        figures.iter().map(run).collect::<Vec<Value>>()
    };
    let passed = lines.iter().all(Line::holds);
    json!({"passed": passed, "lines": lines, "8080": side(plain), "8081": side(picked)})
}
