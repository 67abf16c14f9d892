//! The published table, line by line: the expected value, its band, and what was seen.

use comfy_table::Table;
use load::multi_round_qa::records::Summary;
use load::stats::{as_f64, mean};
use load::table::new_table;
use serde::Serialize;
use serde_json::{Value, json};

use crate::step5::data::{INPUT_TOKENS, OUTPUT_TOKENS};

/// A request is cold if its prompt had fewer cached tokens than this.
const COLD_TOKENS: u32 = 1000;

/// Figures of one run of one side.
#[derive(Debug, Clone)]
pub struct Figures {
    pub summary: Summary,
    pub sessions: usize,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// The answered requests, sorted by user and question.
    pub requests: Vec<Timed>,
    /// Cached tokens divided by prompt tokens.
    pub hit_ratio: f64,
    /// Each request's pod as a number, sorted by user and question; empty if it is not known.
    pub picks: Vec<usize>,
    /// User, question and error of the first request without an answer.
    pub first_failure: Option<String>,
}

/// One answered request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timed {
    /// Time to the first token in seconds.
    pub ttft: f64,
    pub cached_tokens: u32,
}

/// Name of the line that is shown if requests failed.
pub const FAILED_REQUESTS: &str = "failed requests";

/// Number of runs from which on their mean distinguishes a right system from a wrong one.
const MANY: usize = 5;

/// One checked figure. A right system stays in the band over five seeds, and wrong ones do not; the bands of means over
/// fewer seeds are wider.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableLine {
    pub name: &'static str,
    /// Value to compare with: the published or the simulated one.
    pub reference: Option<f64>,
    pub low: f64,
    pub high: f64,
    /// Values of all seeds, or only their mean.
    pub seen: Vec<f64>,
    pub holds: bool,
}

/// Properties of the measured system that decide what can be expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    pub n_pods: usize,
    /// True if the servers are like the published ones.
    pub is_published_server: bool,
    /// True if the questions are the built-in ones, whose tokens are known.
    pub is_own_data: bool,
}

/// A line of the tool's summary.
struct Printed {
    label: &'static str,
    unit: &'static str,
    n_digits: usize,
    /// Values in the tutorial for 8080 and 8081.
    published: [f64; 2],
    seen: fn(&Summary) -> f64,
}

const PRINTED: [Printed; 8] = [
    Printed {
        label: "QPS",
        unit: "reqs/s",
        n_digits: 4,
        published: [0.1, 0.1],
        seen: |summary| summary.window.qps,
    },
    Printed {
        label: "Processing speed",
        unit: "reqs/s",
        n_digits: 4,
        published: [0.1080, 0.1081],
        seen: |summary| summary.speed,
    },
    Printed {
        label: "Requests on-the-fly",
        unit: "reqs",
        n_digits: 0,
        published: [0.0, 0.0],
        seen: |summary| as_f64(summary.window.n_pending),
    },
    Printed {
        label: "Input tokens per second",
        unit: "tokens/s",
        n_digits: 4,
        published: [259.0703, 259.3009],
        seen: |summary| summary.input_rate,
    },
    Printed {
        label: "Output tokens per second",
        unit: "tokens/s",
        n_digits: 4,
        published: [4.8576, 4.8548],
        seen: |summary| summary.output_rate,
    },
    Printed {
        label: "Average generation throughput (per request)",
        unit: "tokens/req/s",
        n_digits: 4,
        published: [26.6710, 26.9300],
        seen: |summary| summary.generation_rate,
    },
    Printed {
        label: "Average TTFT",
        unit: "s",
        n_digits: 4,
        published: [0.3669, 0.2761],
        seen: |summary| summary.ttft,
    },
    Printed { label: "Time range", unit: "s", n_digits: 2, published: [583.20, 582.72], seen: time_range },
];

impl Timed {
    /// Reports whether the request had fewer cached tokens than [`COLD_TOKENS`].
    pub fn is_cold(&self) -> bool {
        self.cached_tokens < COLD_TOKENS
    }
}

impl Figures {
    /// Returns the number of cold requests.
    pub fn n_cold(&self) -> usize {
        self.requests.iter().filter(|request| request.is_cold()).count()
    }

    /// Returns the share of requests that went to the pod with the most.
    pub fn busiest_share(&self) -> Option<f64> {
        let of_pod = |pod: &usize| self.picks.iter().filter(|pick| *pick == pod).count();
        let busiest = self.picks.iter().map(of_pod).max()?;
        Some(as_f64(busiest) / as_f64(self.picks.len()))
    }

    /// Describes the requests without an answer, and the error of the first one.
    pub fn failed(&self) -> Option<String> {
        let n_failed = self.summary.window.n_failed;
        let n_sent = self.summary.n_finished + n_failed;
        let first = self.first_failure.as_ref()?;
        Some(format!("{n_failed} of {n_sent} requests failed; the first is of {first}"))
    }
}

