//! A headless Chromium that opens a page, and what it complains about.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Makes a missing browser a failure.
const REQUIRED: &str = "WARMPATH_REQUIRE_CHROMIUM";
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// Marks what the probe found in the page's dump.
const MARK: &str = "data-probe=\"";

pub(crate) struct Browser {
    program: PathBuf,
}

/// What a page did in the browser.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    /// Lines that the page, or the browser about its scripts, wrote to the console.
    pub(crate) console: Vec<String>,
    /// Width of the page's viewport in pixels.
    pub(crate) viewport: u32,
    /// Width that the page needs.
    pub(crate) content: u32,
    /// The elements that reach beyond the viewport, outermost first.
    pub(crate) overflowing: Vec<String>,
}

impl Browser {
    /// The browser of `CHROMIUM_BIN` or of the PATH; `None` prints a line that names the test that was skipped.
    #[expect(clippy::disallowed_methods, reason = "tests have no command line of their own")]
    pub(crate) fn find(test: &str) -> Option<Self> {
        let asked = std::env::var("CHROMIUM_BIN").ok().map(PathBuf::from);
        let path = std::env::var("PATH").unwrap_or_default();
        let on_path = || {
            let places = std::env::split_paths(&path).flat_map(|dir| NAMES.map(|name| dir.join(name)));
            places.into_iter().find(|program| program.is_file())
        };
        let Some(program) = asked.or_else(on_path) else {
            assert!(std::env::var(REQUIRED).is_err(), "{test} needs Chromium, and {REQUIRED} is set");
            say(&format!("SKIPPED {test}: no Chromium (set CHROMIUM_BIN, or install chromium)"));
            return None;
        };
        Some(Self { program })
    }

    /// Opens a page at a viewport of this width, in an iframe: a window has a least width, a frame has none.
    pub(crate) fn visit(&self, html: &str, width: u32) -> Visit {
        let dir = TempDir::new().expect("a temporary directory is made");
        let file = dir.path().join("outer.html");
        std::fs::write(&file, outer(html, width)).expect("the page is written");
        let output = self.run(dir.path(), &["--dump-dom", &format!("file://{}", file.display())]);
        let dump = String::from_utf8_lossy(&output.stdout);
        let probe = dump.split_once(MARK).and_then(|(_, rest)| rest.split_once('"')).map(|(probe, _)| probe);
        let Some(probe) = probe else {
            panic!("the page was not rendered: {}", String::from_utf8_lossy(&output.stderr));
        };
        let mut fields = probe.split('|');
        let mut number =
            || fields.next().and_then(|field| field.parse().ok()).expect("the probe has two numbers");
        let (viewport, content) = (number(), number());
        Visit {
            console: console(&output.stderr),
            viewport,
            content,
            overflowing: fields.map(str::to_owned).collect(),
        }
    }

    fn run(&self, dir: &Path, args: &[&str]) -> std::process::Output {
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            "--virtual-time-budget=2000",
            &profile,
        ];
        Command::new(&self.program).args(flags).args(args).output().expect("the browser starts")
    }
}

#[expect(clippy::print_stdout, reason = "a skipped test says so in the test's output")]
fn say(text: &str) {
    println!("{text}");
}

/// A page that holds `html` in a frame of the given width and writes down how it fits.
fn outer(html: &str, width: u32) -> String {
    let source = html.replace('&', "&amp;").replace('"', "&quot;");
    let probe = r"
        const frame = document.querySelector('iframe');
        frame.addEventListener('load', () => {
            const page = frame.contentDocument, view = page.documentElement.clientWidth;
            const wide = [...page.querySelectorAll('body *')].filter(element => {
                const box = element.getBoundingClientRect();
                return box.width > 0 && box.right > view + 1 && !element.closest('.bars');
            });
            const names = wide.slice(0, 5).map(element => element.tagName + '.' + element.getAttribute('class'));
            const needed = Math.max(page.documentElement.scrollWidth, page.body.scrollWidth);
            document.body.dataset.probe = [view, needed, ...names].join('|');
        });";
    format!(
        "<!doctype html><body><script>document.addEventListener('DOMContentLoaded', () => {{{probe}}})</script>\
         <iframe style=\"width:{width}px;height:900px;border:0\" srcdoc=\"{source}\"></iframe></body>"
    )
}

/// The console's lines in the browser's log.
fn console(stderr: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(stderr)
        .lines()
        .filter(|line| line.contains(":CONSOLE"))
        .map(|line| line.split_once("] ").map_or(line, |(_, text)| text).to_owned())
        .collect()
}
