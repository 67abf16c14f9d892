//! The summary on standard output: failed checks in full, figures of the groups, and the two paths side by side.

use std::fmt::Write as _;

use comfy_table::Table;
use load::table::new_table;
use owo_colors::OwoColorize as _;

use crate::check::{Group, Verdict};
use crate::report::{Outcome, Report, Side};

/// Use of colours in the text; only a terminal's may have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Coloured,
    Plain,
}

impl Style {
    pub fn good(self, text: &str) -> String {
        match self {
            Self::Coloured => text.green().to_string(),
            Self::Plain => text.to_owned(),
        }
    }

    pub fn bad(self, text: &str) -> String {
        match self {
            Self::Coloured => text.red().bold().to_string(),
            Self::Plain => text.to_owned(),
        }
    }

    pub fn quiet(self, text: &str) -> String {
        match self {
            Self::Coloured => text.dimmed().to_string(),
            Self::Plain => text.to_owned(),
        }
    }
}

/// Returns the whole summary, with a newline at the end.
pub fn render(report: &Report, style: Style) -> String {
    let mut text = String::new();
    for check in &report.checks {
        if let Verdict::Skipped(reason) = &check.verdict {
            let _ = writeln!(text, "{} {}  {}", style.quiet("SKIPPED"), check.id, check.title);
            let _ = writeln!(text, "       because  {reason}");
        }
    }
    for check in report.checks.iter().filter(|check| check.failed()) {
        let mark = style.bad("FAILED");
        let _ = writeln!(text, "{mark} {}  {}", check.id, check.title);
        let _ = writeln!(text, "       expected {}\n       seen     {}", check.expected, check.seen);
        if let Some(detail) = &check.detail {
            let _ = writeln!(text, "       {}", style.quiet(&detail.replace('\n', "\n       ")));
        }
    }
    if report.sides.iter().any(|side| !side.ttft_ms.is_empty()) {
        let _ = writeln!(text, "{}\n", sides_table(&report.sides));
    }
    let _ = writeln!(text, "{}", groups_table(report));
    for note in &report.run.notes {
        let _ = writeln!(text, "note: {note}");
    }
    let _ = writeln!(text, "{}", verdict(report, style));
    text
}

fn groups_table(report: &Report) -> Table {
    let mut table = new_table(&["group", "passed", "failed", "skipped"], 1);
    for group in Group::ALL {
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for check in report.checks.iter().filter(|check| check.group == group) {
            match check.verdict {
                Verdict::Passed => passed += 1,
                Verdict::Failed => failed += 1,
                Verdict::Skipped(_) => skipped += 1,
            }
        }
        if passed + failed + skipped > 0 {
            let counts = [passed, failed, skipped].map(|count: usize| count.to_string());
            table.add_row(std::iter::once(group.title().to_owned()).chain(counts));
        }
    }
    table
}

fn sides_table(sides: &[Side]) -> Table {
    let mut header = vec!["20 conversations x 5 turns"];
    header.extend(sides.iter().map(|side| side.name.as_str()));
    let mut table = new_table(&header, 1);
    let row = |label: &str, value: &dyn Fn(&Side) -> String| {
        std::iter::once(label.to_owned()).chain(sides.iter().map(value)).collect::<Vec<_>>()
    };
    table.add_row(row("mean TTFT", &|side| show(side.mean_ttft_ms(), |ms| format!("{ms:.0} ms"))));
    table.add_row(row("median TTFT", &|side| show(side.median_ttft_ms(), |ms| format!("{ms:.0} ms"))));
    table.add_row(row("p90 TTFT", &|side| show(side.p90_ttft_ms(), |ms| format!("{ms:.0} ms"))));
    table.add_row(row("token hit ratio", &|side| {
        show(side.hit_ratio(), |ratio| format!("{:.1} %", ratio * 100.0))
    }));
    table.add_row(row("later turns on their own pod", &|side| {
        format!("{} of {}", side.own_pod_turns, side.later_turns)
    }));
    table
}

fn show(value: Option<f64>, text: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

fn verdict(report: &Report, style: Style) -> String {
    let (total, failed, skipped) = (report.checks.len(), report.failed(), report.skipped());
    let (made, elapsed) = (total - skipped, report.run.elapsed_s);
    let skips = if skipped == 0 { String::new() } else { format!(", {skipped} skipped") };
    match report.run.outcome {
        Outcome::Passed => style.good(&format!("{made} of {total} checks passed{skips} in {elapsed:.1} s")),
        Outcome::Failed => style.bad(&format!("{failed} of {total} checks failed{skips} in {elapsed:.1} s")),
        Outcome::Interrupted => style.bad(&format!(
            "interrupted after {elapsed:.1} s: {made} checks made, {failed} of them failed{skips}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{Style, render};
    use crate::check::Verdict;
    use crate::report::fixtures::{report, skipping};
    use crate::report::{Outcome, Side};

    #[test]
    fn a_passed_run_shows_both_paths_and_the_verdict() {
        let text = render(&report(), Style::Plain);
        for part in
            ["8081", "8080", "token hit ratio", "72.5 %", "30 of 32", "2 of 2 checks passed in 41.5 s"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "plain text has no escapes");
    }

    #[test]
    fn skipped_checks_are_counted_apart_and_say_why() {
        let text = render(&skipping(), Style::Plain);
        for part in [
            "SKIPPED faults/picker-hung/fails",
            "because  no <picker> runs",
            "1 of 3 checks failed, 1 skipped in 41.5 s",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let mut passed = skipping();
        passed.run.outcome = Outcome::Passed;
        passed.checks.retain(|check| !check.failed());
        assert!(render(&passed, Style::Plain).contains("1 of 2 checks passed, 1 skipped in"));
        assert!(!render(&report(), Style::Plain).contains("SKIPPED"), "without a skip there is none");
    }

    #[test]
    fn a_failed_check_is_shown_in_full() {
        let mut report = report();
        report.run.outcome = Outcome::Failed;
        report.checks[0].verdict = Verdict::Failed;
        report.checks[0].seen = "128".to_owned();
        report.sides = Vec::<Side>::new();
        let text = render(&report, Style::Coloured);
        assert!(text.contains("tutorial/bash/prompt-tokens") && text.contains("seen     128"));
        assert!(text.contains("1 of 2 checks failed") && text.contains('\u{1b}'));
        assert!(!text.contains("mean TTFT"), "no conversations, no table");
    }
}
