//! Edits of what Envoy Gateway sends to an extension server: they attach pools as the local files do.
//!
//! An edit removes fields and merges encoded parts, which are rendered by the functions that render the files. The rest of
//! a message is never decoded, so fields of newer versions survive, and equal requests get equal answers.
//!
//! Envoy Gateway shows the pool with a rule's route and cluster only. A mark in their metadata carries it to the
//! translation, which has all listeners.

mod translation;
mod division;
mod pool_parts;
mod mark;
mod parts;
mod field;

use std::sync::Arc;

use inference_api::object::ObjectKey;
use inference_api::pool::{AppProtocol, BodyMode, FailureMode};
use prost::encoding;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::attachment::{Attachment, Maker, Responses};
use crate::error::Malformed;
use crate::render::cluster::PROTOCOL_OPTIONS;
use crate::render::filters::filter_names;
use crate::render::route::{enabled, retry_policy};
use crate::wire::Message;
use crate::xds::parts::Parts;
use crate::xds::pool_parts::{MAX_POOLS, Memo, PoolParts};

pub use crate::xds::division::{Division, Portion};
pub use crate::xds::translation::Resources;

/// A pool, and the addresses of its pods and its picker as the proxies resolve them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Pool {
    pub key: ObjectKey,
    pub failure_mode: FailureMode,
    pub responses: Responses,
    /// Protocol that the pods speak.
    pub app_protocol: AppProtocol,
    /// DNS name that resolves to the ready pods.
    pub pods: String,
    /// Ports on which each pod serves.
    pub ports: Vec<u16>,
    pub picker: Picker,
}

/// The Service of a pool's picker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Picker {
    /// DNS name that resolves to the pickers.
    pub address: String,
    pub port: u16,
    pub trust: Trust,
}

/// Trust in a picker.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Trust {
    /// Its certificate must be for this host and signed by this authority, in PEM. It reports its health.
    Authority { host: String, certificates: String },
    /// Somebody else's picker, which takes bodies in this mode: any certificate. Its health is not asked for, because it
    /// may be served elsewhere.
    Any(BodyMode),
}

impl Pool {
    fn attachment(&self) -> Attachment<'_> {
        let maker = match self.picker.trust {
            Trust::Authority { .. } => Maker::Warmpath,
            Trust::Any(body_mode) => Maker::Other(body_mode),
        };
        Attachment { pool: &self.key, failure_mode: self.failure_mode, responses: self.responses, maker }
    }
}

/// Edits messages.
#[derive(Debug)]
pub struct Editor {
    parts: Parts,
    memo: Memo,
    /// True if clients may ask the picker for its reasons; if not, listeners remove the question from requests.
    explains: bool,
}

impl Editor {
    #[must_use]
    pub fn new(explains: bool) -> Self {
        Self { parts: Parts::new(), memo: Memo::new(MAX_POOLS), explains }
    }

    /// Attaches `pool` to an `envoy.config.route.v3.Route` that leads to it.
    ///
    /// # Errors
    /// If `route` is not a protobuf message.
    pub fn route(&self, route: &[u8], pool: &Pool) -> Result<Vec<u8>, Malformed> {
        // One part per filter: the order of a map's entries in one part would be left to chance.
        let filters = filter_names(&pool.attachment()).into_iter();
        let filters: Vec<Value> =
            filters.map(|name| json!({ "typed_per_filter_config": { name: enabled() } })).collect();
        self.marked_route(route, [pool], &filters)
    }

