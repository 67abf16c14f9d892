//! Prompts count as work until their first token, which the engine's count of first tokens tells.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use picking::endpoint::{Cache, EndpointState, Sample};
use picking::estimate::CacheReading;
use picking::lease::Lease;
use picking::matching::Matched;
use picking::moment::Moment;
use picking::picker::{INDEX_CAPACITY, Picker, PickerSettings};
use picking::request::Request;
use prefix_index::blocks::Bounds;
use prefix_index::chain::{Chain, ChainBuilder, ChainSeed};
use proptest::prelude::*;
use scheduling::pick::Policy;

/// A picker with one endpoint.
struct Scene {
    picker: Picker,
    endpoint: Arc<EndpointState>,
}

impl Scene {
    /// The endpoint has been scraped, and has counted `first_tokens`.
    fn new(first_tokens: impl Into<Option<u64>>) -> Self {
        let picker = Picker::new(PickerSettings {
            index_capacity: INDEX_CAPACITY,
            kv_bounds: Bounds::default(),
            max_metrics_age: Duration::MAX,
        });
        let scene = Self { endpoint: Arc::new(picker.endpoint(0)), picker };
        scene.scrape(first_tokens, 0);
        scene
    }

    fn send(&self, uncached_bytes: u64) -> Lease<EndpointState> {
        self.send_prompts(&[], uncached_bytes)
    }

    fn send_prompts(&self, chains: &[Chain], uncached_bytes: u64) -> Lease<EndpointState> {
        let request = Request {
            policy: Policy::Default,
            n_endpoints: NonZeroUsize::MIN,
            target_model: None,
            chains,
            tokens: None,
            prompt_bytes: 1000,
            reading: CacheReading::Text,
        };
        self.picker.send(&request, &self.endpoint, Matched::default(), uncached_bytes)
    }

    /// Returns the work after a scrape.
    fn scrape(&self, first_tokens: impl Into<Option<u64>>, waiting: u32) -> u64 {
        let sample = Sample { waiting, first_tokens: first_tokens.into(), ..Sample::default() };
        let scraped =
            self.picker.on_scrape(&self.endpoint, sample, self.endpoint.doubts(), Moment::default());
        assert_eq!(scraped.cache, Cache::Kept);
        self.endpoint.uncached_bytes()
    }
}

#[test]
fn prompts_are_computed_in_the_order_in_which_they_were_sent() {
    let scene = Scene::new(10);
    let leases = [1000, 500, 200].map(|uncached_bytes| scene.send(uncached_bytes));
    assert_eq!([10, 11, 11, 13].map(|count| scene.scrape(count, 0)), [1700, 700, 700, 0]);
    assert_eq!(scene.endpoint.in_flight(), 3, "the responses are not over");
    drop(leases);
    assert_eq!((scene.endpoint.in_flight(), scene.endpoint.uncached_bytes()), (0, 0));

    // Control: an engine that does not count, or whose page lacks the count for a while.
    let scene = Scene::new(None);
    let mut lease = scene.send(1000);
    assert_eq!(scene.scrape(None, 0), 1000);
    assert_eq!([Some(5), None, None].map(|count| scene.scrape(count, 0)), [1000; 3], "sent before the count");
    assert_eq!(scene.scrape(6, 0), 0);
    lease.on_first_token();
    drop(lease);
    let scene = Scene::new(None);
    let mut lease = scene.send(1000);
    lease.on_first_token();
    assert_eq!(scene.endpoint.uncached_bytes(), 0);
}

/// The count has the first tokens that the picker sees by itself, too.
#[test]
fn a_first_token_that_was_seen_is_not_another_request_s() {
    let scene = Scene::new(0);
    let [mut seen, _hidden, _later] = [1000, 500, 200].map(|uncached_bytes| scene.send(uncached_bytes));
    seen.on_first_token();
    assert_eq!([0, 1, 1, 2, 3].map(|count| scene.scrape(count, 0)), [700, 700, 700, 200, 0]);
}

/// A client goes before its prompt is computed, or the engine refuses the request.
#[test]
fn a_request_that_ends_without_a_first_token_is_not_waited_for() {
    let scene = Scene::new(0);
    let [gone, _hidden, _later] = [1000, 500, 200].map(|uncached_bytes| scene.send(uncached_bytes));
    drop(gone);
    // The second scrape is sure to have begun after the end.
    assert_eq!([0, 0, 1].map(|count| scene.scrape(count, 0)), [700, 700, 200]);
    let _next = scene.send(100);
    assert_eq!([2, 3].map(|count| scene.scrape(count, 0)), [100, 0]);
}

