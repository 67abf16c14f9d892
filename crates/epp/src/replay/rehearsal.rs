//! Decides requests without a proxy or a model server, as a fresh picker would: one after the other, each answered
//! before the next one comes.

use std::net::SocketAddr;
use std::sync::Arc;

use inference_api::manifest::{self, ManifestError};
use inference_api::object::ObjectKey;
use pool_index::index::{Change, EndpointRecord, Index, Membership, Objects};
use pool_index::snapshot::KvAddresses;

use bytes::Bytes;

use crate::director::{Director, Now, Options};
use crate::explain::DecisionRecord;
use crate::metrics::Metrics;
use ext_proc::body::{Api, BodyError, BodyScanner, RequestBody};
use ext_proc::exchange::ResponseReport;
use ext_proc::pick_request::{Content, PickRequest};
use ext_proc::refusal::RequestFault;

/// The pool that is used if none is given: any model, by prefix.
const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata:
  name: rehearsal
  annotations: {inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}
spec: {targetPortNumber: 8000, selector: {app: any}, extensionRef: {name: epp}}
";

/// A picker without a network.
#[derive(Debug)]
pub struct Rehearsal {
    director: Director,
}

/// Reason why requests cannot be rehearsed.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{0} holds no InferencePool")]
    NoPool(String),
}

impl Rehearsal {
    /// Creates a picker for the pools in `files` (name and text of each), or for one pool that takes any model. Each
    /// pool has `endpoints`.
    ///
    /// # Errors
    /// If a text is not a manifest, or no file contains a pool.
    pub fn try_new(
        options: Options,
        files: &[(String, String)],
        endpoints: &[SocketAddr],
    ) -> Result<Self, RehearsalError> {
        let built_in = [("the built-in pool".to_owned(), POOL.to_owned())];
        let files = if files.is_empty() { &built_in } else { files };
        let mut parsed = Vec::new();
        for (name, text) in files {
            parsed.extend(manifest::parse(text, name)?);
        }
        let objects: Objects = parsed.into_iter().collect();
        if objects.pools.is_empty() {
            let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
            return Err(RehearsalError::NoPool(names.join(", ")));
        }
        let mut changes = vec![Change::ReplaceObjects(objects)];
        changes.extend(endpoints.iter().enumerate().map(|(idx, address)| {
            Change::ApplyEndpoint(EndpointRecord {
                key: ObjectKey::new("default", format!("pod-{idx}")),
                address: *address,
                kv: KvAddresses::default(),
                membership: Membership::EveryPool,
                ready: true,
            })
        }));
        let (mut index, reader) = Index::new();
        index.apply(changes);
        let director = Director::new(Options { n_decisions: 1, ..options }, Arc::new(Metrics::default()));
        director.apply(&reader.snapshot());
        Ok(Self { director })
    }

    /// Decides the request with this body, and counts it as answered.
    pub fn decide(&self, body: &[u8], now: Now) -> Option<Arc<DecisionRecord>> {
        let content = match read(body) {
            Ok(body) => Content::Body(body),
            Err(error) => Content::Fault(RequestFault::Malformed(error)),
        };
        let request = PickRequest {
            x_request_id: String::new(),
            pool: None,
            subset: None,
            objective: None,
            wants_reason: false,
            content,
        };
        if let Ok(pick) = self.director.decide(request, now) {
            let mut in_flight = pick.lease;
            in_flight.note_first_token();
            let report =
                ResponseReport { status: Some(200), complete: Some(true), ..ResponseReport::default() };
            self.director.settle(in_flight, &report, now.instant);
        }
        self.director.decisions().after(0, usize::MAX).pop()
    }
}

fn read(body: &[u8]) -> Result<RequestBody, BodyError> {
    let mut scanner = BodyScanner::new(Api::Any);
    scanner.push(body)?;
    scanner.finish(&[Bytes::copy_from_slice(body)])
}
