//! The pace of an endpoint, and the first tokens that are assumed by it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use picking::endpoint::EndpointState;
use picking::estimate::CacheReading;
use picking::lease::Lease;
use picking::matching::Matched;
use picking::pace::Pace;
use picking::picker::{INDEX_CAPACITY, Picker, PickerSettings};
use picking::request::Request;
use prefix_index::blocks::Bounds;
use scheduling::pick::Policy;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_pace_follows_what_was_seen_last() {
    let pace = Pace::default();
    assert_eq!(pace.time_for(1000), None);
    pace.note(1000, SECOND);
    assert_eq!(pace.time_for(500), Some(SECOND / 2));
    for _ in 0..100 {
        pace.note(1000, 3 * SECOND);
    }
    let after = pace.time_for(1000).unwrap();
    assert!(after.abs_diff(3 * SECOND) < SECOND / 100, "{after:?}");
    assert!(pace.time_for(u64::MAX).is_some(), "no work is too much");
}

fn send(picker: &Picker, endpoint: &Arc<EndpointState>, uncached_bytes: u64) -> Lease<EndpointState> {
    let request = Request {
        policy: Policy::Default,
        n_endpoints: NonZeroUsize::MIN,
        target_model: None,
        chains: &[],
        tokens: None,
        prompt_bytes: 1000,
        reading: CacheReading::Text,
    };
    picker.send(&request, endpoint, Matched::default(), uncached_bytes)
}

#[test]
fn a_first_token_is_expected_after_all_work_at_the_pick() {
    let picker = Picker::new(PickerSettings {
        index_capacity: INDEX_CAPACITY,
        kv_bounds: Bounds::default(),
        max_metrics_age: Duration::MAX,
    });
    let endpoint = Arc::new(picker.endpoint(0));
    let mut first = send(&picker, &endpoint, 1000);
    assert_eq!(first.expected_first_token(), None, "the pace is unknown");
    let second = send(&picker, &endpoint, 500);
    let cached = send(&picker, &endpoint, 0);
    first.on_first_token_after(SECOND);
    assert_eq!(second.expected_first_token(), Some(SECOND * 3 / 2));
    assert_eq!(cached.expected_first_token(), Some(Duration::ZERO), "nothing is computed");
    // Seen again, it teaches nothing more.
    first.on_first_token_after(100 * SECOND);
    assert_eq!(second.expected_first_token(), Some(SECOND * 3 / 2));
}
