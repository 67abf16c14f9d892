//! Times between scrapes, and the age of their numbers, at times that the test chooses.

use std::time::Duration;

use epp::director::Options;
use epp::scrape::times::ScrapeTimes;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use scheduling::candidate::Load;
use scheduling::saturation::Thresholds;

use crate::fixtures::options;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The default limits of the flags.
fn default_limits() -> Options {
    Options { max_metrics_age: millis(2000), saturation: Thresholds::default(), ..options() }
}

/// The load just before the next numbers arrive, if an answer takes nearly an interval.
fn oldest(limits: &Options, period: Duration, is_idle: bool) -> Load {
    let times = ScrapeTimes::new(period, limits.shortest_metrics_age());
    let age = times.gap(is_idle) + period.mul_f64(0.9);
    Load { age: Some(age), ..Load::default() }
}

#[test]
fn an_idle_pool_has_capacity_however_long_the_interval_is() {
    for period in [1, 10, 50, 66, 67, 100, 101, 150, 200, 500, 1000, 5000, 60_000].map(millis) {
        let limits = default_limits().for_scrapes_every(period);
        for is_idle in [true, false] {
            let load = oldest(&limits, period, is_idle);
            assert!(!limits.saturation.are_exceeded_by_all([&load]), "{period:?}: {load:?}");
            assert!(load.age <= Some(limits.max_metrics_age), "{period:?}: {load:?}");
        }
    }
    // Control: an idle pool exceeds limits that do not depend on the interval.
    let limits = default_limits();
    assert!(limits.saturation.are_exceeded_by_all([&oldest(&limits, millis(200), true)]));
}

#[test]
fn an_idle_endpoint_is_asked_half_as_often_where_its_numbers_count_all_the_same() {
    let gaps = |period: u64| {
        let period = millis(period);
        let limits = default_limits().for_scrapes_every(period);
        let times = ScrapeTimes::new(period, limits.shortest_metrics_age());
        (times.gap(false), times.gap(true))
    };
    assert_eq!(gaps(50), (millis(50), millis(100)));
    assert_eq!(gaps(66), (millis(66), millis(132)));
    assert_eq!(gaps(67), (millis(67), millis(67)));
    assert_eq!(gaps(100), (millis(100), millis(100)));
}

#[test]
fn endpoints_that_are_met_at_different_times_are_soon_asked_together() {
    let times = ScrapeTimes::new(millis(50), millis(200));
    for is_idle in [true, false] {
        let mut begun = [0, 3, 49, 50, 51, 99, 12_345].map(millis);
        for at in &mut begun {
            // Timers are late.
            let next = times.next(*at, is_idle);
            assert!(next > *at && next - *at <= times.gap(is_idle), "{at:?}: {next:?}");
            *at = next + millis(2);
        }
        assert!(begun.iter().all(|at| at.as_millis() % times.gap(is_idle).as_millis() == 2), "{begun:?}");
        let later = begun.map(|at| times.next(at, is_idle) - at);
        assert_eq!(later, [times.gap(is_idle) - millis(2); 7]);
    }
}

#[test]
fn endpoints_of_a_large_pool_are_not_all_asked_together() {
    let times = ScrapeTimes::new(millis(50), millis(200));
    let mut phases: Vec<Duration> = (0..10).map(|row| times.phase(row)).collect();
    phases.sort_unstable();
    assert_eq!(phases[0], Duration::ZERO);
    assert!(phases.windows(2).all(|pair| pair[1] - pair[0] > millis(2)), "{phases:?}");
    assert!(phases[9] < millis(50), "{phases:?}");
}

#[test]
fn limits_that_scrapes_can_keep_stay_as_they_are() {
    let limits = default_limits().for_scrapes_every(millis(50));
    assert_eq!((limits.max_metrics_age, limits.saturation), (millis(2000), Thresholds::default()));
}

#[test]
fn endpoints_that_do_not_answer_are_asked_more_and_more_seldom() {
    let times = ScrapeTimes::new(millis(50), millis(200));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (n_failures, base) in
        [(1, 50), (2, 100), (3, 200), (4, 400), (5, 800), (6, 1000), (33, 1000), (u32::MAX, 1000)]
    {
        let gaps: Vec<Duration> = (0..100).map(|_| times.backoff(n_failures, &mut rng)).collect();
        let (least, most) = (*gaps.iter().min().unwrap(), *gaps.iter().max().unwrap());
        assert!(least >= millis(base) && most <= millis(base * 3 / 2), "{n_failures}: {least:?} to {most:?}");
        // Their attempts spread.
        assert!(most - least > millis(base) / 4, "{n_failures}: {least:?} to {most:?}");
    }
    // Without a pause, 3,000 of them would make 60,000 attempts a second.
    let attempts: f64 = (0..3000).map(|_| 1.0 / times.backoff(10, &mut rng).as_secs_f64()).sum();
    assert!(attempts < 3000.0, "{attempts} a second");
}
