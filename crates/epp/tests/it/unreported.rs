//! Requests of whose end nobody tells.

use std::time::{Duration, Instant};

use epp::observed::{COUNT_WAIT, END_WAIT, ENGINE_WAIT, Engine, Observed, REPORT_WAIT};

/// An engine of which nothing is known.
const UNKNOWN: Engine<u8> = Engine { key: 0, is_quiet: false, n_requests: None };

/// No other picker has requests.
fn alone(_: u8) -> Vec<Instant> {
    Vec::new()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
fn a_request_waits_for_its_report_for_a_while() {
    let start = Instant::now();
    let observed = Observed::new("here".to_owned());
    let (early, late) = (observed.keep("early", "1", start), observed.keep("late", "2", start));
    let later = start + REPORT_WAIT / 2;
    let fresh = observed.keep("fresh", "3", later);
    assert_eq!(observed.claim(&early), Some("early"));
    assert_eq!(observed.claim(&early), None, "claimed twice");
    let never = |_: &&str, _| UNKNOWN;
    assert_eq!(observed.expire(start + REPORT_WAIT - Duration::from_millis(1), never, alone), [""; 0]);
    assert_eq!(observed.expire(start + REPORT_WAIT, never, alone), ["late"]);
    assert_eq!(observed.claim(&late), None, "claimed too late");
    assert!(observed.is_maker_of(&late));
    let other = Observed::<&str, u8>::new("there".to_owned());
    assert_eq!(other.claim(&fresh), None);
    assert!(!other.is_maker_of(&fresh));
    assert_eq!(observed.claim(&fresh), Some("fresh"));
    assert_eq!(observed.expire(later + REPORT_WAIT, never, alone), [""; 0]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
fn a_request_waits_until_its_engine_has_none() {
    let start = Instant::now();
    let observed = Observed::new("here".to_owned());
    for (number, name) in ["busy", "quiet"].into_iter().enumerate() {
        observed.keep(name, name, start + Duration::from_secs(number as u64));
    }
    let quiet_since = start + Duration::from_secs(1) + ENGINE_WAIT;
    let engine = |name: &&str, since: Instant| {
        assert_eq!(since, if *name == "quiet" { quiet_since } else { start + ENGINE_WAIT });
        Engine { is_quiet: *name == "quiet", ..UNKNOWN }
    };
    assert_eq!(observed.expire(quiet_since - Duration::from_millis(1), engine, alone), [""; 0]);
    assert_eq!(observed.expire(quiet_since, engine, alone), ["quiet"]);
    assert_eq!(observed.expire(quiet_since, engine, alone), [""; 0]);
}

/// An engine that is always busy is never quiet, but it has only so many requests.
#[test]
#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
fn an_engine_has_no_more_requests_than_it_counts() {
    let start = Instant::now();
    let observed = Observed::new("here".to_owned());
    let keep = |name: &'static str, after: Duration| observed.keep(name, name, start + after);
    let tickets = ["first", "second", "third", "fourth"].map(|name| keep(name, Duration::ZERO));
    observed.keep("elsewhere", "id", start);
    let looks = |after: Duration, n_requests: usize| {
        let engine = |name: &&str, _| match *name {
            "elsewhere" => Engine { key: 1, n_requests: Some(1), ..UNKNOWN },
            _ => Engine { n_requests: Some(n_requests), ..UNKNOWN },
        };
        observed.expire(start + after, engine, alone)
    };
    let second = Duration::from_secs(1);
    assert_eq!(looks(COUNT_WAIT - second, 0), [""; 0], "Control: it may not have counted them yet");
    keep("late", second);
    assert_eq!(looks(COUNT_WAIT, 2), [""; 0], "ends may be on their way");
    // Later requests hide those that are over, but not those that were over before they came.
    assert_eq!(looks(END_WAIT, 5), [""; 0]);
    assert_eq!(observed.claim(&tickets[1]), Some("second"), "this end was on its way");
    assert_eq!(looks(COUNT_WAIT + END_WAIT - Duration::from_millis(1), 5), [""; 0]);
    assert_eq!(looks(COUNT_WAIT + END_WAIT, 5), ["first"], "three of the four were not told, and two ran");
    assert_eq!(looks(2 * END_WAIT, 5), [""; 0], "Control: all others may run");
    assert_eq!(looks(3 * END_WAIT, 1), [""; 0]);
    assert_eq!(looks(4 * END_WAIT, 1), ["third", "fourth"]);
    assert_eq!(looks(5 * END_WAIT, 1), [""; 0], "the rest may run");
}

/// An engine's count is that of all pickers' requests.
#[test]
#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
fn an_engine_has_no_more_requests_than_all_pickers_together() {
    let start = Instant::now();
    let second = Duration::from_secs(1);
    let left = |n_requests: usize, others: &[Duration]| {
        let observed = Observed::new("here".to_owned());
        for (number, name) in (0..).zip(["first", "second", "third"]) {
            observed.keep(name, name, start + second * 2 * number);
        }
        let engine = |_: &&str, _| Engine { n_requests: Some(n_requests), ..UNKNOWN };
        let others = |_| others.iter().map(|after| start + *after).collect();
        let counted = start + END_WAIT;
        let mut over = observed.expire(counted, engine, others);
        assert_eq!(over, [""; 0]);
        over.extend(observed.expire(counted + END_WAIT, engine, others));
        over
    };
    let theirs = [second * 3, second * 5];
    // Control: this picker alone has no more than the engine.
    assert_eq!(left(3, &[]), [""; 0]);
    assert_eq!(left(5, &theirs), [""; 0], "Control: all of them run");
    assert_eq!(left(4, &theirs), ["first"], "the oldest of all is this picker's");
    assert_eq!(left(3, &theirs), ["first"], "the second is another picker's, which ends it");
    assert_eq!(left(2, &theirs), ["first", "second"]);
    assert_eq!(left(4, &[Duration::ZERO, second * 5]), [""; 0], "it may be older than it seems");
    // The engine may not have counted the newest.
    assert_eq!(left(3, &[END_WAIT - second]), [""; 0]);
}

/// A client may hang up before the proxy has the answer with the ticket; the proxy knows the request's id.
#[test]
#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
fn a_request_without_a_ticket_is_found_by_its_id() {
    let start = Instant::now();
    let observed = Observed::<_, u8>::new("here".to_owned());
    let ticket = observed.keep("first", "id", start);
    assert_eq!(observed.claim_id("other"), None);
    assert_eq!(observed.claim_id("id"), Some("first"));
    assert_eq!(observed.claim_id("id"), None, "claimed twice");
    assert_eq!(observed.claim(&ticket), None, "claimed twice");
    // Clients choose ids, and may choose one twice.
    let first = observed.keep("first", "id", start);
    observed.keep("second", "id", start);
    assert_eq!(observed.claim(&first), Some("first"));
    assert_eq!(observed.claim_id("id"), Some("second"));
}
