//! `compare.html`: the figures and the charts, each with its data. It is one file without scripts and needs no network.
//! Every number says where in `compare.json` it comes from.

use anyhow::{Context as _, Result};
use load::stats::as_f64;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;
use serde_json::Value;

use crate::compare::charts::{Axes, ChartLine, heat, lines};
use crate::compare::matrix::{Cell, Detail, POLICIES, WorkloadRow};

const TEMPLATE: &str = include_str!("page.html");

#[derive(Debug, Serialize)]
struct Page {
    seeds: u32,
    policies: Vec<&'static str>,
    summary: Vec<(String, Datum)>,
    workloads: Vec<View>,
}

#[derive(Debug, Serialize)]
struct View {
    name: String,
    /// Tables of figures, one for each load.
    tables: Vec<Table>,
    charts: Vec<Chart>,
    heats: Vec<Heat>,
    /// Seconds of one column of a heat map.
    span: String,
}

/// A table whose rows begin with a label.
#[derive(Debug, Serialize)]
struct Table {
    title: String,
    heads: Vec<String>,
    rows: Vec<(String, Vec<Datum>)>,
}

/// A chart, and the table of its data.
#[derive(Debug, Serialize)]
struct Chart {
    title: &'static str,
    svg: String,
    data: Table,
}

#[derive(Debug, Serialize)]
struct Heat {
    policy: &'static str,
    svg: String,
    data: Table,
}

/// A number of the document.
#[derive(Debug, Serialize)]
struct Datum {
    /// JSON pointer to the number.
    at: String,
    /// Factor for the number in the document, if the page shows another unit.
    scale: u32,
    /// The rounded number; empty if there is none.
    text: String,
}

/// A figure of each policy: its name, its path below the policy, the factor, and the digits after the point.
type Column = (&'static str, &'static str, u32, usize);

const COLUMNS: [Column; 11] = [
    ("TTFT mean [s]", "ttft/mean/mean", 1, 3),
    ("±", "ttft/mean/half_width", 1, 3),
    ("p50", "ttft/p50/mean", 1, 3),
    ("p90", "ttft/p90/mean", 1, 3),
    ("p99", "ttft/p99/mean", 1, 3),
    ("ITL mean [ms]", "itl/mean/mean", 1000, 1),
    ("p50", "itl/p50/mean", 1000, 1),
    ("p99", "itl/p99/mean", 1000, 1),
    ("hit ratio [%]", "hit_ratio/mean", 100, 1),
    ("regret [%]", "regret/mean", 100, 2),
    ("busiest by mean", "imbalance/mean", 1, 2),
];

/// Finds the numbers of one workload.
#[derive(Clone, Copy)]
struct Source<'a> {
    document: &'a Value,
    workload_idx: usize,
    row: &'a WorkloadRow,
}

/// Renders the page. `document` is the comparison of the same rows as JSON.
///
/// # Errors
/// When the template does not fit its values.
pub fn render(rows: &[WorkloadRow], document: &Value, seeds: u32) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_template("page.html", TEMPLATE).context("parse the comparison's template")?;
    let sources = rows.iter().enumerate().map(|(workload_idx, row)| Source { document, workload_idx, row });
    let summary =
        |source: Source<'_>| (source.row.workload.clone(), source.datum("default_above_best", 100, 1));
    let page = Page {
        seeds,
        policies: POLICIES.iter().map(|(name, _)| *name).collect(),
        summary: sources.clone().map(summary).collect(),
        workloads: sources.map(View::of).collect(),
    };
    let template = environment.get_template("page.html").context("find the comparison's template")?;
    template.render(Serde(&page)).context("render the comparison")
}

impl Source<'_> {
    /// Returns the number at the path `below`, seen from the workload.
    fn datum(&self, below: &str, scale: u32, n_digits: usize) -> Datum {
        let at = format!("/workloads/{}/{below}", self.workload_idx);
        let number = self.document.pointer(&at).and_then(Value::as_f64);
        let text = number.map(|number| format!("{:.n_digits$}", number * f64::from(scale)));
        Datum { at, scale, text: text.unwrap_or_default() }
    }

    /// Returns the number at the path `below` for each run in detail.
    fn of_details(&self, below: &str, n_digits: usize) -> Vec<Datum> {
        let datum = |idx| self.datum(&format!("details/{idx}/{below}"), 1, n_digits);
        (0..self.row.details.len()).map(datum).collect()
    }
}

impl View {
    fn of(source: Source<'_>) -> Self {
        let details = &source.row.details;
        let most = details.iter().flat_map(|detail| detail.requests.iter().flatten()).copied().max();
        let heats = (0..details.len()).map(|idx| Heat::of(source, idx, most.unwrap_or(1)));
        Self {
            name: source.row.workload.clone(),
            tables: tables(source),
            charts: vec![by_load(source), cumulative(source), over_time(source)],
            heats: heats.collect(),
            span: details.first().map_or_else(String::new, |detail| format!("{:.0}", detail.span)),
        }
    }
}

