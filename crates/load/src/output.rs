//! The driver's two streams: results go to standard output; messages, and a line that shows progress, to standard error.

use std::io::Write as _;
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar};
use owo_colors::{OwoColorize as _, Stream};

/// The last line of the terminal, one for the process like standard error. It is hidden while a message is written.
static PROGRESS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes results to standard output. It is not an error if the reader has gone.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Shows why a command could not be carried out.
pub fn complain(text: &str) {
    let mark = "error:".if_supports_color(Stream::Stderr, |text| text.red()).to_string();
    talk(&format!("{mark} {text}"));
}

/// Writes a message to standard error, above the progress.
pub fn talk(text: &str) {
    write(format!("{text}\n").as_bytes());
}

/// Writes whole lines to standard error, above the progress. It is not an error if the reader has gone.
pub fn write(lines: &[u8]) {
    let _ = PROGRESS.suspend(|| std::io::stderr().lock().write_all(lines));
}

/// Returns a spinner for the last line of the terminal. It is hidden if standard error is not a terminal.
pub fn spinner() -> ProgressBar {
    PROGRESS.add(ProgressBar::new_spinner())
}
