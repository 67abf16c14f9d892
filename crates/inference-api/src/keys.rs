//! Names in requests, manifests and Envoy's metadata: headers, metadata keys, annotations, API groups.

/// Header, and key in the dynamic metadata, with the picked `ip:port[,ip:port…]` (Endpoint Picker Protocol 1.0).
pub const DESTINATION_ENDPOINT: &str = "x-gateway-destination-endpoint";
/// Key under [`LB_METADATA`] in which the proxy reports the endpoint that served (Endpoint Picker Protocol 1.0).
pub const DESTINATION_ENDPOINT_SERVED: &str = "x-gateway-destination-endpoint-served";
/// Key under [`SUBSET_METADATA`] that limits the pick to a list of `ip:port`.
pub const DESTINATION_ENDPOINT_SUBSET: &str = "x-gateway-destination-endpoint-subset";
/// Key in the initial metadata of an ext_proc stream with which the proxy names the InferencePool, as `namespace/name`,
/// for pools that share a picker. Warmpath's own.
pub const INFERENCE_POOL: &str = "x-warmpath-inference-pool";
/// Key in the initial metadata of an ext_proc stream: [`OBSERVED`] if the stream ends with the request, and the proxy
/// reports the response elsewhere. Warmpath's own.
pub const RESPONSES: &str = "x-warmpath-responses";
/// Value of [`RESPONSES`].
pub const OBSERVED: &str = "observed";
/// Key under [`LB_METADATA`] with the name of a picked request, which the proxy repeats where it reports the response:
/// `namespace/name/…`, which begins with the pool. Warmpath's own.
pub const TICKET: &str = "x-warmpath-ticket";
/// Key under [`LB_METADATA`], and in the initial metadata of a report, with the `ip:port` of the picker that has picked.
/// Warmpath's own.
pub const PICKER: &str = "x-warmpath-picker";
/// Dynamic-metadata namespace of the pick and of the served endpoint.
pub const LB_METADATA: &str = "envoy.lb";
/// Filter-metadata namespace of the subset hint.
pub const SUBSET_METADATA: &str = "envoy.lb.subset_hint";

/// Request header with the model that the body names. Routes may match it although no client sends it.
pub const MODEL_NAME: &str = "x-gateway-model-name";

/// Header with the id of a request, the same in everything that handles it.
pub const REQUEST_ID: &str = "x-request-id";
/// Request header with which a client asks why its pod was picked: `true` or `1`. Warmpath's own.
pub const EXPLAIN: &str = "x-warmpath-explain";
/// Response header that answers [`EXPLAIN`]: the decision as JSON. Warmpath's own.
pub const DECISION: &str = "x-warmpath-decision";

/// Annotation of an InferencePool that chooses the routing strategy; see [`crate::pool::RoutingStrategy`].
pub const ROUTING_STRATEGY: &str = "inference.networking.x-k8s.io/routing-strategy";
/// Annotation of an InferencePool that tunes its routing policy: a YAML or JSON mapping such as `{"threshold": 0.6}`.
/// Warmpath's own.
pub const ROUTING_POLICY: &str = "inference.networking.x-k8s.io/routing-policy";
/// Annotation of an InferencePool that chooses the source of prefix matches; see [`crate::pool::PrefixSource`].
/// Warmpath's own.
pub const PREFIX_SOURCE: &str = "inference.networking.x-k8s.io/prefix-cache-mode";
/// Annotation of an InferencePool that names the engine its pods run; see [`crate::pool::ModelServerRuntime`].
pub const MODEL_SERVER_RUNTIME: &str = "inference.networking.x-k8s.io/model-server-runtime";
/// Annotation of a v1 InferencePool that asks for a managed picker with the value `true`. Warmpath's own.
pub const MANAGED_PICKER: &str = "inference.networking.x-k8s.io/managed-picker";
/// Annotation of an InferencePool that says how its own picker takes bodies; see [`crate::pool::BodyMode`]. Warmpath's own.
pub const PICKER_BODY_MODE: &str = "inference.networking.x-k8s.io/picker-body-mode";

/// Request headers that name the InferenceObjective of a request: llm-d's, and Gateway API Inference Extension's.
pub const OBJECTIVE: [&str; 2] = ["x-llm-d-inference-objective", "x-gateway-inference-objective"];

/// API group of InferencePool v1alpha2, InferenceModel, InferenceObjective and InferenceModelRewrite.
pub const GROUP_X: &str = "inference.networking.x-k8s.io";
/// Newer API group of InferenceObjective and InferenceModelRewrite.
pub const LLM_D_GROUP: &str = "llm-d.ai";
/// API group of InferencePool v1.
pub const GROUP: &str = "inference.networking.k8s.io";
/// API group of GatewayClass, Gateway and HTTPRoute.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// API group of Envoy Gateway's own kinds.
pub const ENVOY_GATEWAY_GROUP: &str = "gateway.envoyproxy.io";
/// API group of Envoy AI Gateway's kinds.
pub const AI_GATEWAY_GROUP: &str = "aigateway.envoyproxy.io";
/// API group of LeaderWorkerSet.
pub const LWS_GROUP: &str = "leaderworkerset.x-k8s.io";
/// `controllerName` of the GatewayClasses that Envoy Gateway serves, and so the local provider.
pub const ENVOY_GATEWAY_CONTROLLER: &str = "gateway.envoyproxy.io/gatewayclass-controller";

/// Port of the picker's ext_proc service if the pool names none (InferencePool API, `extensionRef.portNumber`).
pub const DEFAULT_PICKER_PORT: u16 = 9002;
