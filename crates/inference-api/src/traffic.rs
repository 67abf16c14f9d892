//! Envoy Gateway's policies for traffic: the fields that Warmpath translates.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::gateway::{Fraction, optional_duration};
use crate::keys;
use crate::object::ObjectMeta;
use crate::selector::{self, LabelExpression, LabelSelector};

/// Settings for traffic to backends.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct BackendTrafficPolicy {
    #[serde(rename = "metadata")]
    pub meta: ObjectMeta,
    pub spec: BackendTrafficPolicySpec,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendTrafficPolicySpec {
    target_ref: Option<PolicyTarget>,
    #[serde(default)]
    target_refs: Vec<PolicyTarget>,
    #[serde(default)]
    target_selectors: Vec<TargetSelector>,
    /// Set if the policy of a route changes the policy of its Gateway or listener instead of replacing it.
    pub merge_type: Option<MergeType>,
    #[serde(default)]
    pub timeout: BackendTimeout,
    pub retry: Option<Retry>,
    #[serde(default)]
    pub circuit_breaker: CircuitBreaker,
    pub load_balancer: Option<LoadBalancer>,
    #[serde(default)]
    pub connection: Connection,
}

/// Settings for traffic from clients.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ClientTrafficPolicy {
    #[serde(rename = "metadata")]
    pub meta: ObjectMeta,
    pub spec: ClientTrafficPolicySpec,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientTrafficPolicySpec {
    target_ref: Option<PolicyTarget>,
    #[serde(default)]
    target_refs: Vec<PolicyTarget>,
    #[serde(default)]
    target_selectors: Vec<TargetSelector>,
    #[serde(default)]
    pub connection: Connection,
    #[serde(default)]
    pub timeout: ClientTimeout,
}

/// Targets that a policy names.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// Path of the field with the references.
    pub field: &'static str,
    pub refs: &'a [PolicyTarget],
    pub selectors: &'a [TargetSelector],
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTarget {
    pub group: String,
    pub kind: String,
    pub name: String,
    /// Name of a listener of a Gateway, or of a rule of a route.
    pub section_name: Option<String>,
}

/// Objects by their labels, of the policy's namespace if no others are named.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetSelector {
    #[serde(default = "gateway_group")]
    pub group: String,
    pub kind: String,
    #[serde(default)]
    pub namespaces: TargetNamespaces,
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
    #[serde(default)]
    match_expressions: Vec<LabelExpression>,
}

