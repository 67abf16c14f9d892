//! The page of a recorded run, opened with the width of a desktop and of a phone.

use lab::report::{Report, html};

use crate::browser::Browser;

const DESKTOP: u32 = 1280;
const PHONE: u32 = 390;

/// Returns the report of a run of the tutorial on a development machine.
fn recorded() -> Report {
    serde_json::from_str(include_str!("report.json")).expect("report.json has the schema of this version")
}

/// Returns the report of a run that was interrupted before anything happened.
fn empty() -> Report {
    Report { checks: Vec::new(), sides: Vec::new(), requests: Vec::new(), parts: Vec::new(), ..recorded() }
}

#[test]
fn the_report_fits_desktop_and_phone_without_a_console_message() {
    let Some(browser) = Browser::find() else { return };
    for report in [recorded(), empty()] {
        let page = html::render(&report)
            .unwrap()
            .replace("<details class=\"card\">", "<details class=\"card\" open>");
        for width in [DESKTOP, PHONE] {
            let visit = browser.visit(&page, width);
            assert!(visit.viewport <= width && visit.viewport + 20 >= width, "{visit:?}");
            assert_eq!(
                visit.content, visit.viewport,
                "the page scrolls sideways at {width}: {:?}",
                visit.overflowing
            );
            assert_eq!(visit.overflowing, Vec::<String>::new(), "at {width}");
            assert_eq!(visit.console, Vec::<String>::new(), "at {width}");
        }
    }
}

#[test]
fn a_page_that_is_too_wide_is_noticed() {
    let Some(browser) = Browser::find() else { return };
    let page = "<!doctype html><body><div class=\"board\" style=\"width:600px\">x</div></body>";
    let visit = browser.visit(page, PHONE);
    assert!(visit.content > visit.viewport, "{visit:?}");
    assert_eq!(visit.overflowing, ["DIV.board"]);
    assert_eq!(browser.visit(page, DESKTOP).overflowing, Vec::<String>::new());
}

#[test]
fn a_console_message_is_noticed() {
    let Some(browser) = Browser::find() else { return };
    for content in ["<script>console.error('boom')</script>", "<script>nothing()</script>"] {
        let page = format!("<!doctype html><body>{content}</body>");
        assert_ne!(browser.visit(&page, DESKTOP).console, Vec::<String>::new(), "{content}");
    }
}
