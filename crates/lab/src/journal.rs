//! Findings of a run so far. They are collected during the run, so that an interrupted run still has a report.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::check::Check;
use crate::evidence::join::RequestTrace;
use crate::report::{Outcome, Part, Report, Run, SCHEMA, Side};

/// Findings of a run, shared by reference.
#[derive(Debug, Default)]
pub struct Journal {
    findings: Mutex<Findings>,
}

#[derive(Debug, Default)]
struct Findings {
    checks: Vec<Check>,
    sides: Vec<Side>,
    requests: Vec<RequestTrace>,
    parts: Vec<Part>,
}

impl Journal {
    pub fn check(&self, check: Check) {
        self.lock().checks.push(check);
    }

    pub fn side(&self, side: Side) {
        self.lock().sides.push(side);
    }

    pub fn requests(&self, traces: &[RequestTrace]) {
        self.lock().requests.extend_from_slice(traces);
    }

    pub fn part(&self, part: Part) {
        self.lock().parts.push(part);
    }

    /// Returns the side with this name, if it has been measured.
    pub fn side_named(&self, name: &str) -> Option<Side> {
        self.lock().sides.iter().find(|side| side.name == name).cloned()
    }

    /// Makes a report of the findings so far. A run without any check has failed; skipped checks do not fail it.
    pub fn report(&self, mut run: Run) -> Report {
        let findings = self.lock();
        let failed = findings.checks.is_empty() || findings.checks.iter().any(Check::failed);
        if run.outcome == Outcome::Passed && failed {
            run.outcome = Outcome::Failed;
        }
        Report {
            schema: SCHEMA.to_owned(),
            run,
            checks: findings.checks.clone(),
            sides: findings.sides.clone(),
            requests: findings.requests.clone(),
            parts: findings.parts.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Journal;
    use crate::check::{Check, Group};
    use crate::report::{Outcome, fixtures};

    #[test]
    fn the_outcome_follows_the_checks() {
        let journal = Journal::default();
        let run = fixtures::report().run;
        assert_eq!(journal.report(run.clone()).run.outcome, Outcome::Failed, "nothing was checked");
        journal.check(Check::of(Group::Tutorial, "a", "a").equal(1, 1));
        assert_eq!(journal.report(run.clone()).run.outcome, Outcome::Passed);
        journal.check(Check::of(Group::Tutorial, "s", "s").skipped("one pod runs"));
        assert_eq!(journal.report(run.clone()).run.outcome, Outcome::Passed, "skips do not fail a run");
        journal.check(Check::of(Group::Tutorial, "b", "b").equal(1, 2));
        assert_eq!(journal.report(run).run.outcome, Outcome::Failed);
    }
}