/// Namespaces whose objects a selector means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TargetNamespaces {
    #[serde(default)]
    pub from: TargetNamespacesFrom,
    /// Labels of the namespaces, for `Selector`.
    pub selector: Option<LabelSelector>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum TargetNamespacesFrom {
    /// That of the policy.
    #[default]
    Same,
    All,
    Selector,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum MergeType {
    StrategicMerge,
    JSONMerge,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct BackendTimeout {
    #[serde(default)]
    pub tcp: TcpTimeout,
    #[serde(default)]
    pub http: HttpTimeout,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpTimeout {
    #[serde(default, deserialize_with = "optional_duration")]
    pub connect_timeout: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpTimeout {
    #[serde(default, deserialize_with = "optional_duration")]
    pub request_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub stream_idle_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub max_stream_duration: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub connection_idle_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub max_connection_duration: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    pub num_retries: Option<u32>,
    pub retry_on: Option<RetryOn>,
    #[serde(default)]
    pub per_retry: PerRetry,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryOn {
    #[serde(default)]
    pub triggers: Vec<RetryTrigger>,
    #[serde(default)]
    pub http_status_codes: Vec<u16>,
}

/// One of Envoy's conditions for retries; its name in the policy is Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryTrigger {
    #[serde(rename = "5xx")]
    Error5xx,
    GatewayError,
    Reset,
    ResetBeforeRequest,
    ConnectFailure,
    #[serde(rename = "retriable-4xx")]
    Retriable4xx,
    RefusedStream,
    RetriableStatusCodes,
    Cancelled,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    Unavailable,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PerRetry {
    #[serde(default, deserialize_with = "optional_duration")]
    pub timeout: Option<Duration>,
    #[serde(default)]
    pub back_off: BackOff,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackOff {
    #[serde(default, deserialize_with = "optional_duration")]
    pub base_interval: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub max_interval: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CircuitBreaker {
    pub max_connections: Option<u32>,
    pub max_pending_requests: Option<u32>,
    pub max_parallel_requests: Option<u32>,
    pub max_parallel_retries: Option<u32>,
    pub max_requests_per_connection: Option<u32>,
    #[serde(default)]
    pub per_endpoint: PerEndpoint,
    pub retry_budget: Option<RetryBudget>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PerEndpoint {
    pub max_connections: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Share of the requests that may be retries.
    pub percent: Fraction,
    pub min_retry_concurrency: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    #[serde(rename = "type")]
    pub kind: LoadBalancerKind,
    pub consistent_hash: Option<ConsistentHash>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum LoadBalancerKind {
    ConsistentHash,
    LeastRequest,
    Random,
    RoundRobin,
    BackendUtilization,
    DynamicModule,
}

/// The part of a request by which it is sent to the same endpoint each time; the field that `kind` names is set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConsistentHash {
    #[serde(rename = "type")]
    pub kind: HashKind,
    pub header: Option<Named>,
    #[serde(default)]
    pub headers: Vec<Named>,
    pub cookie: Option<HashCookie>,
    #[serde(default)]
    pub query_params: Vec<Named>,
    pub table_size: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum HashKind {
    SourceIP,
    Header,
    Headers,
    Cookie,
    QueryParams,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Named {
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct HashCookie {
    pub name: String,
    #[serde(default, deserialize_with = "optional_duration")]
    pub ttl: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Bytes that Envoy holds of a connection before it asks the sender to wait; a quantity such as `50Mi`.
    #[serde(default, deserialize_with = "optional_bytes")]
    pub buffer_limit: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ClientTimeout {
    #[serde(default)]
    pub http: HttpClientTimeout,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpClientTimeout {
    #[serde(default, deserialize_with = "optional_duration")]
    pub request_received_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub request_headers_received_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub idle_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "optional_duration")]
    pub stream_idle_timeout: Option<Duration>,
}

// === impl BackendTrafficPolicySpec ===

impl BackendTrafficPolicySpec {
    #[must_use]
    pub fn targets(&self) -> Targets<'_> {
        Targets::new(self.target_ref.as_ref(), &self.target_refs, &self.target_selectors)
    }
}

// === impl ClientTrafficPolicySpec ===

impl ClientTrafficPolicySpec {
    #[must_use]
    pub fn targets(&self) -> Targets<'_> {
        Targets::new(self.target_ref.as_ref(), &self.target_refs, &self.target_selectors)
    }
}

// === impl Targets ===

impl<'a> Targets<'a> {
    /// The deprecated single reference counts alone, as for Envoy Gateway.
    fn new(
        single: Option<&'a PolicyTarget>,
        refs: &'a [PolicyTarget],
        selectors: &'a [TargetSelector],
    ) -> Self {
        match single {
            Some(single) => Self { field: "spec.targetRef", refs: std::slice::from_ref(single), selectors },
            None => Self { field: "spec.targetRefs", refs, selectors },
        }
    }
}

// === impl TargetSelector ===

impl TargetSelector {
    /// True if an object of this kind with these labels is meant. A selector without conditions means every object.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        selector::matches((&self.match_labels, &self.match_expressions), labels)
    }
}

/// Parses a Kubernetes quantity of bytes, such as `32768`, `50Mi` or `1G`.
///
/// # Errors
/// A message with the text, if it is not a quantity that fits 32 bits.
pub fn parse_bytes(text: &str) -> Result<u32, String> {
    const UNITS: [(&str, u64); 7] = [
        ("", 1),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
    ];
    let digits = text.trim_end_matches(|found: char| found.is_ascii_alphabetic());
    let unit = UNITS.iter().find(|(unit, _)| *unit == &text[digits.len()..]);
    let bytes = unit.and_then(|(_, factor)| digits.parse::<u64>().ok()?.checked_mul(*factor));
    bytes
        .and_then(|bytes| u32::try_from(bytes).ok())
        .ok_or_else(|| format!("{text:?} is not a number of bytes such as 32768, 50Mi or 1G below 4Gi"))
}

fn optional_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let quantity = Option::<Quantity>::deserialize(deserializer)?;
    let bytes = quantity.map(|quantity| match quantity {
        Quantity::Number(number) => parse_bytes(&number.to_string()),
        Quantity::Text(text) => parse_bytes(&text),
    });
    bytes.transpose().map_err(serde::de::Error::custom)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Quantity {
    Number(u64),
    Text(String),
}

fn gateway_group() -> String {
    keys::GATEWAY_GROUP.to_owned()
}
