//! Loads that leave capacity, and loads that do not.

use std::time::Duration;

use scheduling::candidate::Load;
use scheduling::saturation::Thresholds;

/// Thresholds that differ from the defaults, so that a test sees each one work.
const THRESHOLDS: Thresholds =
    Thresholds { queue_depth: 7, kv_usage: 0.75, metrics_age: Duration::from_millis(300) };

fn load(waiting: u32, kv_usage: f64, age: Duration) -> Load {
    Load { waiting, kv_usage, age: Some(age), ..Load::default() }
}

#[test]
fn a_pool_is_saturated_when_no_endpoint_has_capacity() {
    let limit = THRESHOLDS.metrics_age;
    let good = load(7, 0.75, limit);
    let late = load(0, 0.0, limit + Duration::from_nanos(1));
    let (queued, full) = (load(8, 0.0, Duration::ZERO), load(0, 0.751, Duration::ZERO));
    let unknown = Load { age: None, fresh: true, ..Load::default() };
    // Requests in flight to an endpoint are not in its queue.
    let busy = Load { in_flight: 90, running: 90, ..good };
    for (loads, expected) in [
        (vec![], true),
        (vec![good], false),
        (vec![busy], false),
        (vec![late], true),
        (vec![queued], true),
        (vec![full], true),
        (vec![unknown], true),
        (vec![late, queued, full, unknown], true),
        (vec![late, queued, full, unknown, good], false),
    ] {
        assert_eq!(THRESHOLDS.are_exceeded_by_all(&loads), expected, "{loads:?}");
    }
}

#[test]
fn the_defaults_are_upstreams() {
    let age = Duration::from_millis(200);
    assert!(!Thresholds::default().are_exceeded_by_all(&[load(5, 0.8, age)]));
    for load in [load(6, 0.8, age), load(5, 0.81, age), load(5, 0.8, age + Duration::from_nanos(1))] {
        assert!(Thresholds::default().are_exceeded_by_all(&[load]), "{load:?}");
    }
}
