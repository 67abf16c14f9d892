//! GatewayClass, Gateway, HTTPRoute and Envoy Gateway's BackendTrafficPolicy: the fields that Warmpath translates.

use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::object::{ObjectKey, ObjectMeta};

/// A class of Gateways and the controller that serves them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayClass {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    pub meta: ObjectMeta,
    pub spec: GatewayClassSpec,
    #[serde(rename = "status")]
    _status: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayClassSpec {
    pub controller_name: String,
    /// Free text without effect.
    pub description: Option<String>,
}

/// Ports on which the proxy listens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    pub meta: ObjectMeta,
    pub spec: GatewaySpec,
    #[serde(rename = "status")]
    _status: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewaySpec {
    pub gateway_class_name: String,
    pub listeners: Vec<Listener>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listener {
    pub name: String,
    /// Must be `HTTP`: Warmpath translates no other protocol.
    pub protocol: String,
    pub port: u16,
}

/// Rules that map requests of listeners to backends.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoute {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    pub meta: ObjectMeta,
    pub spec: HttpRouteSpec,
    #[serde(rename = "status")]
    _status: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteSpec {
    pub parent_refs: Vec<ParentRef>,
    /// Host names that the route serves. Empty: every host.
    #[serde(default)]
    pub hostnames: Vec<String>,
    #[serde(default)]
    pub rules: Vec<HttpRouteRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ParentRef {
    pub group: Option<String>,
    pub kind: Option<String>,
    pub namespace: Option<String>,
    pub name: String,
    /// Name of a listener of the Gateway. None: all listeners.
    pub section_name: Option<String>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteRule {
    /// Matches of the rule. Empty: every path.
    #[serde(default)]
    pub matches: Vec<HttpRouteMatch>,
    #[serde(default)]
    pub backend_refs: Vec<BackendRef>,
    pub timeouts: Option<HttpRouteTimeouts>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteMatch {
    pub path: Option<PathMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathMatch {
    #[serde(rename = "type", default)]
    pub kind: PathMatchKind,
    #[serde(default = "root_path")]
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum PathMatchKind {
    #[default]
    PathPrefix,
    Exact,
    RegularExpression,
}

/// A Service or an InferencePool that a rule sends to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendRef {
    #[serde(default)]
    pub group: String,
    #[serde(default = "service_kind")]
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub port: Option<u16>,
    pub weight: Option<u32>,
}

impl BackendRef {
    /// Key of the backend, for an object in `namespace`.
    #[must_use]
    pub fn key(&self, namespace: &str) -> ObjectKey {
        ObjectKey::new(self.namespace.as_deref().unwrap_or(namespace), &self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRouteTimeouts {
    #[serde(default, deserialize_with = "optional_duration")]
    pub request: Option<Duration>,
}

/// Envoy Gateway's settings for traffic to backends; Warmpath translates the request timeout.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTrafficPolicy {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    pub meta: ObjectMeta,
    pub spec: BackendTrafficPolicySpec,
    #[serde(rename = "status")]
    _status: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendTrafficPolicySpec {
    pub target_ref: Option<PolicyTarget>,
    #[serde(default)]
    pub target_refs: Vec<PolicyTarget>,
    pub timeout: Option<PolicyTimeout>,
}

impl BackendTrafficPolicySpec {
    /// All targets, from the deprecated `targetRef` and from `targetRefs`.
    pub fn targets(&self) -> impl Iterator<Item = &PolicyTarget> {
        self.target_ref.iter().chain(&self.target_refs)
    }

    #[must_use]
    pub fn request_timeout(&self) -> Option<Duration> {
        self.timeout.as_ref().and_then(|timeout| timeout.http.as_ref()).and_then(|http| http.request_timeout)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyTarget {
    pub group: String,
    pub kind: String,
    pub name: String,
    pub section_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PolicyTimeout {
    pub http: Option<HttpTimeout>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpTimeout {
    #[serde(default, deserialize_with = "optional_duration")]
    pub request_timeout: Option<Duration>,
}

/// Parses a Gateway API duration (GEP-2257): up to four of `<number><h|m|s|ms>`, such as `1h` or `1m30s`.
///
/// # Errors
/// A message with the text, if it is not a duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration such as 1h, 30s or 250ms");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let n_digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, tail) = rest.split_at(n_digits);
        if digits.is_empty() || digits.len() > 5 {
            return Err(invalid());
        }
        let number: u64 = digits.parse().map_err(|_| invalid())?;
        let n_unit = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(n_unit);
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(invalid()),
        };
        rest = tail;
    }
    if text.is_empty() { Err(invalid()) } else { Ok(total) }
}

fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse_duration(&text)).transpose().map_err(serde::de::Error::custom)
}

fn root_path() -> String {
    "/".to_owned()
}

fn service_kind() -> String {
    "Service".to_owned()
}
