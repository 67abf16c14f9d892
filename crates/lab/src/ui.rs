//! Output of the driver: on a terminal a spinner and short lines, otherwise plain lines.
//! Progress and messages go to standard error. Results go to standard output, through [`load::output::print`] only.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use load::output::{self, talk};
use owo_colors::{OwoColorize as _, Stream};

use crate::check::{Check, Verdict};
use crate::cluster::{Progress, ProgressEvent};
use crate::report::summary::Style;

/// Time between two turns of the spinner.
const TICK: Duration = Duration::from_millis(120);

/// Returns if results may have colours.
pub fn stdout_style() -> Style {
    style_of(Stream::Stdout)
}

/// Returns the colour support of a stream, as `owo-colors` decides (terminal, NO_COLOR, FORCE_COLOR).
fn style_of(stream: Stream) -> Style {
    match "x".if_supports_color(stream, |text| text.red()).to_string() == "x" {
        true => Style::Plain,
        false => Style::Coloured,
    }
}

/// Messages of one command.
#[derive(Debug, Clone)]
pub struct Ui {
    spinner: Option<ProgressBar>,
    style: Style,
    verbose: bool,
}

impl Ui {
    pub fn new(verbose: bool) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let spinner = output::spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}") {
                spinner.set_style(style);
            }
            spinner.enable_steady_tick(TICK);
            spinner
        });
        Self { spinner, style: style_of(Stream::Stderr), verbose }
    }

    /// Shows that work has begun; it ends when the next step begins.
    pub fn step(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => {
                spinner.reset_elapsed();
                spinner.set_message(text.to_owned());
            }
            None => talk(text),
        }
    }

    /// Shows a line that stays.
    pub fn note(&self, text: &str) {
        talk(text);
    }

    pub fn check(&self, check: &Check) {
        let values = || format!("expected {}, seen {}", check.expected, check.seen);
        match (&check.verdict, self.verbose) {
            (Verdict::Skipped(reason), _) => {
                self.note(&format!("{} {}  skipped: {reason}", self.style.quiet("-"), check.title));
            }
            (Verdict::Passed, false) => self.note(&format!("{} {}", self.style.good("✓"), check.title)),
            (Verdict::Passed, true) => {
                self.note(&format!(
                    "{} {}  {}",
                    self.style.good("✓"),
                    check.title,
                    self.style.quiet(&check.seen)
                ));
            }
            (Verdict::Failed, _) => {
                self.note(&format!("{} {}  {}", self.style.bad("✗"), check.title, values()))
            }
        }
    }

    /// Returns a callback that shows the events of a cluster.
    pub fn progress(&self) -> Progress {
        let ui = self.clone();
        Arc::new(move |event| match event {
            ProgressEvent::Step(text) if ui.verbose || ui.spinner.is_some() => ui.step(&text),
            ProgressEvent::Step(_) => {}
            ProgressEvent::Note(_) | ProgressEvent::Warning(_) => ui.note(&event.to_string()),
        })
    }

    /// Removes the spinner, so that only results remain.
    pub fn finish(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}
