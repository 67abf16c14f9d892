//! The simulator's router against the director of the servers: the same events lead to the same picks.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use epp::datastore::Datastore;
use epp::director::{Director, InFlightRequest, Now, Options};
use epp::metrics::Metrics;
use epp::scrape::ScrapeResult;
use epp::tuning::Patch;
use ext_proc::body::{Api, BodyScanner};
use ext_proc::compat::Compat;
use ext_proc::exchange::ResponseReport;
use ext_proc::pick_request::{Content, PickRequest, PromptTokens};
use inference_api::kinds::Object;
use inference_api::manifest;
use inference_api::object::ObjectKey;
use picking::endpoint::Sample;
use picking::picker::INDEX_CAPACITY;
use pool_index::index::{Change, EndpointRecord, Index, Membership};
use pool_index::snapshot::KvAddresses;
use prefix_index::blocks::{BlockEvent, Bounds, EngineHash, Stored, TokenPrompt};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use scheduling::affinity::Affinity;
use scheduling::saturation::Thresholds;
use sim::pod::{PodLoad, Work};
use sim::router::{self, RoutedRequest, Router, RouterPolicy};

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p, annotations: {inference.networking.x-k8s.io/routing-strategy: STRATEGY}}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";
const N_PODS: u16 = 4;
const FIRST_PORT: u16 = 8000;
const SEED: u64 = 7;
/// The pool's strategy and, beside it, the annotation for precise mode.
const PRECISE: &str = "PREFIX_CACHE, inference.networking.x-k8s.io/prefix-cache-mode: precise";
/// Tokens in a block of the engines.
const BLOCK_SIZE: u32 = 16;
/// Bytes of text in a token.
const TOKEN_BYTES: usize = 4;

/// An event that both sides see.
#[derive(Clone, Debug)]
enum Event {
    /// A request comes whose prompt is the first `n_bytes` of a conversation.
    Arrival { conversation: u8, n_bytes: usize },
    /// One of the requests without a first token gets it.
    FirstToken(usize),
    /// One of the requests in flight ends.
    End(usize),
    /// Every pod is scraped, and has counted as many first tokens more than the last time.
    Scrape(Vec<PodLoad>),
    /// The engine of a pod reports a change of its cache. The simulator does not see it if it is `lost`.
    Kv { pod_idx: usize, event: BlockEvent, lost: bool },
}

fn event() -> impl Strategy<Value = Event> {
    let gauges =
        (0..4_u32, 0..8_u32, 0.0..1.0, 0..4_u64).prop_map(|(waiting, running, kv_usage, first_tokens)| {
            PodLoad { waiting, running, kv_usage, first_tokens }
        });
    prop_oneof![
        4 => (0..5_u8, 0..6000_usize)
            .prop_map(|(conversation, n_bytes)| Event::Arrival { conversation, n_bytes }),
        2 => any::<usize>().prop_map(Event::FirstToken),
        2 => any::<usize>().prop_map(Event::End),
        1 => prop::collection::vec(gauges, usize::from(N_PODS)).prop_map(Event::Scrape),
        3 => (0..usize::from(N_PODS), kv_event())
            .prop_map(|(pod_idx, event)| Event::Kv { pod_idx, event, lost: false }),
    ]
}

/// The blocks of the first bytes of a conversation are stored, or one of them is removed, or all of them are.
fn kv_event() -> impl Strategy<Value = BlockEvent> {
    let name =
        |conversation: u8, block_idx: u64| EngineHash::of_integer(u64::from(conversation) << 32 | block_idx);
    let stored = move |(conversation, n_bytes)| {
        let mut tokens = tokens(&text(conversation, n_bytes));
        let n_blocks = tokens.len() / BLOCK_SIZE as usize;
        tokens.truncate(n_blocks * BLOCK_SIZE as usize);
        let hashes = (0..n_blocks as u64).map(|block_idx| name(conversation, block_idx)).collect();
        BlockEvent::Stored(Stored { hashes, tokens, block_size: BLOCK_SIZE, ..Stored::default() })
    };
    let removed = move |(conversation, block_idx)| BlockEvent::Removed(vec![name(conversation, block_idx)]);
    prop_oneof![
        6 => (0..5_u8, 64..6000_usize).prop_map(stored),
        3 => (0..5_u8, 0..90_u64).prop_map(removed),
        1 => Just(BlockEvent::Cleared),
    ]
}

/// The token ids of a text, as if each token had the same number of bytes.
fn tokens(text: &str) -> Vec<u32> {
    let token = |bytes: &[u8]| bytes.iter().fold(0, |id, byte| id << 8 | u32::from(*byte));
    text.as_bytes().chunks(TOKEN_BYTES).map(token).collect()
}

