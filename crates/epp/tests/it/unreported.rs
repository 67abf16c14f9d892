//! Requests of whose end nobody tells.

use std::time::{Duration, Instant};

use epp::observed::{ENGINE_WAIT, Engine, Observed, REPORT_WAIT, SURPLUS_WAIT};

/// An engine of which nothing is known.
const UNKNOWN: Engine<u8> = Engine { key: 0, is_quiet: false, n_requests: None };

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
    assert_eq!(observed.expire(start + REPORT_WAIT - Duration::from_millis(1), never), [""; 0]);
    assert_eq!(observed.expire(start + REPORT_WAIT, never), ["late"]);
    assert_eq!(observed.claim(&late), None, "claimed too late");
    assert!(observed.is_maker_of(&late));
    let other = Observed::<&str, u8>::new("there".to_owned());
    assert_eq!(other.claim(&fresh), None);
    assert!(!other.is_maker_of(&fresh));
    assert_eq!(observed.claim(&fresh), Some("fresh"));
    assert_eq!(observed.expire(later + REPORT_WAIT, never), [""; 0]);
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
    assert_eq!(observed.expire(quiet_since - Duration::from_millis(1), engine), [""; 0]);
    assert_eq!(observed.expire(quiet_since, engine), ["quiet"]);
    assert_eq!(observed.expire(quiet_since, engine), [""; 0]);
}

/// An engine that is always busy is never quiet, but it has only so many requests.
#[test]
#[expect(clippy::disallowed_methods, reason = "some instant to count from")]
fn an_engine_has_no_more_requests_than_it_counts() {
    let start = Instant::now();
    let observed = Observed::new("here".to_owned());
    let names = ["first", "second", "third", "fourth"];
    for (number, name) in names.into_iter().enumerate() {
        observed.keep(name, name, start + Duration::from_millis(number as u64));
    }
    observed.keep("elsewhere", "id", start);
    let has = |n_requests: usize| {
        move |name: &&str, _| match *name {
            "elsewhere" => Engine { key: 1, n_requests: Some(1), ..UNKNOWN },
            _ => Engine { n_requests: Some(n_requests), ..UNKNOWN },
        }
    };
    let mut now = start + ENGINE_WAIT + Duration::from_secs(1);
    assert_eq!(observed.expire(now, has(2)), [""; 0]);
    // An end that is on its way when the engine is asked is not missing.
    now += SURPLUS_WAIT / 2;
    assert_eq!(observed.expire(now, has(4)), [""; 0]);
    now += SURPLUS_WAIT / 2;
    assert_eq!(observed.expire(now, has(2)), [""; 0], "Control: the surplus has not lasted");
    now += SURPLUS_WAIT / 2;
    assert_eq!(observed.expire(now, has(3)), [""; 0]);
    now += SURPLUS_WAIT / 2;
    assert_eq!(observed.expire(now, has(1)), ["first"], "as many as were missing all the time");
    now += SURPLUS_WAIT;
    assert_eq!(observed.expire(now, has(1)), ["second", "third"]);
    now += SURPLUS_WAIT;
    assert_eq!(observed.expire(now, has(1)), [""; 0]);
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
