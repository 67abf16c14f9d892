//! Scrapes that find no request tell that earlier ones are over.

use std::num::NonZeroU32;
use std::time::Duration;

use picking::endpoint::Sample;
use picking::moment::Moment;
use picking::picker::{Picker, PickerSettings};
use prefix_index::blocks::Bounds;

#[test]
fn an_endpoint_is_quiet_after_two_scrapes_in_a_row_without_requests() {
    let picker = Picker::new(PickerSettings {
        index_capacity: NonZeroU32::MIN,
        kv_bounds: Bounds::default(),
        max_metrics_age: Duration::from_secs(1),
    });
    let endpoint = picker.endpoint(0);
    let at = |second| Moment::after_epoch(Duration::from_secs(second));
    let scrape = |second, (waiting, running)| {
        let sample = Sample { waiting, running, ..Sample::default() };
        picker.on_scrape(&endpoint, sample, endpoint.doubts(), at(second));
    };
    // The requests of each scrape, one per second, and the last second after which the endpoint was quiet.
    let scrapes = [
        ((0, 0), None),
        ((0, 0), Some(0)),
        ((0, 0), Some(1)),
        ((0, 1), None),
        ((1, 0), None),
        ((0, 0), None),
    ];
    for (second, (requests, quiet_after)) in (1..).zip(scrapes) {
        scrape(second, requests);
        let last = (0..10).rev().find(|earlier| endpoint.was_quiet_after(at(*earlier)));
        assert_eq!(last, quiet_after, "in second {second}");
    }
}
