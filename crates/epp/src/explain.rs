//! Reasons of picks: one record per decision; a bounded ring keeps the newest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use scheduling::candidate::AdapterState;

use crate::tuning::Tuning;
use ext_proc::response::Usage;

/// Format of times: RFC 3339 in UTC with microseconds.
const MICROS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Decisions in one part of a listing. A part is about 130 KB in a large pool, and takes some 100 us to write.
const LISTED_AT_ONCE: usize = 16;

/// Longest request id in a record, in bytes; a proxy's own id has 36.
const MAX_REQUEST_ID: usize = 128;

/// A decision, as `/debug/decisions` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct DecisionRecord {
    /// Number of the decision in this process, from 1.
    pub seq: u64,
    /// Written as RFC 3339 with microseconds, UTC.
    #[serde(serialize_with = "timestamp")]
    pub time: SystemTime,
    /// The picker's own id of the request: 10 characters.
    pub request: String,
    /// Value of `x-request-id`, at most [`MAX_REQUEST_ID`] bytes.
    pub x_request_id: String,
    /// `namespace/name`.
    pub pool: Option<Arc<str>>,
    pub model: Option<String>,
    pub target_model: Option<String>,
    /// Criticality of the InferenceModel.
    pub criticality: Option<&'static str>,
    pub strategy: Option<&'static str>,
    /// `picked`, or the type of the refusal.
    pub outcome: &'static str,
    /// `ip:port`.
    pub endpoint: Option<Arc<str>>,
    pub pod: Option<Arc<str>>,
    pub reason: Option<&'static str>,
    /// Endpoints that the proxy tries next, in order, if the first cannot be reached.
    pub fallbacks: Vec<Arc<str>>,
    pub matched_bytes: u64,
    /// Bytes of the prompt in full blocks.
    pub total_bytes: u64,
    pub ratio: f64,
    pub threshold: Option<f64>,
    /// Values of all knobs at the time, under PREFIX_CACHE.
    pub policy: Option<Arc<Tuning>>,
    /// Number of endpoints that were considered; `candidates` does not show all of a large pool.
    pub n_candidates: usize,
    pub candidates: Vec<CandidateRecord>,
    /// Reason why the token ids are missing, if the pool uses KV events: the request was placed by the estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untokenized: Option<String>,
    /// The endpoint that served, if the proxy reports another than the picked one.
    pub served: Option<Arc<str>>,
    /// Absent until the stream has ended.
    pub response: Option<ResponseRecord>,
}

/// Outcome of the response.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ResponseRecord {
    /// HTTP status; absent if none came.
    pub status: Option<u16>,
    /// True if the response's end was seen, false if it broke off; `null` if the proxy reported headers only.
    pub complete: Option<bool>,
    pub usage: Option<Usage>,
    /// Prediction of `usage.cached_tokens` by the index, at the pick; absent without PREFIX_CACHE or `usage`.
    pub predicted_cached_tokens: Option<f64>,
}

/// An endpoint as the policy saw it.
#[derive(Clone, Debug, Serialize)]
pub struct CandidateRecord {
    pub endpoint: Arc<str>,
    pub pod: Arc<str>,
    pub matched_bytes: u64,
    /// Cached tokens of the prompt according to KV events, if the pool uses them; `matched_bytes` is derived from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cached_tokens: Option<u64>,
    pub ratio: f64,
    pub waiting: u32,
    pub running: u32,
    /// KV-cache usage in 0..=1.
    pub kv_usage: f64,
    pub in_flight: u32,
    /// Bytes of the prompts in flight to it that it still has to compute.
    pub uncached_bytes: u64,
    /// The figure that the policy compares, in bytes of prompt: work ahead, the request's own uncached part, requests
    /// in flight. Absent under DEFAULT, and if stale metrics ruled the endpoint out.
    pub work: Option<f64>,
    /// True if its metrics were recent enough to be used for a pick.
    pub fresh: bool,
    /// State of the request's LoRA adapter on the endpoint.
    pub adapter: AdapterState,
    /// Absent until the first scrape, and after a failed one until the next success.
    pub metrics_age_ms: Option<u64>,
}

/// The part of a decision that fits in a header.
#[derive(Serialize)]
struct Brief<'a> {
    request: &'a str,
    pool: Option<&'a str>,
    strategy: Option<&'static str>,
    endpoint: Option<&'a str>,
    pod: Option<&'a str>,
    reason: Option<&'static str>,
    matched_bytes: u64,
    total_bytes: u64,
    ratio: f64,
    threshold: Option<f64>,
    n_candidates: usize,
    fallbacks: &'a [Arc<str>],
}

