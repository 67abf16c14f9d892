//! A scrape counts if nothing has gone wrong since it began.

use std::num::NonZeroU32;
use std::time::Duration;

use picking::endpoint::Sample;
use picking::endpoint::health::Doubts;
use picking::moment::Moment;
use picking::picker::{Picker, PickerSettings};
use prefix_index::blocks::Bounds;

#[test]
fn a_scrape_settles_the_doubts_that_were_there_when_it_began() {
    let max_metrics_age = Duration::from_secs(1);
    let picker = Picker::new(PickerSettings {
        index_capacity: NonZeroU32::MIN,
        kv_bounds: Bounds::default(),
        max_metrics_age,
    });
    let (endpoint, taken) = (picker.endpoint(0), Moment::default());
    let is_fresh = || endpoint.load(taken, max_metrics_age).fresh;
    let scrape = |doubts: Doubts| {
        picker.on_scrape(&endpoint, Sample::default(), doubts, taken);
    };
    scrape(endpoint.doubts());
    assert!(is_fresh());
    // It dies during a scrape, and its last answer arrives after the proxy's report.
    let begun = endpoint.doubts();
    endpoint.distrust();
    scrape(begun);
    assert!(!is_fresh());
    // Control: a scrape that began later.
    scrape(endpoint.doubts());
    assert!(is_fresh());
}
