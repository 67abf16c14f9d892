//! `compare.html`: the charts, each with its data beside it. One file, no script, no network.

use anyhow::{Context as _, Result};
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

use crate::compare::charts::{Axes, Line, heat, lines};
use crate::compare::matrix::{Cell, Detail, POLICIES, Row, excess};
use crate::stats::as_f64;

const TEMPLATE: &str = include_str!("page.html");

#[derive(Debug, Serialize)]
struct Page {
    seeds: u32,
    policies: Vec<&'static str>,
    workloads: Vec<View>,
}

#[derive(Debug, Serialize)]
struct View {
    name: String,
    verdict: String,
    charts: Vec<Chart>,
    heats: Vec<Heat>,
    /// Seconds of a heat map's column.
    span: String,
}

/// A chart, and the table that it is drawn from.
#[derive(Debug, Serialize)]
struct Chart {
    title: &'static str,
    svg: String,
    heads: Vec<String>,
    rows: Vec<Vec<String>>,
}

#[derive(Debug, Serialize)]
struct Heat {
    policy: &'static str,
    svg: String,
    rows: Vec<Vec<String>>,
}

/// # Errors
/// When the template does not go with what it is given.
pub fn render(rows: &[Row], seeds: u32) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_template("page.html", TEMPLATE).context("parse the comparison's template")?;
    let page = Page {
        seeds,
        policies: POLICIES.iter().map(|(name, _)| *name).collect(),
        workloads: rows.iter().map(View::of).collect(),
    };
    let template = environment.get_template("page.html").context("find the comparison's template")?;
    template.render(Serde(&page)).context("render the comparison")
}

impl View {
    fn of(row: &Row) -> Self {
        let verdicts: Vec<String> = row
            .by_load()
            .map(|cells| {
                let load = cells.first().map_or(1.0, |cell| cell.load);
                format!("at load {load} the default is {:.1} % above the best router", excess(cells) * 100.0)
            })
            .collect();
        let most = row.details.iter().flat_map(|detail| detail.requests.iter().flatten()).copied().max();
        let heats = row.details.iter().map(|detail| Heat::of(detail, most.unwrap_or(1)));
        Self {
            name: row.workload.clone(),
            verdict: verdicts.join("; "),
            charts: vec![by_load(row), cumulative(row), over_time(row)],
            heats: heats.collect(),
            span: row.details.first().map_or_else(String::new, |detail| format!("{:.0}", detail.span)),
        }
    }
}

impl Heat {
    fn of(detail: &Detail, most: u32) -> Self {
        let title = format!("Requests by pod and time, {}", detail.policy);
        let rows = detail.requests.iter().map(|pod| pod.iter().map(u32::to_string).collect::<Vec<String>>());
        Self { policy: detail.policy, svg: heat(&title, &detail.requests, most), rows: rows.collect() }
    }
}

fn policy_heads(first: &str, policies: impl Iterator<Item = &'static str>) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(policies.map(str::to_owned)).collect()
}

fn by_load(row: &Row) -> Chart {
    let title = "Mean TTFT by load";
    let of = |(colour, (policy, _)): (usize, &(&'static str, _))| Line {
        colour,
        points: row
            .cells
            .iter()
            .filter(|cell| cell.policy == *policy)
            .map(|cell| (cell.load, cell.ttft.mean.mean))
            .collect(),
    };
    let drawn: Vec<Line> = POLICIES.iter().enumerate().map(of).collect();
    let table = |cells: &[Cell]| {
        let load = cells.first().map_or(1.0, |cell| cell.load).to_string();
        std::iter::once(load).chain(cells.iter().map(|cell| cell.ttft.mean.mean.to_string())).collect()
    };
    Chart {
        title: "Mean TTFT by load, in seconds",
        svg: lines(&drawn, Axes { title, x: "load" }),
        heads: policy_heads("load", POLICIES.iter().map(|(policy, _)| *policy)),
        rows: row.by_load().map(table).collect(),
    }
}

fn cumulative(row: &Row) -> Chart {
    let steps = |detail: &Detail| as_f64(detail.ttft_quantiles.len().saturating_sub(1).max(1));
    let of = |(colour, detail): (usize, &Detail)| Line {
        colour,
        points: detail
            .ttft_quantiles
            .iter()
            .enumerate()
            .map(|(idx, seconds)| (*seconds, as_f64(idx) / steps(detail)))
            .collect(),
    };
    let drawn: Vec<Line> = row.details.iter().enumerate().map(of).collect();
    let n_points = row.details.first().map_or(0, |detail| detail.ttft_quantiles.len());
    let line = |idx: usize| {
        let share = row.details.first().map_or(0.0, |detail| as_f64(idx) / steps(detail));
        let values = row.details.iter().map(|detail| detail.ttft_quantiles[idx].to_string());
        std::iter::once(share.to_string()).chain(values).collect()
    };
    Chart {
        title: "Share of requests by TTFT",
        svg: lines(&drawn, Axes { title: "Share of requests by TTFT", x: "seconds until the first token" }),
        heads: policy_heads("share", row.details.iter().map(|detail| detail.policy)),
        rows: (0..n_points).map(line).collect(),
    }
}

fn over_time(row: &Row) -> Chart {
    let at = |detail: &Detail, idx: usize| (as_f64(idx) + 0.5) * detail.span;
    let of = |(colour, detail): (usize, &Detail)| Line {
        colour,
        points: detail
            .hit_ratio
            .iter()
            .enumerate()
            .filter_map(|(idx, ratio)| Some((at(detail, idx), (*ratio)?)))
            .collect(),
    };
    let drawn: Vec<Line> = row.details.iter().enumerate().map(of).collect();
    let n_parts = row.details.first().map_or(0, |detail| detail.hit_ratio.len());
    let line = |idx: usize| {
        let seconds = row.details.first().map_or(0.0, |detail| at(detail, idx));
        let ratio =
            |detail: &Detail| detail.hit_ratio[idx].map_or_else(String::new, |ratio| ratio.to_string());
        std::iter::once(seconds.to_string()).chain(row.details.iter().map(ratio)).collect()
    };
    Chart {
        title: "Hit ratio over time",
        svg: lines(&drawn, Axes { title: "Hit ratio over time", x: "seconds since the start" }),
        heads: policy_heads("seconds", row.details.iter().map(|detail| detail.policy)),
        rows: (0..n_parts).map(line).collect(),
    }
}
