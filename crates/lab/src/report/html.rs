//! `report.html`: one file without scripts that needs no network. The template does the layout; its values are computed
//! here.

use anyhow::{Context as _, Result};
use load::plot::Size;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

use crate::check::{Check, Group};
use crate::evidence::join::RequestTrace;
use crate::evidence::picker::Decision;
use crate::report::timeline::{Timeline, class, timeline};
use crate::report::ttft::cumulative;
use crate::report::{Outcome, Part, Report, Run, Side};

const TEMPLATE: &str = include_str!("page.html");
/// Size of the plot on wide screens. There is one plot for each width, so that its text keeps its size.
const WIDE: Size = Size { width: 720.0, height: 330.0 };
const NARROW: Size = Size { width: 340.0, height: 260.0 };
/// Largest number of requests in a section that is shown unfolded.
const SHORT_SECTION: usize = 4;

pub fn render(report: &Report) -> Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_template("page.html", TEMPLATE).context("parse the report's template")?;
    let page = Page {
        run: &report.run,
        verdict: Verdict::of(report),
        tiles: tiles(report),
        groups: groups(report),
        sides: report.sides.iter().map(SideView::of).collect(),
        plot_wide: cumulative(&report.sides, WIDE),
        plot_narrow: cumulative(&report.sides, NARROW),
        sections: sections(report),
        parts: &report.parts,
    };
    environment
        .get_template("page.html")
        .and_then(|template| template.render(Serde(&page)))
        .context("render the report")
}

/// Values for the template.
#[derive(Debug, Serialize)]
struct Page<'a> {
    run: &'a Run,
    verdict: Verdict,
    tiles: Vec<Tile>,
    groups: Vec<GroupView<'a>>,
    sides: Vec<SideView<'a>>,
    plot_wide: Option<String>,
    plot_narrow: Option<String>,
    sections: Vec<Section<'a>>,
    parts: &'a [Part],
}

#[derive(Debug, Serialize)]
struct Verdict {
    class: &'static str,
    headline: String,
}

impl Verdict {
    fn of(report: &Report) -> Self {
        let (total, failed, skipped) = (report.checks.len(), report.failed(), report.skipped());
        let (class, headline) = match report.run.outcome {
            Outcome::Passed if skipped == 0 => ("good", format!("All {total} checks passed")),
            Outcome::Passed => {
                ("good", format!("{} of {total} checks passed, {skipped} skipped", total - skipped))
            }
            Outcome::Failed if total == 0 => ("bad", "Nothing was checked".to_owned()),
            Outcome::Failed if skipped == 0 => ("bad", format!("{failed} of {total} checks failed")),
            Outcome::Failed => ("bad", format!("{failed} of {total} checks failed, {skipped} skipped")),
            Outcome::Interrupted => ("bad", format!("Interrupted after {} checks", total - skipped)),
        };
        Self { class, headline }
    }
}

/// One of the main figures.
#[derive(Debug, Serialize)]
struct Tile {
    label: &'static str,
    value: String,
    note: String,
}

fn tiles(report: &Report) -> Vec<Tile> {
    let side = |name: &str| report.sides.iter().find(|side| side.name == name);
    let mut tiles = Vec::new();
    if let (Some(picked), Some(plain)) = (side("8081"), side("8080")) {
        if let (Some(seen), Some(other)) = (picked.mean_ttft_ms(), plain.mean_ttft_ms()) {
            tiles.push(Tile {
                label: "Mean time to first token",
                value: format!("{seen:.0} ms"),
                note: format!("{} against {other:.0} ms through 8080", signed_percent(seen / other - 1.0)),
            });
        }
        if let (Some(seen), Some(other)) = (picked.hit_ratio(), plain.hit_ratio()) {
            tiles.push(Tile {
                label: "Prompt tokens from cache",
                value: format!("{:.0} %", seen * 100.0),
                note: format!("against {:.0} % through 8080", other * 100.0),
            });
        }
        tiles.push(Tile {
            label: "Later turns on their own pod",
            value: format!("{} / {}", picked.own_pod_turns, picked.later_turns),
            note: format!("against {} / {} through 8080", plain.own_pod_turns, plain.later_turns),
        });
    }
    let tutorial = |trace: &&RequestTrace| {
        trace.client.group == Group::Tutorial.name()
            && trace.decision.as_ref().is_some_and(Decision::by_prefix)
    };
    if let Some((decision, usage)) = report
        .requests
        .iter()
        .find(tutorial)
        .and_then(|trace| Some((trace.decision.as_ref()?, trace.client.usage?)))
    {
        tiles.push(Tile {
            label: "The tutorial's matching ratio",
            value: format!("{:.2}", decision.ratio),
            note: format!(
                "predicted; {} of {} tokens were cached",
                usage.cached_tokens(),
                usage.prompt_tokens
            ),
        });
    }
    tiles
}

