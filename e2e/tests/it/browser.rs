//! Opens pages in a headless Chromium, and collects its complaints.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Variable that makes a missing browser a failure.
const REQUIRED: &str = "WARMPATH_REQUIRE_CHROMIUM";
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// Mark before the probe's result in the page's dump.
const MARK: &str = "data-probe=\"";

/// Script that checks if a page fits into its frame.
const FITTING: &str = r"
    const view = page.documentElement.clientWidth;
    const wide = [...page.querySelectorAll('body *')].filter(element => {
        const box = element.getBoundingClientRect();
        return box.width > 0 && box.right > view + 1 && !element.closest('.bars, .scroll');
    });
    const names = wide.slice(0, 5).map(element => element.tagName + '.' + element.getAttribute('class'));
    const needed = Math.max(page.documentElement.scrollWidth, page.body.scrollWidth);
    return [view, needed, ...names].join('|');";

/// Script that finds the numbers of a page that differ, beyond their last digit, from their sources in `json`.
const NUMBERS: &str = r"
    const at = path => path.split('/').slice(1).reduce((value, key) => value == null ? value : value[key], json);
    const cells = [...page.querySelectorAll('[data-at]')];
    const wrong = cells.filter(cell => {
        const value = at(cell.dataset.at), text = cell.textContent;
        if (value === null) return text !== '';
        const digits = (text.split('.')[1] || '').length;
        return text === '' || !(Math.abs(value * cell.dataset.scale - Number(text)) <= 0.5000001 * 10 ** -digits);
    });
    return [cells.length, ...wrong.map(cell => cell.dataset.at + ' ' + cell.textContent)].join('|');";

pub(crate) struct Browser {
    program: PathBuf,
}

/// Behaviour of a page in the browser.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Visit {
    /// Lines on the console, from the page or from the browser about its scripts.
    pub(crate) console: Vec<String>,
    /// Width of the page's viewport in pixels.
    pub(crate) viewport: u32,
    /// Width that the page needs.
    pub(crate) content: u32,
    /// Elements that extend beyond the viewport, outermost first.
    pub(crate) overflowing: Vec<String>,
}

impl Browser {
    /// Returns the browser in `CHROMIUM_BIN` or on the PATH. Without one, or without slow tests, it says that the test is
    /// left out, and returns `None`.
    #[expect(clippy::disallowed_methods, reason = "tests have no command line of their own")]
    #[track_caller]
    pub(crate) fn find() -> Option<Self> {
        if test_skips::skips_slow() {
            return None;
        }
        let asked = std::env::var("CHROMIUM_BIN").ok().map(PathBuf::from);
        let path = std::env::var("PATH").unwrap_or_default();
        let on_path = || {
            let places = std::env::split_paths(&path).flat_map(|dir| NAMES.map(|name| dir.join(name)));
            places.into_iter().find(|program| program.is_file())
        };
        let Some(program) = asked.or_else(on_path) else {
            test_skips::missing("no Chromium: set CHROMIUM_BIN, or install chromium", REQUIRED);
            return None;
        };
        Some(Self { program })
    }

    /// Opens a page with a viewport of this width. It uses an iframe, because windows have a least width.
    pub(crate) fn visit(&self, html: &str, width: u32) -> Visit {
        let (probe, console) = self.ask(html, width, FITTING);
        let mut fields = probe.split('|');
        let mut number =
            || fields.next().and_then(|field| field.parse().ok()).expect("the probe has two numbers");
        let (viewport, content) = (number(), number());
        Visit { console, viewport, content, overflowing: fields.map(str::to_owned).collect() }
    }

    /// Returns the numbers on a page that differ from the document (their paths and values), and the number of all
    /// numbers.
    pub(crate) fn mismatches(&self, html: &str, json: &str) -> (Vec<String>, usize) {
        // A `</` in a script would end it.
        let script = format!("const json = {};\n{NUMBERS}", json.replace("</", "<\\/"));
        let (probe, console) = self.ask(html, 1280, &script);
        assert_eq!(console, Vec::<String>::new());
        let (n_all, wrong) = probe.split_once('|').unwrap_or((&probe, ""));
        let wrong = wrong.split('|').filter(|text| !text.is_empty()).map(str::to_owned);
        (wrong.collect(), n_all.parse().expect("a number"))
    }

    /// Returns what `script` found in the page, and the console's lines.
    fn ask(&self, html: &str, width: u32, script: &str) -> (String, Vec<String>) {
        let dir = TempDir::new().expect("a temporary directory is made");
        let file = dir.path().join("outer.html");
        std::fs::write(&file, outer(html, width, script)).expect("the page is written");
        let output = self.run(dir.path(), &["--dump-dom", &format!("file://{}", file.display())]);
        let dump = String::from_utf8_lossy(&output.stdout);
        let probe = dump.split_once(MARK).and_then(|(_, rest)| rest.split_once('"')).map(|(probe, _)| probe);
        let Some(probe) = probe else {
            panic!("the page was not rendered: {}", String::from_utf8_lossy(&output.stderr));
        };
        (probe.to_owned(), console(&output.stderr))
    }

    /// Prints the page to PDF and returns the bytes.
    pub(crate) fn print(&self, html: &str) -> Vec<u8> {
        let dir = TempDir::new().expect("a temporary directory is made");
        let (page, printed) = (dir.path().join("page.html"), dir.path().join("page.pdf"));
        std::fs::write(&page, html).expect("the page is written");
        let to = format!("--print-to-pdf={}", printed.display());
        let output = self.run(dir.path(), &[&to, &format!("file://{}", page.display())]);
        std::fs::read(&printed).unwrap_or_else(|_| {
            panic!("the page was not printed: {}", String::from_utf8_lossy(&output.stderr))
        })
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

/// Makes a page with `html` in a frame of this width. It stores the result of `script`, which sees the framed page as
/// `page`.
fn outer(html: &str, width: u32, script: &str) -> String {
    let source = html.replace('&', "&amp;").replace('"', "&quot;");
    let probe = format!(
        "const frame = document.querySelector('iframe');
        frame.addEventListener('load', () => {{
            const page = frame.contentDocument;
            document.body.dataset.probe = (() => {{ {script} }})();
        }});"
    );
    format!(
        "<!doctype html><body><script>document.addEventListener('DOMContentLoaded', () => {{{probe}}})</script>\
         <iframe style=\"width:{width}px;height:900px;border:0\" srcdoc=\"{source}\"></iframe></body>"
    )
}

/// Returns the console's lines from the browser's log.
fn console(stderr: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(stderr)
        .lines()
        .filter(|line| line.contains(":CONSOLE"))
        .map(|line| line.split_once("] ").map_or(line, |(_, text)| text).to_owned())
        .collect()
}
