//! `/metrics` with false parts: old numbers, made-up ones, or missing ones, in an otherwise true page.

use crate::metrics::exposition::{Format, float};

/// A page of an earlier time, in each format.
#[derive(Clone, Debug)]
pub struct FrozenPages {
    pub text: String,
    pub open_metrics: String,
}

/// Short names of the metrics that routers read. A short name means the first of its metrics that is on the page.
const ALIASES: [(&str, &[&str]); 3] = [
    ("running", &["vllm:num_requests_running"]),
    ("waiting", &["vllm:num_requests_waiting"]),
    ("kv_cache_usage", &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"]),
];

// === impl FrozenPages ===

impl FrozenPages {
    /// Returns the page with only these samples, by full name; with all if `only` is empty.
    pub fn page(&self, format: Format, only: &[String]) -> String {
        let page = match format {
            Format::Text => &self.text,
            Format::OpenMetrics => &self.open_metrics,
        };
        if only.is_empty() {
            return page.clone();
        }
        let is_asked =
            |line: &&str| sample_name(line).is_none_or(|name| only.iter().any(|only| only == name));
        page.lines().filter(is_asked).map(|line| format!("{line}\n")).collect()
    }
}

/// Returns the full name of a metric on this page; `None` if the page does not have it.
pub fn resolve<'a>(metric: &'a str, page: &str) -> Option<&'a str> {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == metric);
    let names = alias.map_or(std::slice::from_ref(&metric), |(_, names)| names);
    names.iter().copied().find(|name| page.lines().any(|line| sample_name(line) == Some(name)))
}

/// Sets this value in every sample of the metric.
pub fn lie(page: &str, metric: &str, value: f64) -> String {
    let Some(metric) = resolve(metric, page) else { return page.to_owned() };
    let told = page.lines().map(|line| match (sample_name(line) == Some(metric), line.rsplit_once(' ')) {
        (true, Some((series, _true_value))) => format!("{series} {}\n", float(value)),
        (true, None) | (false, _) => format!("{line}\n"),
    });
    told.collect()
}

/// Removes the metric's samples from the page.
pub fn omit(page: &str, metric: &str) -> String {
    let Some(metric) = resolve(metric, page) else { return page.to_owned() };
    let kept = page.lines().filter(|line| sample_name(line) != Some(metric));
    kept.map(|line| format!("{line}\n")).collect()
}

/// Returns the name of a line's sample; `None` for comments.
fn sample_name(line: &str) -> Option<&str> {
    let name = line.split(['{', ' ']).next().unwrap_or_default();
    Some(name).filter(|name| !name.is_empty() && *name != "#")
}
