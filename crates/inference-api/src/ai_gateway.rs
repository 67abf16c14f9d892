//! Envoy AI Gateway's AIGatewayRoute, as the HTTPRoute that its controller makes of it.

use serde::Deserialize;

use crate::gateway::{
    BackendRef, HttpRoute, HttpRouteKind, HttpRouteMatch, HttpRouteRule, HttpRouteSpec, HttpRouteTimeouts,
    ParentRef, ValueMatch,
};
use crate::keys;
use crate::object::ObjectMeta;

/// Header with the model that a body names, which Envoy AI Gateway sets before it chooses a route.
const MODEL_HEADER: &str = "x-ai-eg-model";

#[derive(Deserialize)]
pub(crate) struct AiGatewayRoute {
    metadata: ObjectMeta,
    spec: AiGatewayRouteSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AiGatewayRouteSpec {
    #[serde(default)]
    parent_refs: Vec<ParentRef>,
    #[serde(default)]
    hostnames: Vec<String>,
    #[serde(default)]
    rules: Vec<AiGatewayRouteRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AiGatewayRouteRule {
    name: Option<String>,
    #[serde(default)]
    matches: Vec<AiGatewayRouteMatch>,
    #[serde(default)]
    backend_refs: Vec<AiGatewayBackendRef>,
    timeouts: Option<HttpRouteTimeouts>,
}

#[derive(Deserialize)]
struct AiGatewayRouteMatch {
    #[serde(default)]
    headers: Vec<ValueMatch>,
}

#[derive(Deserialize)]
struct AiGatewayBackendRef {
    #[serde(default = "ai_gateway_group")]
    group: String,
    #[serde(default = "service_backend_kind")]
    kind: String,
    namespace: Option<String>,
    name: String,
    weight: Option<u32>,
}

impl From<AiGatewayRoute> for HttpRoute {
    fn from(AiGatewayRoute { metadata, spec }: AiGatewayRoute) -> Self {
        let AiGatewayRouteSpec { parent_refs, hostnames, rules } = spec;
        let rules = rules.into_iter().map(HttpRouteRule::from).collect();
        let spec = HttpRouteSpec { parent_refs, hostnames, rules };
        Self { kind: HttpRouteKind::AiGatewayRoute, meta: metadata, spec }
    }
}

impl From<AiGatewayRouteRule> for HttpRouteRule {
    fn from(rule: AiGatewayRouteRule) -> Self {
        let AiGatewayRouteRule { name, matches, backend_refs, timeouts } = rule;
        Self {
            name,
            matches: matches.into_iter().map(HttpRouteMatch::from).collect(),
            filters: Vec::new(),
            backend_refs: backend_refs.into_iter().map(BackendRef::from).collect(),
            timeouts,
            retry: None,
        }
    }
}

impl From<AiGatewayRouteMatch> for HttpRouteMatch {
    fn from(AiGatewayRouteMatch { mut headers }: AiGatewayRouteMatch) -> Self {
        for header in &mut headers {
            if header.name.eq_ignore_ascii_case(MODEL_HEADER) {
                header.name = keys::MODEL_NAME.to_owned();
            }
        }
        Self { headers, ..Self::default() }
    }
}

impl From<AiGatewayBackendRef> for BackendRef {
    fn from(backend: AiGatewayBackendRef) -> Self {
        let AiGatewayBackendRef { group, kind, namespace, name, weight } = backend;
        Self { group, kind, namespace, name, port: None, weight, filters: Vec::new() }
    }
}

fn ai_gateway_group() -> String {
    keys::AI_GATEWAY_GROUP.to_owned()
}

fn service_backend_kind() -> String {
    "AIServiceBackend".to_owned()
}
