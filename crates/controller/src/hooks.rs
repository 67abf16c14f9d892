//! The extension server: Envoy Gateway's hooks.
//!
//! A hook that fails holds back the configuration of every Gateway of its class. So a pool that cannot be taken leaves its
//! route as it is, with a warning, and only a request that is no protobuf is an error. Until the first lists are in, every
//! hook is unavailable, and Envoy Gateway asks again.

use std::sync::Arc;

use bytes::Bytes;
use envoy_proto::envoygateway::extension::envoy_gateway_extension_server::{
    EnvoyGatewayExtension, EnvoyGatewayExtensionServer,
};
use envoy_proto::envoygateway::extension::{
    ExtensionResource, PostClusterModifyRequest, PostClusterModifyResponse, PostEndpointsModifyRequest,
    PostEndpointsModifyResponse, PostHttpListenerModifyRequest, PostHttpListenerModifyResponse,
    PostRouteModifyRequest, PostRouteModifyResponse, PostTranslateModifyRequest, PostTranslateModifyResponse,
    PostVirtualHostModifyRequest, PostVirtualHostModifyResponse,
};
use gateway_config::error::Malformed;
use gateway_config::xds::{self, Division, Editor, Pool, Resources};
use inference_api::kinds::{Object, ReadError};
use inference_api::lenient;
use inference_api::object::ObjectKey;
use inference_api::pool::InferencePool;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tracing::{debug, warn};

use crate::facts::Facts;
use crate::metrics::{Answer, Hook, Metrics};
use crate::{resolve, rules};