impl TableLine {
    pub fn holds(&self) -> bool {
        self.holds
    }

    /// Makes a line that holds if every value is in the band.
    pub fn each(name: &'static str, reference: Option<f64>, (low, high): (f64, f64), seen: Vec<f64>) -> Self {
        let holds = !seen.is_empty() && seen.iter().all(|value| (low..=high).contains(value));
        Self { name, reference, low, high, seen, holds }
    }

    fn of_mean(name: &'static str, reference: Option<f64>, band: (f64, f64), seen: &[f64]) -> Self {
        Self::each(name, reference, band, mean(seen).into_iter().collect())
    }
}

impl Setup {
    pub fn describe(self) -> String {
        let Self { n_pods, is_published_server, is_own_data } = self;
        let server = if is_published_server { "servers like the tutorial's" } else { "other servers" };
        let data = if is_own_data { "" } else { ", with other data" };
        format!("{n_pods} {server}{data}")
    }

    /// Says what is proved if every line holds.
    pub fn claim(self) -> &'static str {
        match self.is_published() {
            true => "the published table holds within its bands",
            false => {
                "every line holds (the published times are those of another setup, and not held against these)"
            }
        }
    }

    fn is_published(self) -> bool {
        self.n_pods == 2 && self.is_published_server && self.is_own_data
    }

    /// Returns the bound of the ratio of the two TTFTs: below it if 8081 routes by prefix, above it otherwise. With
    /// more pods, 8080 finds a cached prefix less often by chance.
    fn highest_ratio(self) -> f64 {
        match (self.is_published_server, self.n_pods) {
            (false, _) | (true, 0 | 1) => 1.0,
            (true, 2) => 0.83,
            (true, 3) => 0.7,
            (true, 4) => 0.65,
            (true, _) => 0.6,
        }
    }
}

/// Makes every line, for runs of the same number of seeds on both sides.
pub fn lines(setup: Setup, plain: &[Figures], picked: &[Figures]) -> Vec<TableLine> {
    let mut lines = counts(setup, plain, picked);
    if setup.is_published() {
        lines.extend(rates(plain, picked));
    }
    lines.extend(routing(setup, plain, picked));
    lines
}

fn of(side: &[Figures], value: fn(&Figures) -> f64) -> Vec<f64> {
    side.iter().map(value).collect()
}

