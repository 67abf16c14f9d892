//! The bytes of the log, compared as a whole.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use epp::log::subscriber;
use expect_test::{Expect, expect};
use parking_lot::Mutex;
use tracing::{debug, error, info, trace, warn};

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The time of the tutorial's line, and some milliseconds.
fn clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_747_971_189_987)
}

/// Compares what `events` log, with tabs as arrows and without this file's line numbers.
fn check(filter: &str, events: impl FnOnce(), expected: Expect) {
    let buffer = Buffer::default();
    let subscriber = subscriber(&filter.parse().unwrap(), clock, buffer.clone());
    tracing::subscriber::with_default(subscriber, events);
    let text = String::from_utf8(buffer.0.lock().clone()).unwrap();
    let mut lines = String::new();
    for line in text.lines() {
        let (before, after) = line.split_once("log.rs:").unwrap();
        let after = after.trim_start_matches(|char: char| char.is_ascii_digit());
        lines += &format!("{before}log.rs:N{after}\n").replace('\t', "→");
    }
    expected.assert_eq(&lines);
}

#[test]
fn the_tutorials_line() {
    let events = || {
        info!(
            request = "v68m4zx472",
            "matching ratio" = format!(" {:.2} > {:.2}", 392.0 / 728.0, 0.5),
            "Do prefix-aware routing!"
        );
    };
    check(
        "info",
        events,
        expect![[r#"
        2025-05-23T03:33:09Z→INFO→it/log.rs:N→Do prefix-aware routing!→{"request": "v68m4zx472", "matching ratio": " 0.54 > 0.50"}
    "#]],
    );
}

#[test]
fn levels_have_zaps_names() {
    let events = || {
        error!("a");
        warn!("b");
        info!("c");
        debug!("d");
        trace!("e");
    };
    check(
        "trace",
        events,
        expect![[r#"
        2025-05-23T03:33:09Z→ERROR→it/log.rs:N→a
        2025-05-23T03:33:09Z→WARN→it/log.rs:N→b
        2025-05-23T03:33:09Z→INFO→it/log.rs:N→c
        2025-05-23T03:33:09Z→DEBUG→it/log.rs:N→d
        2025-05-23T03:33:09Z→LEVEL(-2)→it/log.rs:N→e
    "#]],
    );
}

#[test]
fn the_filter_holds_lines_back() {
    let events = || {
        info!("shown");
        debug!("hidden");
        info!(target: "other", "hidden");
    };
    check(
        "info,other=off",
        events,
        expect![[r#"
        2025-05-23T03:33:09Z→INFO→it/log.rs:N→shown
    "#]],
    );
}

#[test]
fn values_keep_their_types_and_text_is_escaped() {
    let events = || {
        let text = "quote \" backslash \\ newline \n tab \t bell \u{7} delete \u{7f} é <&> \u{2028}";
        info!(text, n = 3, negative = -4_i64, share = 0.5, yes = true, none = f64::NAN, debugged = ?Some("x"), "message");
    };
    check(
        "info",
        events,
        expect![[r#"
            2025-05-23T03:33:09Z→INFO→it/log.rs:N→message→{"text": "quote \" backslash \\ newline \n tab \t bell \u0007 delete  é <&>  ", "n": 3, "negative": -4, "share": 0.5, "yes": true, "none": "NaN", "debugged": "Some(\"x\")"}
        "#]],
    );
}
