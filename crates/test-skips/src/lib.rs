//! Tests that are left out say so: a line with the test's name, its place, the reason and the way out.
//! The line goes past the capture of test output, so that it is visible when all tests pass.
//!
//! ```text
//! skipped: soak::pods_die (e2e/tests/it/soak.rs:12): slow: set WARMPATH_SLOW_TESTS=1
//! ```

use std::io::Write as _;
use std::panic::Location;
use std::thread;

/// Variable that lets slow tests run, with the value 1.
const SLOW_TESTS: &str = "WARMPATH_SLOW_TESTS";

/// Returns true, after a line that says so, if slow tests are not asked for. A slow test begins with
/// `if test_skips::skips_slow() { return; }`.
#[must_use]
#[track_caller]
pub fn skips_slow() -> bool {
    let skips = !is_set(SLOW_TESTS);
    if skips {
        skipped(&format!("slow: set {SLOW_TESTS}=1"));
    }
    skips
}

/// Prints that the calling test is left out because of what is `missing`.
///
/// # Panics
/// If the variable `required` is 1: then the test has to run.
#[track_caller]
pub fn missing(missing: &str, required: &str) {
    assert!(!is_set(required), "{missing}, and {required}=1 is set");
    skipped(missing);
}

/// Prints that the calling test is left out, with the reason and the way out.
#[track_caller]
pub fn skipped(reason: &str) {
    let thread = thread::current();
    let (test, place) = (thread.name().unwrap_or("a test"), Location::caller());
    // Only `println!` and its like are captured.
    let _stderr_gone =
        writeln!(std::io::stderr(), "skipped: {test} ({}:{}): {reason}", place.file(), place.line());
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    const REQUIRED: &str = "WARMPATH_TEST_SKIPS_REQUIRED";
    const BODY: &str = "the body has run";

    /// A slow test, which the tests below start in a process of its own.
    #[test]
    fn slow_example() {
        if super::skips_slow() {
            return;
        }
        println!("{BODY}");
    }

    #[test]
    fn missing_example() {
        super::missing("there is no such program", REQUIRED);
    }

    /// Runs a test of this module, in a process with or without the variable.
    fn run(test: &str, variable: &str, value: Option<&str>) -> (String, Output) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("tests::{test}"), "--show-output"]).env_remove(variable);
        let output = command.envs(value.map(|value| (variable, value))).output().unwrap();
        (String::from_utf8_lossy(&output.stdout).into_owned(), output)
    }

    #[test]
    fn a_slow_test_is_left_out_by_name_until_it_is_asked_for() {
        for (value, runs) in [(None, false), (Some("0"), false), (Some("1"), true)] {
            let (stdout, output) = run("slow_example", super::SLOW_TESTS, value);
            assert!(output.status.success() && stdout.contains("1 passed"), "{output:?}");
            assert_eq!(stdout.contains(BODY), runs, "{value:?}: {stdout}");
            let said = String::from_utf8_lossy(&output.stderr);
            let is_named = said.contains("skipped: tests::slow_example (crates/test-skips/src/lib.rs:")
                && said.contains("): slow: set WARMPATH_SLOW_TESTS=1\n");
            assert_eq!(is_named, !runs, "{value:?}: {said}");
        }
    }

    #[test]
    fn what_is_missing_is_said_or_fails_the_test() {
        let (_, output) = run("missing_example", REQUIRED, None);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("): there is no such program\n"), "{said}");
        let (stdout, output) = run("missing_example", REQUIRED, Some("1"));
        assert!(!output.status.success(), "{stdout}");
        assert!(stdout.contains("there is no such program, and WARMPATH_TEST_SKIPS_REQUIRED=1 is set"));
    }
}
