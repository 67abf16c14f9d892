//! Report of choices and their sums, for people and for programs.

use super::replay::{Agreement, RoutedChoice};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

#[derive(Debug, Serialize)]
pub(super) struct Totals {
    requests: usize,
    pods: usize,
    /// Number of `requests` that no engine admitted.
    not_admitted: usize,
    prompt_tokens: u64,
    cached_tokens: u64,
    here_tokens: u64,
    best_tokens: u64,
    pub(super) regret_tokens: u64,
    requests_with_regret: usize,
    cost_ms: f64,
    admissions: usize,
    /// Admissions that the replay explains. If these are not all, the logs are not reliable.
    admissions_explained: usize,
}

#[derive(Serialize)]
struct Report<'a> {
    requests: Vec<Row<'a>>,
    totals: &'a Totals,
}

#[derive(Serialize)]
struct Row<'a> {
    request_id: &'a str,
    pod: &'a str,
    time_ns: u64,
    prompt_tokens: u32,
    cached_tokens: Option<u32>,
    here_tokens: u32,
    best_pod: &'a str,
    best_tokens: u32,
    regret_tokens: u32,
    cost_ms: f64,
    hits: &'a BTreeMap<String, u32>,
}

// === impl Totals ===

impl Totals {
    pub(super) fn of(choices: &[RoutedChoice], agreement: &Agreement) -> Self {
        let sum =
            |tokens: fn(&RoutedChoice) -> u32| choices.iter().map(|choice| u64::from(tokens(choice))).sum();
        Self {
            requests: choices.len(),
            pods: choices.iter().flat_map(|choice| choice.hits.keys()).collect::<BTreeSet<_>>().len(),
            not_admitted: choices.iter().filter(|choice| choice.cached_tokens.is_none()).count(),
            prompt_tokens: sum(|choice| choice.prompt_tokens),
            cached_tokens: sum(|choice| choice.cached_tokens.unwrap_or_default()),
            here_tokens: sum(|choice| choice.here_tokens),
            best_tokens: sum(|choice| choice.best_tokens),
            regret_tokens: sum(regret_tokens),
            requests_with_regret: choices.iter().filter(|choice| regret_tokens(choice) > 0).count(),
            cost_ms: choices.iter().map(cost_ms).sum(),
            admissions: agreement.n_admissions,
            admissions_explained: agreement.n_agreed,
        }
    }
}

pub(super) fn write_json(
    choices: &[RoutedChoice],
    totals: &Totals,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let requests = choices.iter().map(Row::of).collect();
    serde_json::to_writer_pretty(&mut *out, &Report { requests, totals })?;
    writeln!(out)
}

pub(super) fn write_table(
    choices: &[RoutedChoice],
    totals: &Totals,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["request", "pod", "prompt", "cached", "here", "best", "on", "regret", "cost"]);
    for column in [2, 3, 4, 5, 7, 8] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for choice in choices {
        table.add_row([
            choice.request_id.clone(),
            choice.pod.clone(),
            choice.prompt_tokens.to_string(),
            choice.cached_tokens.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string()),
            choice.here_tokens.to_string(),
            choice.best_tokens.to_string(),
            choice.best_pod.clone(),
            regret_tokens(choice).to_string(),
            format!("{:.1} ms", cost_ms(choice)),
        ]);
    }
    writeln!(out, "{}\n", table.trim_fmt())?;
    write_totals(totals, out)
}

fn write_totals(totals: &Totals, out: &mut impl Write) -> std::io::Result<()> {
    let Totals {
        requests,
        pods,
        not_admitted,
        prompt_tokens,
        cached_tokens,
        here_tokens,
        best_tokens,
        regret_tokens,
        requests_with_regret,
        cost_ms,
        admissions,
        admissions_explained,
    } = totals;
    let share = |tokens: u64| format!("{tokens} tokens ({:.1} %)", percent(tokens, *prompt_tokens));
    writeln!(out, "requests  {requests} over {pods} pods, {not_admitted} never admitted")?;
    writeln!(out, "prompts   {prompt_tokens} tokens")?;
    writeln!(out, "cached    {}", share(*cached_tokens))?;
    writeln!(out, "here      {}", share(*here_tokens))?;
    writeln!(out, "best      {}", share(*best_tokens))?;
    writeln!(out, "regret    {} on {requests_with_regret} requests", share(*regret_tokens))?;
    writeln!(out, "cost      {cost_ms:.1} ms")?;
    writeln!(out, "replay    explains {admissions_explained} of {admissions} admissions")
}

fn percent(tokens: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { tokens as f64 / of as f64 * 100.0 }
}

fn regret_tokens(choice: &RoutedChoice) -> u32 {
    choice.best_tokens - choice.here_tokens
}

fn cost_ms(choice: &RoutedChoice) -> f64 {
    choice.cost.as_secs_f64() * 1e3
}

// === impl Row ===

impl<'a> Row<'a> {
    fn of(choice: &'a RoutedChoice) -> Self {
        Self {
            request_id: &choice.request_id,
            pod: &choice.pod,
            time_ns: choice.time_ns,
            prompt_tokens: choice.prompt_tokens,
            cached_tokens: choice.cached_tokens,
            here_tokens: choice.here_tokens,
            best_pod: &choice.best_pod,
            best_tokens: choice.best_tokens,
            regret_tokens: regret_tokens(choice),
            cost_ms: cost_ms(choice),
            hits: &choice.hits,
        }
    }
}
