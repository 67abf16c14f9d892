//! Decision records are bounded for every pool and any traffic.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use epp::director::{Director, Now, Options};
use epp::explain::DecisionRecord;
use epp::metrics::Metrics;
use ext_proc::pick_request::{Content, PickRequest};
use inference_api::kinds::Object;
use inference_api::manifest;
use inference_api::object::ObjectKey;
use pool_index::index::{Change, EndpointRecord, Index, Membership};
use pool_index::snapshot::KvAddresses;
use serde_json::Value;

use crate::fixtures::options;

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";

/// A director with a pool of `n_endpoints`.
pub(crate) fn director(n_endpoints: u16, n_decisions: usize) -> Director {
    let (mut index, reader) = Index::new();
    let mut changes: Vec<Change> = Vec::new();
    for object in manifest::parse(POOL, "pool.yaml").unwrap() {
        let Object::InferencePool(pool) = object else { panic!("not a pool: {object:?}") };
        changes.push(Change::ApplyPool(pool));
    }
    for port in 0..n_endpoints {
        let (key, address) =
            (ObjectKey::new("default", format!("pod-{port}")), ([10, 0, 0, 1], port + 1).into());
        changes.push(Change::ApplyEndpoint(EndpointRecord {
            key,
            address,
            kv: KvAddresses::default(),
            membership: Membership::EveryPool,
            ready: true,
        }));
    }
    index.apply(changes);
    let director = Director::new(Options { n_decisions, ..options() }, Arc::new(Metrics::default()));
    director.apply(&reader.snapshot());
    director
}

#[expect(clippy::disallowed_methods, reason = "the test stands in for the server")]
fn decide(director: &Director, n_requests: usize) {
    for _ in 0..n_requests {
        let request = PickRequest {
            x_request_id: "4c9f".to_owned(),
            pool: None,
            subset: None,
            objective: None,
            wants_reason: false,
            content: Content::Opaque,
        };
        let now = Now { instant: Instant::now(), wall: SystemTime::now() };
        assert!(director.decide(request, now).is_ok());
    }
}

/// The records that are kept after `n_requests` to a pool of `n_endpoints`.
fn records(n_endpoints: u16, n_decisions: usize, n_requests: usize) -> Vec<Arc<DecisionRecord>> {
    let director = director(n_endpoints, n_decisions);
    decide(&director, n_requests);
    director.decisions().after(0, usize::MAX)
}

#[test]
fn a_record_of_a_large_pool_shows_a_part_and_the_picked_one() {
    for record in records(500, 100, 100) {
        assert_eq!(record.n_candidates, 500);
        assert!(record.candidates.len() <= 65);
        assert!(
            record.candidates.iter().any(|candidate| Some(&candidate.endpoint) == record.endpoint.as_ref())
        );
    }
    // Control: the record of a small pool shows all endpoints.
    assert_eq!(records(10, 1, 1)[0].candidates.len(), 10);
}

#[test]
fn the_ring_keeps_the_newest() {
    let seqs = |n_decisions| records(2, n_decisions, 5).iter().map(|record| record.seq).collect::<Vec<_>>();
    assert_eq!(seqs(3), [3, 4, 5]);
    assert_eq!(seqs(10), [1, 2, 3, 4, 5]);
    assert_eq!(seqs(0), [0; 0]);
}

#[test]
fn a_listing_holds_nothing_between_its_parts() {
    let director = director(500, 100);
    decide(&director, 100);
    let decisions = director.decisions();
    let mut listing = decisions.listing(0);
    let mut text = listing.next_part(decisions).unwrap();
    // Only the ring and this list hold the records.
    let records = decisions.after(0, usize::MAX);
    assert_eq!(records.iter().map(Arc::strong_count).collect::<Vec<_>>(), [2; 100]);
    let n_bytes: usize = records.iter().map(|record| serde_json::to_string(record).unwrap().len()).sum();
    assert!(text.len() < n_bytes / 5, "the first part has {} of {n_bytes} bytes", text.len());
    drop(records);
    // The ring moves on meanwhile; the listing ends with the decision that was the newest at its start.
    decide(&director, 50);
    while let Some(part) = listing.next_part(decisions) {
        assert!(part.len() < n_bytes / 5);
        text += &part;
    }
    let list: Value = serde_json::from_str(&text).unwrap();
    let seqs = list["decisions"].as_array().unwrap().iter().map(|record| record["seq"].as_u64().unwrap());
    assert_eq!(seqs.collect::<Vec<_>>(), (1..=16).chain(51..=100).collect::<Vec<_>>());
}

#[test]
fn a_listing_of_nothing_is_a_list() {
    let director = director(2, 10);
    let mut listing = director.decisions().listing(0);
    assert_eq!(listing.next_part(director.decisions()).as_deref(), Some(r#"{"decisions":[]}"#));
    assert_eq!(listing.next_part(director.decisions()), None);
}