/// Returns a percentage such as `−57 %` or `+4 %`, with a real minus sign.
fn signed_percent(share: f64) -> String {
    let sign = if share < 0.0 { '−' } else { '+' };
    format!("{sign}{:.0} %", share.abs() * 100.0)
}

#[derive(Debug, Serialize)]
struct GroupView<'a> {
    title: &'static str,
    name: &'static str,
    passed: usize,
    failed: usize,
    skipped: usize,
    checks: Vec<&'a Check>,
}

fn groups(report: &Report) -> Vec<GroupView<'_>> {
    let of = |group: Group| {
        let mut checks: Vec<&Check> = report.checks.iter().filter(|check| check.group == group).collect();
        checks.sort_by_key(|check| !check.failed());
        let count = |is: fn(&Check) -> bool| checks.iter().filter(|check| is(check)).count();
        let (passed, failed) = (count(Check::passed), count(Check::failed));
        let skipped = checks.len() - passed - failed;
        GroupView { title: group.title(), name: group.name(), passed, failed, skipped, checks }
    };
    Group::ALL.into_iter().map(of).filter(|view| !view.checks.is_empty()).collect()
}

#[derive(Debug, Serialize)]
struct SideView<'a> {
    name: &'a str,
    mean: String,
    median: String,
    p90: String,
    hit_ratio: String,
    own: String,
    pods: Vec<PodView<'a>>,
}

#[derive(Debug, Serialize)]
struct PodView<'a> {
    pod: &'a str,
    requests: usize,
    hits: f64,
    queries: f64,
    percent: f64,
    /// Width of the bar: look-ups in relation to the busiest pod of its side.
    width: f64,
}

impl<'a> SideView<'a> {
    fn of(side: &'a Side) -> Self {
        let ms = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.0} ms"));
        let busiest = side.pods.iter().map(|pod| pod.tokens.queries).fold(1.0, f64::max);
        let pods = side.pods.iter().map(|pod| PodView {
            pod: &pod.pod,
            requests: pod.requests,
            hits: pod.tokens.hits,
            queries: pod.tokens.queries,
            percent: pod.tokens.hit_ratio().unwrap_or_default() * 100.0,
            width: pod.tokens.queries / busiest * 100.0,
        });
        Self {
            name: &side.name,
            mean: ms(side.mean_ttft_ms()),
            median: ms(side.median_ttft_ms()),
            p90: ms(side.p90_ttft_ms()),
            hit_ratio: side
                .hit_ratio()
                .map_or_else(|| "–".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0)),
            own: format!("{} of {}", side.own_pod_turns, side.later_turns),
            pods: pods.collect(),
        }
    }
}

/// Requests with the same pods and caches.
#[derive(Debug, Serialize)]
struct Section<'a> {
    group: &'a str,
    name: &'a str,
    open: bool,
    timeline: Timeline,
    rows: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    label: &'a str,
    via: &'a str,
    pod: &'a str,
    class: &'static str,
    why: String,
    ratio: String,
    predicted: String,
    cached: String,
    prompt: String,
    ttft: String,
    status: u16,
    error: Option<&'a str>,
}

fn sections(report: &Report) -> Vec<Section<'_>> {
    let mut sections: Vec<(&str, &str, Vec<&RequestTrace>)> = Vec::new();
    for trace in &report.requests {
        let key = (trace.client.group.as_str(), trace.client.section.as_str());
        match sections.iter_mut().find(|(group, name, _)| (*group, *name) == key) {
            Some((.., traces)) => traces.push(trace),
            None => sections.push((key.0, key.1, vec![trace])),
        }
    }
    sections
        .into_iter()
        .map(|(group, name, traces)| Section {
            group,
            name,
            open: traces.len() <= SHORT_SECTION,
            timeline: timeline(&traces, report.run.time_scale),
            rows: traces.into_iter().map(Row::of).collect(),
        })
        .collect()
}

