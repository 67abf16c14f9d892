//! The tutorial itself: its commands as printed, run by a shell one after the other against the cluster. What each writes
//! is compared with what it must look like, and all of it is kept as a transcript.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use lab::cluster::manifests::Manifests;
use regex::Regex;
use serde::Deserialize;
use tokio::process::Command;
use tracing::info;

use crate::files;

/// File of the commands, in the folder of the tutorial's manifests.
const COMMANDS: &str = "tutorial/commands.yaml";
/// Line of an expectation that stands for any lines.
const ANY_LINES: &str = "...";
/// Duration of step 5's runs, as printed.
const PRINTED_TIME: &str = "--time 600 ";
/// Runs the command in `COMMAND` with the variables that earlier ones have exported, and keeps those that it exports.
const RUN: &str = r#"[ ! -e "$EXPORTS" ] || . "$EXPORTS"
eval "$COMMAND"
status=$?
unset COMMAND
export -p > "$EXPORTS"
exit $status"#;

/// One command, and what it must look like.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    pub title: String,
    pub run: String,
    /// A regular expression for each line of standard output, or [`ANY_LINES`].
    #[serde(default)]
    prints: String,
}

/// Output of a command, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    /// Exit code; `None` if a signal ended the command.
    pub code: Option<i32>,
}

/// A shell between two commands: a folder with the tutorial's files, and the variables that were exported.
#[derive(Debug)]
pub struct Shell {
    folder: PathBuf,
    exports: PathBuf,
    kubeconfig: Option<PathBuf>,
}

/// Reads the commands in the folder of the tutorial's manifests.
///
/// # Errors
/// When the file cannot be read, or is not a list of steps.
pub fn steps(manifests: &Path) -> Result<Vec<Step>> {
    let path = manifests.join(COMMANDS);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let steps: Vec<Step> =
        serde_saphyr::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    for step in &steps {
        step.expected().with_context(|| step.title.clone())?;
    }
    Ok(steps)
}

// === impl Step ===

impl Step {
    /// Returns this step with runs of step 5 that take this many seconds.
    #[must_use]
    pub fn for_seconds(&self, seconds: u64) -> Self {
        Self { run: self.run.replace(PRINTED_TIME, &format!("--time {seconds} ")), ..self.clone() }
    }

    /// Compares what was written with what it must look like.
    ///
    /// # Errors
    /// When the command has failed, or the first line that differs.
    pub fn judge(&self, ran: &Ran) -> Result<()> {
        let code = ran.code.map_or("a signal".to_owned(), |code| format!("exit code {code}"));
        ensure!(ran.code == Some(0), "the command ended with {code}");
        let lines: Vec<&str> = ran.stdout.lines().collect();
        matches(&self.expected()?, &lines).map_err(anyhow::Error::msg)
    }

    fn expected(&self) -> Result<Vec<Option<Regex>>> {
        let line = |line: &str| match line {
            ANY_LINES => Ok(None),
            line => Regex::new(&format!("^(?:{line})$")).map(Some).context("an expected line"),
        };
        self.prints.lines().map(line).collect()
    }
}

/// Compares lines with expressions; `None` stands for any lines.
fn matches(expected: &[Option<Regex>], lines: &[&str]) -> Result<(), String> {
    match (expected.split_first(), lines.split_first()) {
        (None, None) => Ok(()),
        (None, Some((line, _))) => Err(format!("a line that is not expected: {line}")),
        (Some((None, rest)), _) => {
            let tries = (0..=lines.len()).map(|n_skipped| matches(rest, &lines[n_skipped..]));
            let all: Vec<Result<(), String>> = tries.collect();
            let is_found = all.iter().any(Result::is_ok);
            // The closest is the first place at which the next expression matches.
            let next = rest.first().and_then(Option::as_ref);
            let closest = next.and_then(|next| lines.iter().position(|line| next.is_match(line)));
            let told = all.into_iter().nth(closest.unwrap_or(0)).unwrap_or(Ok(()));
            if is_found { Ok(()) } else { told }
        }
        (Some((Some(wanted), _)), None) => Err(format!("no line like {}", shown(wanted))),
        (Some((Some(wanted), rest)), Some((line, others))) => match wanted.is_match(line) {
            true => matches(rest, others),
            false => Err(format!("no line like {}, but {line}", shown(wanted))),
        },
    }
}

fn shown(expression: &Regex) -> &str {
    expression.as_str().trim_start_matches("^(?:").trim_end_matches(")$")
}

// === impl Shell ===

impl Shell {
    /// Makes a shell in a new `folder` with copies of the tutorial's manifests, and with this kubeconfig in place of the
    /// user's.
    ///
    /// # Errors
    /// When the folder cannot be made again.
    pub fn new(folder: &Path, manifests: &Path, kubeconfig: Option<&Path>) -> Result<Self> {
        let folder = std::path::absolute(folder)?;
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        for (name, text) in Manifests::read(&[manifests.to_owned()])?.files {
            files::write(&folder.join(name), &text)?;
        }
        let exports = folder.join(".exports");
        Ok(Self { folder, exports, kubeconfig: kubeconfig.map(std::path::absolute).transpose()? })
    }

