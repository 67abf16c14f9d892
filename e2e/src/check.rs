//! A check is one assertion of a run: what was expected, what was seen, and whether they agree.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One assertion, ready for every report format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Stable and unique within a run: `group/name`, lower case.
    pub id: String,
    /// The scenario group that `--only` selects.
    pub group: String,
    /// A sentence that is true when the check passes.
    pub title: String,
    pub expected: String,
    pub seen: String,
    pub passed: bool,
    /// Evidence that a reader needs when it fails, or numbers that belong beside it.
    pub detail: Option<String>,
}

impl Check {
    /// Passes when both values are equal; they are reported by their `Display`.
    pub fn equal<T: PartialEq + fmt::Display>(name: &str, title: &str, expected: T, seen: T) -> Self {
        let passed = expected == seen;
        Self::new(name, title, &expected, &seen, passed)
    }

    /// Passes when `passed` says so: for bounds, sets and orders.
    pub fn new(
        name: &str,
        title: &str,
        expected: impl fmt::Display,
        seen: impl fmt::Display,
        passed: bool,
    ) -> Self {
        let group = name.split('/').next().unwrap_or(name).to_owned();
        Self {
            id: name.to_owned(),
            group,
            title: title.to_owned(),
            expected: expected.to_string(),
            seen: seen.to_string(),
            passed,
            detail: None,
        }
    }

    /// A check that could not be made because something it needs went wrong first.
    pub fn broken(name: &str, title: &str, error: &anyhow::Error) -> Self {
        Self::new(name, title, "the scenario runs to its end", format!("{error:#}"), false)
    }

    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::Check;

    #[test]
    fn equal_compares_and_keeps_both_values() {
        let same = Check::equal("tutorial/tokens", "prompt tokens", 127, 127);
        let other = Check::equal("tutorial/tokens", "prompt tokens", 127, 128);
        assert!(same.passed && !other.passed);
        assert_eq!((other.group.as_str(), other.expected.as_str(), other.seen.as_str()), ("tutorial", "127", "128"));
    }
}