/// The first bytes of a conversation. All conversations begin alike.
fn text(conversation: u8, n_bytes: usize) -> String {
    let turn = |n: usize| format!("turn {n} of {}; ", if n < 20 { 0 } else { conversation });
    let mut text: String = (0..).map(turn).take(n_bytes / 8 + 1).collect();
    text.truncate(n_bytes);
    text
}

/// The servers' side.
struct Served {
    director: Director,
    datastore: Arc<Datastore>,
    start: Instant,
}

impl Served {
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn new(strategy: &str, policy: Patch) -> Self {
        let (mut index, reader) = Index::new();
        let pool = manifest::parse(&POOL.replace("STRATEGY", strategy), "pool.yaml").unwrap();
        let pools = pool.into_iter().map(|object| match object {
            Object::InferencePool(pool) => Change::ApplyPool(pool),
            other => panic!("not a pool: {other:?}"),
        });
        let endpoints = (0..N_PODS).map(|pod| {
            Change::ApplyEndpoint(EndpointRecord {
                key: ObjectKey::new("default", format!("pod-{pod}")),
                address: ([10, 0, 0, 1], FIRST_PORT + pod).into(),
                kv: KvAddresses::default(),
                membership: Membership::EveryPool,
                ready: true,
            })
        });
        index.apply(pools.chain(endpoints).collect::<Vec<_>>());
        let options = Options {
            pool: None,
            policy,
            max_metrics_age: Duration::from_secs(60),
            index_capacity: INDEX_CAPACITY,
            kv_bounds: Bounds::default(),
            compat: Compat::None,
            explains: false,
            saturation: Thresholds::default(),
            endpoints_per_pick: std::num::NonZeroUsize::MIN,
            n_decisions: 1,
            seed: SEED,
            peers: None,
        };
        let director = Director::new(options, Arc::new(Metrics::default()));
        let datastore = director.apply(&reader.snapshot());
        for endpoint in &datastore.endpoints {
            director.blocks().reset(endpoint.state.id(), true);
        }
        Self { director, datastore, start: Instant::now() }
    }

    fn now(&self, now: Duration) -> Now {
        Now { instant: self.start + now, wall: SystemTime::UNIX_EPOCH + now }
    }