    /// Runs a command. It has no terminal, and no input.
    ///
    /// # Errors
    /// When there is no bash.
    pub async fn run(&self, command: &str) -> Result<Ran> {
        info!(command, "Running a command of the tutorial");
        let mut bash = Command::new("bash");
        bash.args(["-c", RUN]).current_dir(&self.folder).process_group(0).kill_on_drop(true);
        bash.env("COMMAND", command).env("EXPORTS", &self.exports);
        if let Some(kubeconfig) = &self.kubeconfig {
            bash.env("KUBECONFIG", kubeconfig);
        }
        let output = bash.stdin(Stdio::null()).output().await.context("start bash")?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ran { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code() })
    }
}

/// Renders one step of the transcript.
#[must_use]
pub fn entry(step: &Step, ran: &Ran, verdict: &Result<()>) -> String {
    let mut text = format!("## {}\n\n$ {}\n{}", step.title, step.run, ran.stdout);
    for line in ran.stderr.lines() {
        let _ = writeln!(text, "stderr: {line}");
    }
    let _ = match verdict {
        Ok(()) => writeln!(text, "\n=> as expected\n"),
        Err(error) => writeln!(text, "\n=> FAILED: {error:#}\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Ran, Shell, Step, entry, steps};

    fn manifests() -> PathBuf {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/doc"))
    }

    fn step(prints: &str) -> Step {
        Step { title: "t".to_owned(), run: "r".to_owned(), prints: prints.to_owned() }
    }

    fn said(prints: &str, stdout: &str) -> Result<(), String> {
        let ran = Ran { stdout: stdout.to_owned(), stderr: String::new(), code: Some(0) };
        step(prints).judge(&ran).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_line_counts_in_its_order() {
        assert_eq!(said("a\nb+", "a\nbb\n"), Ok(()));
        assert_eq!(said("", ""), Ok(()));
        assert_eq!(said("a", "").unwrap_err(), "no line like a");
        assert_eq!(said("", "a\n").unwrap_err(), "a line that is not expected: a");
        assert_eq!(said("a\nb", "b\na\n").unwrap_err(), "no line like a, but b");
        assert_eq!(said("b", "abc\n").unwrap_err(), "no line like b, but abc", "a part is not a line");
    }

    #[test]
    fn dots_stand_for_any_lines() {
        for text in ["a\nz\n", "a\n1\n2\nz\n"] {
            assert_eq!(said("a\n...\nz", text), Ok(()), "{text}");
        }
        assert_eq!(said("...", ""), Ok(()));
        assert_eq!(said("a\n...\nz", "a\n1\n").unwrap_err(), "no line like z, but 1");
        assert_eq!(said("...\nb\nc", "a\nb\nd\n").unwrap_err(), "no line like c, but d");
    }

    #[test]
    fn a_command_that_fails_is_not_as_expected() {
        let ran = |code| Ran { stdout: "a\n".to_owned(), stderr: "why\n".to_owned(), code };
        let verdict = step("a").judge(&ran(Some(3)));
        assert_eq!(format!("{:#}", verdict.as_ref().unwrap_err()), "the command ended with exit code 3");
        let text = entry(&step("a"), &ran(Some(3)), &verdict);
        assert!(text.contains("$ r\na\nstderr: why\n") && text.contains("FAILED"), "{text}");
        assert!(step("a").judge(&ran(None)).is_err());
    }

    #[test]
    fn the_commands_are_those_that_the_tutorial_prints() {
        let steps = steps(&manifests()).unwrap();
        let echoes: Vec<&str> =
            steps.iter().map(|step| step.run.as_str()).filter(|run| run.starts_with("echo")).collect();
        let script = include_str!("../../../manifests/doc/requests/commands.sh");
        let printed: Vec<&str> = script.lines().filter(|line| line.starts_with("echo")).collect();
        assert_eq!(echoes, printed);
        let shortened: Vec<Step> = steps.iter().map(|step| step.for_seconds(30)).collect();
        let changed = steps.iter().zip(&shortened).filter(|(printed, short)| printed != short);
        assert_eq!(changed.count(), 2, "only the runs of step 5 are shorter");
    }

    #[tokio::test]
    async fn variables_last_from_one_command_to_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tutorial");
        let shell = Shell::new(&folder, &manifests(), None).unwrap();
        assert_eq!(shell.run("export A=$(echo \"1  2\")").await.unwrap().code, Some(0));
        assert_eq!(shell.run("echo \"$A\"; echo x >&2").await.unwrap().stdout, "1  2\n");
        assert_eq!(shell.run("exit 4").await.unwrap().code, Some(4));
        assert_eq!(shell.run("cat <<EOF\nlines\nEOF\n").await.unwrap().stdout, "lines\n");
        assert_eq!(shell.run("ls *.yaml | wc -l").await.unwrap().stdout, "3\n");
        let again = Shell::new(&folder, &manifests(), None).unwrap();
        assert_eq!(again.run("echo \"$A\"").await.unwrap().stdout, "\n", "another shell begins empty");
    }
}