/// Largest request: `maxMessageSize` in the configuration of Envoy Gateway that the manifests have.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Why a rule's resources give no pool to attach.
#[derive(Debug, Error)]
enum Unattachable {
    #[error("a resource is not JSON")]
    NotJson(#[from] serde_json::Error),
    #[error(transparent)]
    Object(#[from] ReadError),
    #[error("InferencePool {0} names no picker")]
    NoPicker(ObjectKey),
    #[error("the rule leads to {0} pools, and its HTTPRoute is not known yet")]
    Several(usize),
}

/// The pools that a rule leads to.
#[derive(Debug)]
enum Attached {
    One(Pool),
    Divided(Division),
}

/// Answers the hooks by the newest facts.
#[derive(Debug)]
pub struct Hooks {
    editor: Editor,
    facts: watch::Receiver<Option<Arc<Facts>>>,
    metrics: Arc<Metrics>,
}

impl Hooks {
    /// Hooks that are unavailable while `facts` is None.
    #[must_use]
    pub fn new(editor: Editor, facts: watch::Receiver<Option<Arc<Facts>>>, metrics: Arc<Metrics>) -> Self {
        Self { editor, facts, metrics }
    }

    /// The gRPC service.
    #[must_use]
    pub fn into_service(self) -> EnvoyGatewayExtensionServer<Self> {
        EnvoyGatewayExtensionServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(usize::MAX)
    }

    fn facts(&self) -> Result<Arc<Facts>, Status> {
        self.facts.borrow().clone().ok_or_else(|| Status::unavailable("the first lists are not in yet"))
    }

    /// The pools of the rule to which `name` belongs; None if there is none that can be attached.
    fn pools(&self, name: &str, resources: &[ExtensionResource]) -> Result<Option<Attached>, Status> {
        let facts = self.facts()?;
        Ok(attached(name, resources, &facts).unwrap_or_else(|error| {
            warn!(%error, name, "Leaving a route without its pool");
            None
        }))
    }

    /// The message after `edit`, which gives another one or None; the call is counted.
    fn counted(
        &self,
        hook: Hook,
        message: Option<Bytes>,
        edit: impl FnOnce(&[u8]) -> Result<Option<Vec<u8>>, Status>,
    ) -> Result<Option<Bytes>, Status> {
        let begun = Instant::now();
        let edited = message.as_deref().map_or(Ok(None), edit);
        let answer = match &edited {
            Ok(Some(_)) => Answer::Edited,
            Ok(None) => Answer::Kept,
            Err(_) => Answer::Refused,
        };
        self.metrics.observe(hook, answer, begun.elapsed());
        Ok(edited?.map(Bytes::from).or(message))
    }
}

/// The pools of the rule to which the route or cluster `name` belongs.
fn attached(
    name: &str,
    resources: &[ExtensionResource],
    facts: &Facts,
) -> Result<Option<Attached>, Unattachable> {
    let pools = find_pools(resources)?;
    let Some(first) = pools.first() else { return Ok(None) };
    let no_picker = || Unattachable::NoPicker(first.key());
    match rules::division(name, &pools, facts) {
        Some(division) if division.others == 0 && division.pools.iter().all(|part| part.pool.is_none()) => {
            Err(no_picker())
        }
        Some(division) => Ok(Some(Attached::Divided(division))),
        None if pools.len() > 1 => Err(Unattachable::Several(pools.len())),
        None => resolve::pool(first, facts).map(|pool| Some(Attached::One(pool))).ok_or_else(no_picker),
    }
}

/// The pools among a rule's resources, each once. The others belong to other extensions.
fn find_pools(resources: &[ExtensionResource]) -> Result<Vec<InferencePool>, Unattachable> {
    let mut pools: Vec<InferencePool> = Vec::new();
    for ExtensionResource { unstructured_bytes } in resources {
        let value = serde_json::from_slice(unstructured_bytes)?;
        let object = match lenient::read(value) {
            Ok(read) => read.object,
            Err(ReadError::NoKind | ReadError::Kind { .. }) => continue,
            Err(error @ ReadError::Object(_)) => return Err(error.into()),
        };
        if let Object::InferencePool(pool) = object
            && !pools.contains(&pool)
        {
            pools.push(pool);
        }
    }
    Ok(pools)
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl EnvoyGatewayExtension for Hooks {
    async fn post_route_modify(
        &self,
        request: Request<PostRouteModifyRequest>,
    ) -> Result<Response<PostRouteModifyResponse>, Status> {
        let PostRouteModifyRequest { route, post_route_context } = request.into_inner();
        let resources = post_route_context.map(|context| context.extension_resources).unwrap_or_default();
        let route = self.counted(Hook::Route, route, |route| {
            let name = xds::route_name(route).map_err(malformed)?;
            let Some(pools) = self.pools(&name, &resources)? else { return Ok(None) };
            debug!(name, "Attaching a route");
            let edited = match &pools {
                Attached::One(pool) => self.editor.route(route, pool),
                Attached::Divided(division) => self.editor.divided_route(route, division),
            };
            edited.map(Some).map_err(malformed)
        })?;
        Ok(Response::new(PostRouteModifyResponse { route }))
    }

    async fn post_cluster_modify(
        &self,
        request: Request<PostClusterModifyRequest>,
    ) -> Result<Response<PostClusterModifyResponse>, Status> {
        let PostClusterModifyRequest { cluster, post_cluster_context } = request.into_inner();
        let resources =
            post_cluster_context.map(|context| context.backend_extension_resources).unwrap_or_default();
        let cluster = self.counted(Hook::Cluster, cluster, |cluster| {
            let name = xds::cluster_name(cluster).map_err(malformed)?;
            let Some(pools) = self.pools(&name, &resources)? else { return Ok(None) };
            debug!(name, "Attaching a cluster");
            let edited = match &pools {
                Attached::One(pool) => self.editor.cluster(cluster, pool),
                Attached::Divided(division) => self.editor.divided_cluster(cluster, division),
            };
            edited.map(Some).map_err(malformed)
        })?;
        Ok(Response::new(PostClusterModifyResponse { cluster }))
    }

    async fn post_translate_modify(
        &self,
        request: Request<PostTranslateModifyRequest>,
    ) -> Result<Response<PostTranslateModifyResponse>, Status> {
        let PostTranslateModifyRequest { clusters, secrets, listeners, routes } = request.into_inner();
        let sent = Resources { clusters, listeners, route_configurations: routes };
        let begun = Instant::now();
        let edited = self.editor.translation(sent).map_err(malformed);
        let answer = if edited.is_ok() { Answer::Edited } else { Answer::Refused };
        self.metrics.observe(Hook::Translation, answer, begun.elapsed());
        let Resources { clusters, listeners, route_configurations } = edited?;
        let response =
            PostTranslateModifyResponse { clusters, secrets, listeners, routes: route_configurations };
        Ok(Response::new(response))
    }

    async fn post_virtual_host_modify(
        &self,
        request: Request<PostVirtualHostModifyRequest>,
    ) -> Result<Response<PostVirtualHostModifyResponse>, Status> {
        let PostVirtualHostModifyRequest { virtual_host } = request.into_inner();
        Ok(Response::new(PostVirtualHostModifyResponse { virtual_host }))
    }

    async fn post_http_listener_modify(
        &self,
        request: Request<PostHttpListenerModifyRequest>,
    ) -> Result<Response<PostHttpListenerModifyResponse>, Status> {
        let PostHttpListenerModifyRequest { listener } = request.into_inner();
        Ok(Response::new(PostHttpListenerModifyResponse { listener }))
    }

    async fn post_endpoints_modify(
        &self,
        request: Request<PostEndpointsModifyRequest>,
    ) -> Result<Response<PostEndpointsModifyResponse>, Status> {
        let PostEndpointsModifyRequest { load_assignment } = request.into_inner();
        Ok(Response::new(PostEndpointsModifyResponse { load_assignment }))
    }
}