#[test]
fn requests_of_other_senders_are_ahead() {
    let scene = Scene::new(0);
    scene.scrape(7, 3);
    let _lease = scene.send(1000);
    let scrapes = [(8, 3), (9, 2), (10, 1), (11, 0)];
    assert_eq!(scrapes.map(|(count, waiting)| scene.scrape(count, waiting)), [1000, 1000, 1000, 0]);
    // Control: the queue was empty.
    scene.scrape(11, 0);
    let _lease = scene.send(1000);
    assert_eq!(scene.scrape(12, 0), 0);
}

#[test]
fn each_prompt_of_a_request_has_a_first_token() {
    let chain = |text: &str| {
        let mut builder = ChainBuilder::new();
        builder.push(text.as_bytes());
        builder.finish(&ChainSeed { target_model: "m", adapter: None, cache_salt: None })
    };
    let scene = Scene::new(0);
    let _both = scene.send_prompts(&["a".repeat(64), "b".repeat(64)].map(|text| chain(&text)), 128);
    let _next = scene.send(1000);
    assert_eq!([1, 2, 3].map(|count| scene.scrape(count, 0)), [1128, 1000, 0]);
}

#[test]
fn the_work_of_a_process_ends_with_it() {
    let scene = Scene::new(5);
    let lease = scene.send(1000);
    assert_eq!(scene.picker.on_down(&scene.endpoint), Cache::Lost);
    assert_eq!(scene.endpoint.uncached_bytes(), 0);
    // Its successor counts for itself, and the end of the old request takes nothing of the new one.
    let _new = scene.send(300);
    drop(lease);
    assert_eq!([0, 1].map(|count| scene.scrape(count, 0)), [300, 0]);
}

/// No number of a page is too large.
#[test]
fn a_count_may_be_as_large_as_can_be() {
    let scene = Scene::new(0);
    let _leases = [1000, 500].map(|uncached_bytes| scene.send(uncached_bytes));
    assert_eq!(scene.scrape(u64::MAX, u32::MAX), 0);
    let _next = scene.send(200);
    assert_eq!(scene.scrape(u64::MAX, 0), 0);
    assert_eq!(scene.scrape(1, 0), 0);
    let _next = scene.send(200);
    assert_eq!([1, 2].map(|count| scene.scrape(count, 0)), [200, 0]);
}

/// An event at a picker whose endpoint serves nobody else.
#[derive(Clone, Copy, Debug)]
enum Event {
    Send(u64),
    /// The engine computes the prompt that was sent first, and the picker sees it or not.
    FirstToken {
        is_seen: bool,
    },
    Scrape,
    /// A request is over whose prompt is computed.
    End(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..1000_u64).prop_map(Event::Send),
        3 => any::<bool>().prop_map(|is_seen| Event::FirstToken { is_seen }),
        2 => Just(Event::Scrape),
        2 => any::<usize>().prop_map(Event::End),
    ]
}

proptest! {
    #[test]
    fn after_a_scrape_the_work_is_what_is_not_computed(events in prop::collection::vec(event(), 1..200)) {
        let scene = Scene::new(100);
        let mut waiting: VecDeque<(u64, Lease<EndpointState>)> = VecDeque::new();
        let mut answering = Vec::new();
        let mut n_counted = 100;
        for event in events {
            match event {
                Event::Send(n_bytes) => waiting.push_back((n_bytes, scene.send(n_bytes))),
                Event::FirstToken { is_seen } => if let Some((_, mut lease)) = waiting.pop_front() {
                    n_counted += 1;
                    if is_seen {
                        lease.on_first_token();
                    }
                    answering.push(lease);
                },
                Event::Scrape => {
                    let expected: u64 = waiting.iter().map(|(n_bytes, _)| n_bytes).sum();
                    let n_waiting = u32::try_from(waiting.len() / 2).unwrap();
                    prop_assert_eq!(scene.scrape(n_counted, n_waiting), expected);
                },
                Event::End(nth) => if !answering.is_empty() {
                    drop(answering.swap_remove(nth % answering.len()));
                },
            }
        }
    }
}
