//! The page of a comparison: it fits, and its numbers are those of the document.

use serde_json::Value;
use studies::compare::matrix::{Matrix, RequestSource};
use studies::compare::output::document;
use studies::compare::page::render;
use studies::compare::workloads::WORKLOADS;

use crate::browser::Browser;

const WIDTHS: [u32; 2] = [1280, 390];

/// Returns the page and the document of one workload.
fn compared() -> (String, Value) {
    let sources = WORKLOADS.iter().filter(|workload| workload.name == "no sharing").map(RequestSource::Drawn);
    let matrix = Matrix { sources: sources.collect(), loads: vec![0.25, 0.5], seeds: 1 };
    let rows = matrix.run(&|_, _| {}).expect("the matrix is valid");
    let document = document(&rows, 1, 0.1);
    (render(&rows, &document, 1).expect("the template is valid"), document)
}

#[test]
fn a_comparison_fits_and_prints_and_its_numbers_are_those_of_the_document() {
    let Some(browser) = Browser::find() else { return };
    let (page, document) = compared();
    let opened = page.replace("<details>", "<details open>");
    assert_ne!(opened, page);
    for width in WIDTHS {
        let visit = browser.visit(&opened, width);
        assert_eq!(visit.content, visit.viewport, "it scrolls sideways at {width}: {:?}", visit.overflowing);
        assert_eq!(visit.overflowing, Vec::<String>::new(), "at {width}");
        assert_eq!(visit.console, Vec::<String>::new(), "at {width}");
    }
    let (wrong, n_all) = browser.mismatches(&page, &document.to_string());
    assert_eq!(wrong, Vec::<String>::new());
    // There are nine policies. Each has eleven figures and a knee at two loads, a chart's value at both, 41 quantiles,
    // 20 hit ratios, and 20 parts of four pods.
    assert_eq!(n_all, 1 + 9 * (2 * 12 + 2 + 41 + 20 + 20 * 4));
    assert!(browser.print(&page).starts_with(b"%PDF"));
    assert!(!page.contains("http"), "the page needs nothing from a network");
}

#[test]
fn a_number_that_differs_is_noticed() {
    let Some(browser) = Browser::find() else { return };
    let cell = |at: &str, text: &str| format!("<td data-at=\"{at}\" data-scale=\"100\">{text}</td>");
    let page = |cells: &[String]| format!("<!doctype html><body><table><tr>{}</tr></table>", cells.join(""));
    let json = r#"{"a": [0.12345, null]}"#;
    let right = [cell("/a/0", "12.3"), cell("/a/0", "12"), cell("/a/1", "")];
    assert_eq!(browser.mismatches(&page(&right), json), (Vec::new(), 3));
    let wrong =
        [cell("/a/0", "12.4"), cell("/a/0", ""), cell("/a/1", "0"), cell("/b", "1"), cell("/a/0", "x")];
    let (noticed, _) = browser.mismatches(&page(&wrong), json);
    assert_eq!(noticed, ["/a/0 12.4", "/a/0 ", "/a/1 0", "/b 1", "/a/0 x"]);
}