impl Heat {
    fn of(source: Source<'_>, detail_idx: usize, most: u32) -> Self {
        let detail = &source.row.details[detail_idx];
        let title = format!("Requests by pod and time, {}", detail.policy);
        let row = |(pod_idx, counts): (usize, &Vec<u32>)| {
            let datum = |idx| source.datum(&format!("details/{detail_idx}/requests/{pod_idx}/{idx}"), 1, 0);
            (format!("pod {pod_idx}"), (0..counts.len()).map(datum).collect())
        };
        let n_parts = detail.hit_ratio.len();
        let heads = (0..n_parts).map(|idx| format!("{:.0} s", as_f64(idx) * detail.span));
        let data = Table {
            title: title.clone(),
            heads: std::iter::once(String::new()).chain(heads).collect(),
            rows: detail.requests.iter().enumerate().map(row).collect(),
        };
        Self { policy: detail.policy, svg: heat(&title, &detail.requests, most), data }
    }
}

/// Makes the tables: every figure of every policy, one table for each load.
fn tables(source: Source<'_>) -> Vec<Table> {
    let heads: Vec<String> = std::iter::once("")
        .chain(COLUMNS.iter().map(|(head, ..)| *head))
        .chain(["knee at load"])
        .map(str::to_owned)
        .collect();
    let table = |(load_idx, cells): (usize, &[Cell])| {
        let row = |(policy_idx, cell): (usize, &Cell)| {
            let cell_idx = load_idx * POLICIES.len() + policy_idx;
            let datum = |(_, below, scale, n_digits): &Column| {
                source.datum(&format!("policies/{cell_idx}/{below}"), *scale, *n_digits)
            };
            let knee = source.datum(&format!("knees/{policy_idx}/load"), 1, 2);
            (cell.policy.to_owned(), COLUMNS.iter().map(datum).chain([knee]).collect())
        };
        Table {
            title: format!("Load {}", cells.first().map_or(1.0, |cell| cell.load)),
            heads: heads.clone(),
            rows: cells.iter().enumerate().map(row).collect(),
        }
    };
    source.row.by_load().enumerate().map(table).collect()
}

fn data(title: &str, first: &str, rows: Vec<(String, Vec<Datum>)>) -> Table {
    let policies = POLICIES.iter().map(|(policy, _)| *policy);
    let heads = std::iter::once(first).chain(policies).map(str::to_owned).collect();
    Table { title: title.to_owned(), heads, rows }
}

fn by_load(source: Source<'_>) -> Chart {
    let title = "Mean TTFT by load, in seconds";
    let of = |(colour, (policy, _)): (usize, &(&'static str, _))| {
        let cells = source.row.cells.iter().filter(|cell| cell.policy == *policy);
        ChartLine { colour, points: cells.map(|cell| (cell.load, cell.ttft.mean.mean)).collect() }
    };
    let drawn: Vec<ChartLine> = POLICIES.iter().enumerate().map(of).collect();
    let row = |(load_idx, cells): (usize, &[Cell])| {
        let datum = |policy_idx: usize| {
            let cell_idx = load_idx * POLICIES.len() + policy_idx;
            source.datum(&format!("policies/{cell_idx}/ttft/mean/mean"), 1, 4)
        };
        let load = cells.first().map_or(1.0, |cell| cell.load);
        (load.to_string(), (0..cells.len()).map(datum).collect())
    };
    let rows = source.row.by_load().enumerate().map(row).collect();
    Chart { title, svg: lines(&drawn, Axes { title, x: "load" }), data: data(title, "load", rows) }
}

fn cumulative(source: Source<'_>) -> Chart {
    let title = "Share of requests by TTFT";
    let details = &source.row.details;
    let n_points = details.first().map_or(0, |detail| detail.ttft_quantiles.len());
    let share = |idx: usize| as_f64(idx) / as_f64(n_points.saturating_sub(1).max(1));
    let of = |(colour, detail): (usize, &Detail)| {
        let points = detail.ttft_quantiles.iter().enumerate();
        ChartLine { colour, points: points.map(|(idx, seconds)| (*seconds, share(idx))).collect() }
    };
    let drawn: Vec<ChartLine> = details.iter().enumerate().map(of).collect();
    let row = |idx: usize| {
        (format!("{:.1} %", share(idx) * 100.0), source.of_details(&format!("ttft_quantiles/{idx}"), 4))
    };
    Chart {
        title,
        svg: lines(&drawn, Axes { title, x: "seconds until the first token" }),
        data: data(title, "share", (0..n_points).map(row).collect()),
    }
}

fn over_time(source: Source<'_>) -> Chart {
    let title = "Hit ratio over time";
    let details = &source.row.details;
    let at = |detail: &Detail, idx: usize| (as_f64(idx) + 0.5) * detail.span;
    let of = |(colour, detail): (usize, &Detail)| {
        let points = detail.hit_ratio.iter().enumerate();
        ChartLine {
            colour,
            points: points.filter_map(|(idx, ratio)| Some((at(detail, idx), (*ratio)?))).collect(),
        }
    };
    let drawn: Vec<ChartLine> = details.iter().enumerate().map(of).collect();
    let n_parts = details.first().map_or(0, |detail| detail.hit_ratio.len());
    let row = |idx: usize| {
        let seconds = details.first().map_or(0.0, |detail| at(detail, idx));
        (format!("{seconds:.0} s"), source.of_details(&format!("hit_ratio/{idx}"), 3))
    };
    Chart {
        title,
        svg: lines(&drawn, Axes { title, x: "seconds since the start" }),
        data: data(title, "time", (0..n_parts).map(row).collect()),
    }
}
