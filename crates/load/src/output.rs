//! The driver's two streams: results go to standard output, messages to standard error.

use std::io::Write as _;

use owo_colors::{OwoColorize as _, Stream};

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

/// Writes a message to standard error.
#[expect(clippy::print_stderr, reason = "the one place where the driver talks")]
pub fn talk(text: &str) {
    eprintln!("{text}");
}