    fn place(&self, text: &str, now: Duration) -> (usize, InFlightRequest) {
        let body = Bytes::from(format!(r#"{{"model":"m","prompt":"{text}"}}"#));
        let mut scanner = BodyScanner::new(Api::Completions);
        scanner.push(&body).unwrap();
        let request = PickRequest {
            x_request_id: String::new(),
            pool: None,
            subset: None,
            objective: None,
            wants_reason: false,
            content: Content::Body(scanner.finish(&[body]).unwrap()),
        };
        let prompt = TokenPrompt { tokens: tokens(text), ..TokenPrompt::default() };
        let tokens = PromptTokens::Known(vec![prompt]);
        let (pick, _record) = self.director.decide_on_record(request, tokens, self.now(now));
        let pick = pick.unwrap();
        let (_, port) = pick.destination.rsplit_once(':').unwrap();
        (usize::from(port.parse::<u16>().unwrap() - FIRST_PORT), pick.lease)
    }

    fn end(&self, in_flight: InFlightRequest, now: Duration) {
        let report = ResponseReport { status: Some(200), complete: Some(true), ..ResponseReport::default() };
        self.director.settle(in_flight, &report, self.now(now).instant);
    }

    fn apply(&self, pod_idx: usize, event: BlockEvent) {
        self.director.blocks().apply(self.datastore.endpoints[pod_idx].state.id(), vec![event]);
    }

    fn scrape(&self, gauges: &[PodLoad], now: Duration) {
        for (endpoint, gauges) in self.datastore.endpoints.iter().zip(gauges) {
            let PodLoad { waiting, running, kv_usage, first_tokens } = *gauges;
            let first_tokens = Some(first_tokens);
            let sample = Sample { waiting, running, kv_usage, first_tokens, ..Sample::default() };
            let (doubts, taken) = (endpoint.state.doubts(), self.now(now).instant);
            self.director.note_scrape(endpoint, ScrapeResult::Sample { sample, doubts, taken });
        }
    }
}

/// Runs the events through both sides; returns the picks of each.
fn picks(events: &[Event], served: &Served, policy: RouterPolicy) -> [Vec<usize>; 2] {
    let mut router = Router::new(policy, usize::from(N_PODS), SEED);
    let mut picks = [Vec::new(), Vec::new()];
    // Requests in flight, those without a first token in front.
    let mut waiting: Vec<(InFlightRequest, RoutedRequest)> = Vec::new();
    let mut answering: Vec<(InFlightRequest, RoutedRequest)> = Vec::new();
    let mut n_first_tokens = [0; N_PODS as usize];
    for (number, event) in (0_u64..).zip(events) {
        let now = Duration::from_millis(10 * number);
        match event {
            Event::Arrival { conversation, n_bytes } => {
                let text = text(*conversation, *n_bytes);
                let work = Work { id: number, prompt: tokens(&text), output: Vec::new() };
                let asked = router::RequestView { text: &text, user: None, work: &work, now };
                let (served_idx, in_flight) = served.place(&text, now);
                let placed = router.place(asked, &[]);
                picks[0].push(served_idx);
                picks[1].push(placed.pod_idx);
                waiting.push((in_flight, placed));
            }
            Event::FirstToken(nth) if !waiting.is_empty() => {
                let (mut in_flight, mut placed) = waiting.remove(nth % waiting.len());
                in_flight.note_first_token();
                router.on_first_token(&mut placed);
                answering.push((in_flight, placed));
            }
            Event::End(nth) if !answering.is_empty() => {
                let (in_flight, placed) = answering.remove(nth % answering.len());
                served.end(in_flight, now);
                router.on_end(placed);
            }
            Event::FirstToken(_) | Event::End(_) => {}
            Event::Kv { pod_idx, event, lost } => {
                served.apply(*pod_idx, event.clone());
                if !lost {
                    router.on_kv_events(*pod_idx, vec![event.clone()]);
                }
            }
            Event::Scrape(gauges) => {
                let counted = gauges.iter().zip(&mut n_first_tokens).map(|(gauges, n_counted)| {
                    *n_counted += gauges.first_tokens;
                    PodLoad { first_tokens: *n_counted, ..*gauges }
                });
                let gauges: Vec<PodLoad> = counted.collect();
                served.scrape(&gauges, now);
                for (pod_idx, gauges) in gauges.iter().enumerate() {
                    router.on_scrape(pod_idx, *gauges, now);
                }
            }
        }
    }
    picks
}

fn traces() -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec(event(), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_simulator_picks_by_prefix_as_the_servers_do(events in traces()) {
        let served = Served::new("PREFIX_CACHE", Patch::default());
        let [servers, simulator] = picks(&events, &served, RouterPolicy::prefix());
        prop_assert_eq!(servers, simulator);
    }

    #[test]
    fn the_simulator_picks_by_kv_events_as_the_servers_do(events in traces()) {
        let served = Served::new(PRECISE, Patch::default());
        let [servers, simulator] = picks(&events, &served, RouterPolicy::precise());
        prop_assert_eq!(servers, simulator);
    }

    #[test]
    fn the_simulator_picks_by_load_as_the_servers_do(events in traces()) {
        let served = Served::new("DEFAULT", Patch::default());
        let [servers, simulator] = picks(&events, &served, RouterPolicy::Load);
        prop_assert_eq!(servers, simulator);
    }
}

/// True if some trace tells the two sides apart.
fn differs(policy: impl Fn() -> RouterPolicy, patch: &str) -> bool {
    let mut runner = TestRunner::deterministic();
    (0..64).any(|_| {
        let events = traces().new_tree(&mut runner).unwrap().current();
        let served = Served::new("PREFIX_CACHE", Patch::parse(patch).unwrap());
        let [servers, simulator] = picks(&events, &served, policy());
        servers != simulator
    })
}

/// Control: a number that only one side changes shows.
#[test]
fn a_number_that_one_side_changes_shows() {
    if test_skips::skips_slow() {
        return;
    }
    assert!(!differs(RouterPolicy::prefix, "{}"));
    for patch in
        ["{threshold: 0.6}", "{spillTokens: 200}", "{queueTokens: 80}", "{stall: 0.2}", "{kvTokens: 500}"]
    {
        assert!(differs(RouterPolicy::prefix, patch), "{patch} on the servers' side alone changes no pick");
    }
    let simulated = || RouterPolicy::Prefix(Affinity::new(0.4));
    assert!(differs(simulated, "{}"), "a threshold on the simulator's side alone changes no pick");
}

/// Control: a KV event that only the servers see shows.
#[test]
fn a_kv_event_that_one_side_misses_shows() {
    let differs = |n_lost| {
        let mut runner = TestRunner::deterministic();
        (0..64).any(|_| {
            let mut events = traces().new_tree(&mut runner).unwrap().current();
            let losses = events.iter_mut().filter_map(|event| match event {
                Event::Kv { lost, .. } => Some(lost),
                _ => None,
            });
            losses.take(n_lost).for_each(|lost| *lost = true);
            let served = Served::new(PRECISE, Patch::default());
            let [servers, simulator] = picks(&events, &served, RouterPolicy::precise());
            servers != simulator
        })
    };
    assert!(!differs(0));
    assert!(differs(1), "the first KV event of a trace changes no pick");
}