/// The kept decisions as JSON, part by part: the answer of `GET /debug/decisions`. Between the parts it holds neither a
/// lock nor a record, however slow the reader is; decisions that leave the ring meanwhile are left out.
#[derive(Debug)]
pub struct Listing {
    after: u64,
    /// Number of the newest decision when the listing began.
    until: u64,
    next: Part,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    First,
    Later,
    End,
}

/// The newest decisions, oldest first.
#[derive(Debug)]
pub struct Decisions {
    capacity: usize,
    ring: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    next_seq: u64,
    records: VecDeque<Arc<DecisionRecord>>,
}

impl DecisionRecord {
    /// The pick in a line of JSON, as ASCII.
    #[must_use]
    pub fn to_header(&self) -> String {
        let brief = Brief {
            request: &self.request,
            pool: self.pool.as_deref(),
            strategy: self.strategy,
            endpoint: self.endpoint.as_deref(),
            pod: self.pod.as_deref(),
            reason: self.reason,
            matched_bytes: self.matched_bytes,
            total_bytes: self.total_bytes,
            ratio: self.ratio,
            threshold: self.threshold,
            n_candidates: self.n_candidates,
            fallbacks: &self.fallbacks,
        };
        let text = serde_json::to_string(&brief).unwrap_or_default();
        // Names of pods may come from a file in any script; a header takes only ASCII.
        text.chars().map(|char| if char.is_ascii() && !char.is_control() { char } else { '?' }).collect()
    }
}

impl Decisions {
    /// Keeps at most `capacity` records.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, ring: Mutex::new(Ring { next_seq: 1, records: VecDeque::new() }) }
    }

    /// Keeps the record that `build` makes with its number.
    pub fn push(&self, build: impl FnOnce(u64) -> DecisionRecord) -> Arc<DecisionRecord> {
        let mut ring = self.ring.lock();
        let decision = Arc::new(build(ring.next_seq));
        ring.next_seq += 1;
        if self.capacity == 0 {
            return decision;
        }
        if ring.records.len() == self.capacity {
            ring.records.pop_front();
        }
        ring.records.push_back(Arc::clone(&decision));
        decision
    }

    /// Adds later facts to record `seq`, if it is still kept.
    pub fn amend(&self, seq: u64, change: impl FnOnce(&mut DecisionRecord)) {
        let mut ring = self.ring.lock();
        let Some(first) = ring.records.front().map(|record| record.seq) else { return };
        let idx = seq.checked_sub(first).and_then(|offset| usize::try_from(offset).ok());
        if let Some(record) = idx.and_then(|idx| ring.records.get_mut(idx)) {
            change(Arc::make_mut(record));
        }
    }

    /// The kept decisions with numbers above `after`, oldest first, at most `limit`.
    #[must_use]
    pub fn after(&self, after: u64, limit: usize) -> Vec<Arc<DecisionRecord>> {
        let ring = self.ring.lock();
        let start = ring.records.partition_point(|decision| decision.seq <= after);
        ring.records.range(start..).take(limit).cloned().collect()
    }

    /// Lists the currently kept decisions with numbers above `after`.
    #[must_use]
    pub fn listing(&self, after: u64) -> Listing {
        let until = self.ring.lock().next_seq - 1;
        Listing { after, until, next: Part::First }
    }
}

impl Listing {
    /// The next part of the text; `None` after the last one.
    pub fn next_part(&mut self, decisions: &Decisions) -> Option<String> {
        let (opening, closing) = match self.next {
            Part::First => (r#"{"decisions":["#, r#"{"decisions":[]}"#),
            Part::Later => (",", "]}"),
            Part::End => return None,
        };
        let mut records = decisions.after(self.after, LISTED_AT_ONCE);
        records.retain(|record| record.seq <= self.until);
        let Some(last) = records.last() else {
            self.next = Part::End;
            return Some(closing.to_owned());
        };
        (self.after, self.next) = (last.seq, Part::Later);
        let texts: Vec<String> =
            records.iter().map(|record| serde_json::to_string(record).unwrap_or_default()).collect();
        Some(opening.to_owned() + &texts.join(","))
    }
}

/// The first bytes of an `x-request-id`, as many as records keep.
#[must_use]
pub fn kept_id(mut x_request_id: String) -> String {
    x_request_id.truncate(x_request_id.floor_char_boundary(MAX_REQUEST_ID));
    x_request_id
}

fn timestamp<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&OffsetDateTime::from(*time).format(MICROS).unwrap_or_default())
}