pub fn exactly(value: f64) -> (f64, f64) {
    (value, value)
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
pub fn tokens(count: u64) -> f64 {
    count as f64
}

/// Lines about the load, which is the same for every router.
fn counts(setup: Setup, plain: &[Figures], picked: &[Figures]) -> Vec<TableLine> {
    let exact = |name, published: f64, value: fn(&Figures) -> f64| {
        let seen = plain.iter().chain(picked).map(value).collect();
        TableLine::each(name, Some(published), exactly(published), seen)
    };
    let mut lines = vec![
        exact("QPS", 0.1, |figures| figures.summary.window.qps),
        exact("requests", 63.0, |figures| as_f64(figures.summary.n_finished)),
        exact("requests on the fly", 0.0, |figures| as_f64(figures.summary.window.n_pending)),
        exact("sessions", 12.0, |figures| as_f64(figures.sessions)),
    ];
    if plain.iter().chain(picked).any(|figures| figures.summary.window.n_failed > 0) {
        lines.push(exact(FAILED_REQUESTS, 0.0, |figures| as_f64(figures.summary.window.n_failed)));
    }
    if setup.is_own_data {
        lines.push(exact("input tokens", tokens(INPUT_TOKENS), |figures| tokens(figures.input_tokens)));
        lines.push(exact("output tokens", tokens(OUTPUT_TOKENS), |figures| tokens(figures.output_tokens)));
    }
    lines
}

/// Lines about times in the tool's summary.
fn rates(plain: &[Figures], picked: &[Figures]) -> Vec<TableLine> {
    let each = |name, published: f64, band: (f64, f64), value: fn(&Figures) -> f64| {
        let seen = plain.iter().chain(picked).map(value).collect();
        TableLine::each(name, Some(published), band, seen)
    };
    let around = |value: f64, share: f64| (value * (1.0 - share), value * (1.0 + share));
    vec![
        each("processing speed [req/s]", 0.108, (0.1074, 0.1086), |figures| figures.summary.speed),
        each("time range [s]", 583.2, (580.5, 586.0), |figures| time_range(&figures.summary)),
        each("input [tokens/s]", 259.07, around(259.07, 0.01), |figures| figures.summary.input_rate),
        each("output [tokens/s]", 4.858, around(4.858, 0.015), |figures| figures.summary.output_rate),
        each("generation [tokens/req/s]", 26.67, around(26.8, 0.04), |figures| {
            figures.summary.generation_rate
        }),
    ]
}

/// Lines about what the router decides.
fn routing(setup: Setup, plain: &[Figures], picked: &[Figures]) -> Vec<TableLine> {
    let ttft = |figures: &Figures| figures.summary.ttft;
    let band = |many: (f64, f64), one: (f64, f64)| if plain.len() >= MANY { many } else { one };
    let cold = |figures: &Figures| as_f64(figures.n_cold());
    let ratio = mean(&of(picked, ttft)).zip(mean(&of(plain, ttft))).map(|(picked, plain)| picked / plain);
    let mut lines = vec![TableLine::each("8081: cold requests", Some(12.0), exactly(12.0), of(picked, cold))];
    if setup.is_own_data {
        lines.push(TableLine::each(
            "8081: token hit ratio",
            None,
            (0.8, 1.0),
            of(picked, |one| one.hit_ratio),
        ));
    }
    let ratio_band = if setup.is_published() {
        lines.extend([
            TableLine::of_mean(
                "8080: cold requests, mean",
                None,
                band((20.0, 24.0), (19.0, 25.0)),
                &of(plain, cold),
            ),
            TableLine::of_mean(
                "8080: TTFT, mean [s]",
                Some(0.3669),
                band((0.335, 0.4), (0.31, 0.43)),
                &of(plain, ttft),
            ),
            TableLine::of_mean(
                "8081: TTFT, mean [s]",
                Some(0.2761),
                band((0.24, 0.3), (0.235, 0.32)),
                &of(picked, ttft),
            ),
        ]);
        band((0.6, setup.highest_ratio()), (0.55, 0.95))
    } else {
        band((0.0, setup.highest_ratio()), (0.0, 1.0))
    };
    let published_ratio = setup.is_published().then_some(0.7525);
    lines.push(TableLine::each(
        "TTFT, 8081 by 8080",
        published_ratio,
        ratio_band,
        ratio.into_iter().collect(),
    ));
    let shares: Vec<f64> = picked.iter().filter_map(Figures::busiest_share).collect();
    if setup.n_pods > 1 && !shares.is_empty() {
        lines.push(TableLine::of_mean("8081: busiest pod's share, mean", None, (0.0, 0.8), &shares));
    }
    lines
}

fn time_range(summary: &Summary) -> f64 {
    summary.window.end - summary.window.start
}

/// Shows the tutorial's two summaries line by line, beside the means of ours.
pub fn summaries(plain: &[Figures], picked: &[Figures]) -> Table {
    let heads = ["", "8080 published", "seen", "difference", "8081 published", "seen", "difference"];
    let mut table = new_table(&heads, 1);
    for Printed { label, unit, n_digits, published, seen } in &PRINTED {
        let mut cells = vec![format!("{label} [{unit}]")];
        for (side, published) in [plain, picked].into_iter().zip(published) {
            let values: Vec<f64> = side.iter().map(|figures| seen(&figures.summary)).collect();
            let middle = mean(&values).unwrap_or(f64::NAN);
            cells.push(format!("{published:.n_digits$}"));
            cells.push(format!("{middle:.n_digits$}"));
            cells.push(difference(middle, *published));
        }
        table.add_row(cells);
    }
    table
}

/// Shows the lines. `reference` is the name of the values that they are compared with.
pub fn table(lines: &[TableLine], reference: &str) -> Table {
    let mut table = new_table(&["", reference, "band", "seen", "difference", ""], 1);
    for TableLine { name, reference, low, high, seen, holds } in lines {
        let least = seen.iter().copied().fold(f64::INFINITY, f64::min);
        let most = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let middle = mean(seen).unwrap_or(f64::NAN);
        let span = |low: f64, high: f64| match (high - low).abs() < 1e-12 {
            true => number(low),
            false => format!("{} to {}", number(low), number(high)),
        };
        let difference = reference.map(|reference| difference(middle, reference));
        table.add_row([
            (*name).to_owned(),
            reference.map_or_else(String::new, number),
            span(*low, *high),
            span(least, most),
            difference.unwrap_or_default(),
            if *holds { "ok" } else { "FAILED" }.to_owned(),
        ]);
    }
    table
}

/// Returns the difference of two means, in percent of the second.
fn difference(seen: f64, reference: f64) -> String {
    match (seen - reference).abs() < 1e-9 {
        true => "0 %".to_owned(),
        false => format!("{:+.1} %", (seen / reference - 1.0) * 100.0),
    }
}

fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

pub fn json(figures: &Figures) -> Value {
    let mut run = figures.summary.json();
    run["sessions"] = figures.sessions.into();
    run["input_tokens"] = figures.input_tokens.into();
    run["output_tokens"] = figures.output_tokens.into();
    run["cold_requests"] = figures.n_cold().into();
    run["token_hit_ratio"] = figures.hit_ratio.into();
    run["busiest_share"] = figures.busiest_share().into();
    run["picks"] = json!(figures.picks);
    run
}