impl<'a> Row<'a> {
    fn of(trace: &'a RequestTrace) -> Self {
        let RequestTrace { client, served_by, envoy_upstream: _, envoy_attempts, decision, pod: _ } = trace;
        let absent = || "–".to_owned();
        let retried = envoy_attempts.filter(|attempts| *attempts > 1);
        let why = match (decision, client.via.as_str()) {
            (Some(decision), _) => decision.reason.clone().unwrap_or_else(|| decision.outcome.clone()),
            (None, "8080") => "least request".to_owned(),
            (None, "pod") => "sent to it".to_owned(),
            (None, _) => absent(),
        };
        Self {
            label: &client.label,
            via: &client.via,
            pod: served_by.as_deref().unwrap_or("–"),
            class: class(trace),
            why: retried.map_or(why.clone(), |attempts| format!("{why}, attempt {attempts}")),
            ratio: decision.as_ref().map_or_else(absent, |decision| format!("{:.2}", decision.ratio)),
            predicted: trace.predicted_tokens().map_or_else(absent, |tokens| format!("{tokens:.0}")),
            cached: client.usage.map_or_else(absent, |usage| usage.cached_tokens().to_string()),
            prompt: client.usage.map_or_else(absent, |usage| usage.prompt_tokens.to_string()),
            ttft: client.ttft_ms.map_or_else(absent, |ms| format!("{ms:.0} ms")),
            status: client.status,
            error: client.error.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::render;
    use crate::check::Verdict;
    use crate::report::fixtures::{report, skipping};
    use crate::report::{Outcome, Report};

    fn assert_self_contained(html: &str) {
        for reference in ["<script", "http://", "https://", "@import", "url(", "<link", "<img"] {
            assert!(!html.contains(reference), "the page refers to something outside: {reference}");
        }
    }

    #[test]
    fn a_full_report_shows_every_part() {
        let html = render(&report()).unwrap();
        assert_self_contained(&html);
        for part in [
            "All 2 checks passed",
            "class=\"curve",
            "qwen-6f7c-1",
            "0.54",
            "round 3 &lt;of the bash form&gt;",
        ] {
            assert!(html.contains(part), "{part} is missing");
        }
    }

    #[test]
    fn an_empty_report_says_so_in_place_of_empty_boxes() {
        let report = report();
        let run = crate::report::Run { outcome: Outcome::Interrupted, ..report.run };
        let empty = Report {
            run,
            checks: Vec::new(),
            sides: Vec::new(),
            requests: Vec::new(),
            parts: Vec::new(),
            ..report
        };
        let html = render(&empty).unwrap();
        assert_self_contained(&html);
        for part in [
            "Interrupted after 0 checks",
            "No check was made",
            "No conversation was sent",
            "No request was recorded",
        ] {
            assert!(html.contains(part), "{part} is missing");
        }
        assert!(!html.contains("<svg"));
    }

    #[test]
    fn a_skipped_check_is_no_failure_and_says_why() {
        let html = render(&skipping()).unwrap();
        for part in [
            "1 of 3 checks failed, 1 skipped",
            "0 of 1 passed, 1 skipped",
            "<dt>skipped</dt><dd>no &lt;picker&gt; runs</dd>",
        ] {
            assert!(html.contains(part), "{part} is missing");
        }
        let count = |part: &str| html.matches(part).count();
        assert_eq!((count("class=\"check failed\""), count("class=\"check skipped\"")), (1, 1));
        assert!(!render(&report()).unwrap().contains("<dt>skipped</dt>"), "without a skip there is none");
    }

    #[test]
    fn a_failed_check_comes_first_and_shows_both_values() {
        let mut report = report();
        report.run.outcome = Outcome::Failed;
        report.checks[1].verdict = Verdict::Failed;
        report.checks[1].seen = "another pod".to_owned();
        let html = render(&report).unwrap();
        assert!(html.contains("1 of 2 checks failed") && html.contains("another pod"));
    }
}
