//! JUnit XML for CI: one suite per group, one case per check.

use anyhow::{Context as _, Result};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use crate::check::{Check, Group, Verdict};
use crate::report::Report;

pub fn render(report: &Report) -> Result<String> {
    let mut document = quick_junit::Report::new("warmpath e2e");
    for group in Group::ALL {
        let mut suite = TestSuite::new(group.name());
        suite.add_test_cases(report.checks.iter().filter(|check| check.group == group).map(case));
        if !suite.test_cases.is_empty() {
            document.add_test_suite(suite);
        }
    }
    document.to_string().context("render junit.xml")
}

fn case(check: &Check) -> TestCase {
    let values = format!("expected: {}\nseen: {}", check.expected, check.seen);
    let status = match &check.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Skipped(reason) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.as_str());
            status
        }
        Verdict::Failed => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            let detail = check.detail.as_deref().unwrap_or_default();
            status.set_message(check.title.as_str()).set_description(format!("{values}\n{detail}"));
            status
        }
    };
    let mut case = TestCase::new(check.id.as_str(), status);
    case.set_classname(format!("e2e.{}", check.group)).set_system_out(values);
    case
}

#[cfg(test)]
mod tests {
    use super::render;
    use crate::check::Verdict;
    use crate::report::fixtures::{report, skipping};

    #[test]
    fn skips_are_counted_with_their_reason() {
        let xml = render(&skipping()).unwrap();
        for part in [
            "tests=\"1\" skipped=\"1\" errors=\"0\" failures=\"0\"",
            "<skipped message=\"no &lt;picker&gt; runs\"",
            "tests=\"1\" skipped=\"0\" errors=\"0\" failures=\"1\"",
        ] {
            assert!(xml.contains(part), "{part} is missing in\n{xml}");
        }
        assert_eq!(xml.matches("<skipped").count(), 1, "{xml}");
    }

    #[test]
    fn failures_are_failures_and_text_is_escaped() {
        let mut report = report();
        report.checks[0].verdict = Verdict::Failed;
        report.checks[0].seen = "<none> & \u{1b}[31mred".to_owned();
        let xml = render(&report).unwrap();
        let n_checks = report.checks.len();
        assert!(xml.contains(&format!("tests=\"{n_checks}\" skipped=\"0\" failures=\"1\"")), "{xml}");
        assert!(xml.contains("seen: &lt;none&gt; &amp; red"), "{xml}");
    }
}
