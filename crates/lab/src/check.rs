//! A check: one assertion of a run, with the expected value, the seen value, and whether they agree. A check that the
//! cluster gives no chance to make is skipped, with the reason.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The scenario groups, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Steps 1-4 of the tutorial, in the three forms that shells make of its requests.
    Tutorial,
    /// Round 2 on a warm and on a cold pod, compared with the latency model.
    Latency,
    /// 20 conversations of 5 turns through 8081 and through 8080.
    Conversations,
    /// The picker uses the engines' KV events.
    Precise,
    /// For every kind of request, the picker predicts what the engine has cached.
    Requests,
    /// Negative controls: the effects disappear when their causes do.
    Controls,
    /// A killed pod, a killed picker, a broken request.
    Faults,
    /// Hostile clients and broken neighbours, which other clients do not notice.
    Hostile,
}

impl Group {
    pub const ALL: [Self; 8] = [
        Self::Tutorial,
        Self::Latency,
        Self::Conversations,
        Self::Precise,
        Self::Requests,
        Self::Controls,
        Self::Faults,
        Self::Hostile,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tutorial => "tutorial",
            Self::Latency => "latency",
            Self::Conversations => "conversations",
            Self::Precise => "precise",
            Self::Requests => "requests",
            Self::Controls => "controls",
            Self::Faults => "faults",
            Self::Hostile => "hostile",
        }
    }

    /// Returns the group's heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Tutorial => "The tutorial, step by step",
            Self::Latency => "A warm pod answers sooner",
            Self::Conversations => "Conversations stay with their pod",
            Self::Precise => "Predictions from the engines' KV events",
            Self::Requests => "Predicted against cached, for every kind of request",
            Self::Controls => "Negative controls",
            Self::Faults => "Faults",
            Self::Hostile => "Hostile clients and broken neighbours",
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One assertion, ready for every report format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Stable id, unique within a run: `group/name`.
    pub id: String,
    pub group: Group,
    /// A sentence that is true when the check passes.
    pub title: String,
    pub expected: String,
    pub seen: String,
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Evidence for a failure, or further figures.
    pub detail: Option<String>,
}

/// Result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "VerdictFields", into = "VerdictFields")]
pub enum Verdict {
    Passed,
    Failed,
    /// The check could not be made, for this reason.
    Skipped(String),
}

/// A verdict in JSON: `passed` is false for a skipped check too, and `skipped` is null for one that was made.
#[derive(Serialize, Deserialize)]
struct VerdictFields {
    passed: bool,
    #[serde(default)]
    skipped: Option<String>,
}

impl From<Verdict> for VerdictFields {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Passed => Self { passed: true, skipped: None },
            Verdict::Failed => Self { passed: false, skipped: None },
            Verdict::Skipped(reason) => Self { passed: false, skipped: Some(reason) },
        }
    }
}

impl From<VerdictFields> for Verdict {
    fn from(VerdictFields { passed, skipped }: VerdictFields) -> Self {
        match (passed, skipped) {
            (true, _) => Self::Passed,
            (false, None) => Self::Failed,
            (false, Some(reason)) => Self::Skipped(reason),
        }
    }
}

impl Check {
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Passed
    }

    pub fn failed(&self) -> bool {
        self.verdict == Verdict::Failed
    }

    /// Starts a check of `group`; `name` is unique within the group.
    pub fn of(group: Group, name: impl fmt::Display, title: impl Into<String>) -> Claim {
        Claim { id: format!("{group}/{name}"), group, title: title.into() }
    }

    /// Starts a check of the faults; `name` is unique among them.
    pub fn of_faults(name: &str, title: &str) -> Claim {
        Self::of(Group::Faults, name, title)
    }

    /// Adds evidence; an empty text adds nothing.
    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string()).filter(|detail| !detail.is_empty());
        self
    }
}

/// A check that still lacks its values.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Claim {
    id: String,
    group: Group,
    title: String,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

impl Claim {
    /// Passes if both values are equal; reports show them by their `Display`.
    pub fn equal<T: PartialEq + fmt::Display>(self, expected: T, seen: T) -> Check {
        let passed = expected == seen;
        self.holds(expected, seen, passed)
    }

    /// Passes if `passed` is true: for bounds, sets and orders.
    pub fn holds(self, expected: impl fmt::Display, seen: impl fmt::Display, passed: bool) -> Check {
        let verdict = if passed { Verdict::Passed } else { Verdict::Failed };
        self.judged(expected.to_string(), seen.to_string(), verdict)
    }

    /// Fails, because an error came before the values of the check were known.
    pub fn broken(self, error: &anyhow::Error) -> Check {
        self.holds("the scenario runs to its end", format!("{error:#}"), false)
    }

    /// Is skipped, because the cluster cannot give what the check needs.
    pub fn skipped(self, reason: impl fmt::Display) -> Check {
        self.judged("-".to_owned(), "-".to_owned(), Verdict::Skipped(reason.to_string()))
    }

    /// True if `check` is this claim with its values.
    pub fn is_of(&self, check: &Check) -> bool {
        self.id == check.id
    }

    fn judged(self, expected: String, seen: String, verdict: Verdict) -> Check {
        let Self { id, group, title } = self;
        Check { id, group, title, expected, seen, verdict, detail: None }
    }
}

#[cfg(test)]
mod tests {
    use super::{Check, Group};

    #[test]
    fn equal_compares_and_keeps_both_values() {
        let same = Check::of(Group::Tutorial, "tokens", "prompt tokens").equal(127, 127);
        let other = Check::of(Group::Tutorial, "tokens", "prompt tokens").equal(127, 128);
        assert!(same.passed() && other.failed());
        assert_eq!(
            (other.id.as_str(), other.expected.as_str(), other.seen.as_str()),
            ("tutorial/tokens", "127", "128")
        );
    }

    #[test]
    fn a_broken_scenario_fails_its_check() {
        let check = Check::of(Group::Faults, "x", "y").broken(&anyhow::anyhow!("no pod").context("start"));
        assert_eq!((check.failed(), check.seen.as_str()), (true, "start: no pod"));
    }

    #[test]
    fn json_distinguishes_the_three_verdicts() {
        let claim = || Check::of(Group::Faults, "x", "y");
        for (check, passed, skipped) in [
            (claim().equal(1, 1), true, None),
            (claim().equal(1, 2), false, None),
            (claim().skipped("no shell"), false, Some("no shell")),
        ] {
            let json = serde_json::to_value(&check).unwrap();
            assert_eq!(
                (json["passed"].as_bool(), json["skipped"].as_str()),
                (Some(passed), skipped),
                "{json}"
            );
            assert_eq!(serde_json::from_value::<Check>(json).unwrap(), check);
        }
    }
}