    /// The route with a mark of `pools`, these parts, and a retry policy.
    fn marked_route<'a>(
        &self,
        route: &[u8],
        pools: impl IntoIterator<Item = &'a Pool>,
        parts: &[Value],
    ) -> Result<Vec<u8>, Malformed> {
        let mut parts = parts.to_vec();
        parts.push(json!({ "metadata": mark::render(mark::POOL, &mark::pools(pools)) }));
        let mut message = Message::decode(route)?;
        let action = message.bytes(field::route::ROUTE).map(Message::decode).transpose()?;
        // A policy of the user stays.
        if action.is_some_and(|action| !action.has(field::route_action::RETRY_POLICY)) {
            parts.push(json!({ "route": { "retry_policy": retry_policy() } }));
        }
        mark::remove(&mut message, field::route::METADATA)?;
        let parts: Vec<Vec<u8>> =
            parts.iter().map(|part| self.parts.encode("envoy.config.route.v3.Route", part)).collect();
        for part in &parts {
            message.merge(part)?;
        }
        Ok(message.encode())
    }

    /// Turns the empty `envoy.config.cluster.v3.Cluster` that Envoy Gateway makes for a pool into one of the pool's pods,
    /// by name, in which the picker's choice counts.
    ///
    /// # Errors
    /// If `cluster` is not a protobuf message.
    pub fn cluster(&self, cluster: &[u8], pool: &Pool) -> Result<Vec<u8>, Malformed> {
        use field::cluster as number;
        let parts = self.pool_parts(pool);
        let mut message = Message::decode(cluster)?;
        let assignment = named_assignment(message.text(number::NAME));
        message.remove(&[
            number::TYPE,
            number::CLUSTER_TYPE,
            number::EDS_CLUSTER_CONFIG,
            number::DNS_REFRESH_RATE,
            number::LOAD_ASSIGNMENT,
            number::LOAD_BALANCING_POLICY,
        ]);
        mark::remove(&mut message, number::METADATA)?;
        message.merge(&parts.cluster)?;
        message.merge(&assignment)?;
        if let Some(http2) = &parts.http2
            && !speaks_http2(&mut message, &http2.options)?
        {
            message.merge(&http2.extension)?;
        }
        if !bounds_requests(&message)? {
            message.remove(&[number::CIRCUIT_BREAKERS]);
            message.merge(&parts.bounds)?;
        }
        Ok(message.encode())
    }

    fn pool_parts(&self, pool: &Pool) -> Arc<PoolParts> {
        self.memo.parts_of(pool, &self.parts)
    }
}

/// Name of an `envoy.config.route.v3.Route`.
///
/// # Errors
/// If `route` is not a protobuf message.
pub fn route_name(route: &[u8]) -> Result<String, Malformed> {
    Ok(Message::decode(route)?.text(field::route::NAME).to_owned())
}

/// Name of an `envoy.config.cluster.v3.Cluster`.
///
/// # Errors
/// If `cluster` is not a protobuf message.
pub fn cluster_name(cluster: &[u8]) -> Result<String, Malformed> {
    Ok(Message::decode(cluster)?.text(field::cluster::NAME).to_owned())
}

/// Part of an `envoy.config.cluster.v3.Cluster`: the name in its load assignment.
fn named_assignment(cluster_name: &str) -> Vec<u8> {
    let (mut assignment, mut part) = (Vec::new(), Vec::new());
    encoding::string::encode(field::load_assignment::CLUSTER_NAME, &cluster_name.to_owned(), &mut assignment);
    encoding::bytes::encode(field::cluster::LOAD_ASSIGNMENT, &assignment, &mut part);
    part
}

/// Makes the protocol options of the cluster say HTTP/2, if it has some; other options stay. False if it has none.
fn speaks_http2(cluster: &mut Message<'_>, http2: &[u8]) -> Result<bool, Malformed> {
    use field::{cluster as number, extension, map, protocol_options as options};
    cluster.edit(number::TYPED_EXTENSION_PROTOCOL_OPTIONS, |entry| {
        let mut entry = Message::decode(entry)?;
        if entry.text(map::KEY) != PROTOCOL_OPTIONS {
            return Ok(None);
        }
        entry.edit(map::VALUE, |any| {
            let mut any = Message::decode(any)?;
            any.edit(extension::VALUE, |known| {
                let mut known = Message::decode(known)?;
                known.remove(&options::PROTOCOLS);
                known.merge(http2)?;
                Ok(Some(known.encode()))
            })?;
            Ok(Some(any.encode()))
        })?;
        Ok(Some(entry.encode()))
    })
}

/// True if a policy of the user bounds the cluster's requests. Envoy Gateway alone sets a bound for retries.
fn bounds_requests(cluster: &Message<'_>) -> Result<bool, Malformed> {
    use field::circuit_breakers as number;
    for breakers in cluster.all(field::cluster::CIRCUIT_BREAKERS) {
        for thresholds in Message::decode(breakers)?.all(number::THRESHOLDS) {
            let thresholds = Message::decode(thresholds)?;
            let bounds = [number::MAX_CONNECTIONS, number::MAX_PENDING_REQUESTS, number::MAX_REQUESTS];
            if bounds.iter().any(|bound| thresholds.has(*bound)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
