//! Cost of a pick, by number of endpoints.

use std::num::NonZeroUsize;
use std::time::Duration;

use divan::{Bencher, black_box};
use prefix_index::endpoint::EndpointId;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use scheduling::affinity::Affinity;
use scheduling::candidate::{AdapterState, Candidate, Load};
use scheduling::pick::{Ask, Policy, pick};

const SIZES: [u32; 4] = [10, 100, 1000, 10_000];

fn main() {
    divan::main();
}

fn candidates(n: u32) -> Vec<Candidate> {
    let candidate = |slot: u32| Candidate {
        endpoint: EndpointId::new(slot, 0),
        load: Load {
            waiting: slot % 3,
            running: 8,
            kv_usage: f64::from(slot % 7) / 10.0,
            in_flight: slot % 5,
            uncached_bytes: u64::from(slot % 9) * 500,
            age: Some(Duration::ZERO),
            fresh: true,
        },
        adapter: AdapterState::Irrelevant,
        matched_bytes: u64::from(slot % 11) * 64,
    };
    (0..n).map(candidate).collect()
}

#[divan::bench(args = SIZES)]
fn by_load(bencher: Bencher<'_, '_>, n: u32) {
    bench(bencher, n, &Policy::Default);
}

#[divan::bench(args = SIZES)]
fn by_prefix(bencher: Bencher<'_, '_>, n: u32) {
    bench(bencher, n, &Policy::PrefixCache(Affinity::new(0.5)));
}

fn bench(bencher: Bencher<'_, '_>, n: u32, policy: &Policy) {
    let candidates = candidates(n);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let ask = Ask { total_bytes: 1000, n_endpoints: NonZeroUsize::MIN };
    bencher.bench_local(|| pick(policy, black_box(&candidates), ask, &mut rng));
}
