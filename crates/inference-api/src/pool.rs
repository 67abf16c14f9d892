//! InferencePool (v1alpha2 and v1 in one form) and InferenceModel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::field::FieldError;
use crate::keys;
use crate::object::{ObjectKey, ObjectMeta};

/// Longest `modelName` that the API admits, in characters.
pub(crate) const MAX_MODEL_NAME: usize = 256;
/// Most target models of one InferenceModel.
pub(crate) const MAX_TARGET_MODELS: usize = 10;
/// Largest weight of a target model.
pub(crate) const MAX_TARGET_WEIGHT: u32 = 1_000_000;
/// Most target ports of a v1 pool.
pub(crate) const MAX_TARGET_PORTS: usize = 8;

/// The API version in which a pool was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolVersion {
    V1Alpha2,
    V1,
}

impl PoolVersion {
    /// The API group of the version.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::V1Alpha2 => keys::GROUP_X,
            Self::V1 => keys::GROUP,
        }
    }
}

/// A set of model-server pods and the picker in front of them.
#[derive(Clone, Debug, PartialEq)]
pub struct InferencePool {
    pub meta: ObjectMeta,
    pub version: PoolVersion,
    /// Labels that select the pods, in the pool's namespace.
    pub selector: BTreeMap<String, String>,
    /// Ports on which a pod serves; never empty. A v1alpha2 pool has exactly one.
    pub target_ports: Vec<u16>,
    /// Protocol on all of these ports.
    pub app_protocol: AppProtocol,
    /// The picker's Service; a v1 pool may name none.
    pub picker: Option<PickerRef>,
}

impl InferencePool {
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        self.meta.key()
    }

    /// The proxy's reaction if the picker cannot be reached; without a picker, the API's default.
    #[must_use]
    pub fn failure_mode(&self) -> FailureMode {
        self.picker.as_ref().map(|picker| picker.failure_mode).unwrap_or_default()
    }

    /// The strategy that the annotation asks for.
    ///
    /// # Errors
    /// The annotation's value, if it is not a documented one.
    pub fn routing_strategy(&self) -> Result<RoutingStrategy, String> {
        match self.meta.annotations.get(keys::ROUTING_STRATEGY).map(String::as_str) {
            None | Some("DEFAULT") => Ok(RoutingStrategy::Default),
            Some("PREFIX_CACHE") => Ok(RoutingStrategy::PrefixCache),
            Some(unknown) => Err(unknown.to_owned()),
        }
    }

    /// The source of prefix matches that the annotation chooses for `PREFIX_CACHE`.
    ///
    /// # Errors
    /// The annotation's value, if it is not a known one.
    pub fn prefix_source(&self) -> Result<PrefixSource, String> {
        match self.meta.annotations.get(keys::PREFIX_SOURCE).map(String::as_str) {
            None | Some("estimate") => Ok(PrefixSource::Estimate),
            Some("precise") => Ok(PrefixSource::Events),
            Some(unknown) => Err(unknown.to_owned()),
        }
    }

    /// The engine that the annotation names.
    ///
    /// # Errors
    /// The annotation's value, if it is not a known one.
    pub fn model_server_runtime(&self) -> Result<ModelServerRuntime, String> {
        match self.meta.annotations.get(keys::MODEL_SERVER_RUNTIME).map(String::as_str) {
            None | Some("vllm") => Ok(ModelServerRuntime::Vllm),
            Some("sglang") => Ok(ModelServerRuntime::Sglang),
            Some("trt-llm" | "tensorrt-llm" | "trtllm") => Ok(ModelServerRuntime::TrtLlm),
            Some("trtllm-serve") => Ok(ModelServerRuntime::TrtllmServe),
            Some(unknown) => Err(unknown.to_owned()),
        }
    }

    /// The body mode that the annotation gives somebody else's picker; `None` without one.
    ///
    /// # Errors
    /// The annotation's value, if it is not a known one.
    pub fn picker_body_mode(&self) -> Result<Option<BodyMode>, String> {
        let Some(text) = self.meta.annotations.get(keys::PICKER_BODY_MODE) else { return Ok(None) };
        BodyMode::parse(text).map(Some).ok_or_else(|| text.to_owned())
    }
}

/// The protocol in which a picker takes the bodies of requests: a body mode of Envoy's ext_proc.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum BodyMode {
    /// `full-duplex-streamed`, as in upstream's protocol: the picker answers when it wants to, and streams the body back.
    #[default]
    FullDuplexStreamed,
    /// `streamed`: the picker answers each part of a body, and never sends one back.
    Streamed,
}

impl BodyMode {
    /// The annotation's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FullDuplexStreamed => "full-duplex-streamed",
            Self::Streamed => "streamed",
        }
    }

    /// The mode of an annotation's value; `None` for one that is not known.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::FullDuplexStreamed, Self::Streamed].into_iter().find(|mode| mode.as_str() == text)
    }
}

/// The engine in a pool's pods; it decides the names of their metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelServerRuntime {
    /// `vllm`.
    #[default]
    Vllm,
    /// `sglang`.
    Sglang,
    /// `trt-llm`, or `tensorrt-llm`, `trtllm`: TensorRT-LLM behind Triton.
    TrtLlm,
    /// `trtllm-serve`: TensorRT-LLM's own server.
    TrtllmServe,
}

impl ModelServerRuntime {
    /// The annotation's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
            Self::TrtLlm => "trt-llm",
            Self::TrtllmServe => "trtllm-serve",
        }
    }
}

/// The picker's way of choosing among a pool's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoutingStrategy {
    /// Least load: queue length and KV-cache usage.
    #[default]
    Default,
    /// Longest prefix: requests that share one go to the same pod as far as possible. Otherwise least load.
    PrefixCache,
}

impl RoutingStrategy {
    /// The annotation's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "DEFAULT",
            Self::PrefixCache => "PREFIX_CACHE",
        }
    }
}

/// Source of the picker's knowledge about which pod holds a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefixSource {
    /// `estimate`: the requests that the picker sent to each pod.
    #[default]
    Estimate,
    /// `precise`: the KV events of the engines.
    Events,
}

impl PrefixSource {
    /// The annotation's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Estimate => "estimate",
            Self::Events => "precise",
        }
    }
}

/// Protocol that the pods of a pool speak: `appProtocol` in v1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum AppProtocol {
    /// HTTP/1.1.
    #[default]
    #[serde(rename = "http")]
    Http,
    /// HTTP/2 without TLS.
    #[serde(rename = "kubernetes.io/h2c")]
    H2c,
}

/// The Service of the endpoint picker: `extensionRef` in v1alpha2, `endpointPickerRef` in v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PickerRef {
    pub name: String,
    pub port: u16,
    pub failure_mode: FailureMode,
}

/// The proxy's reaction if the picker cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum FailureMode {
    /// Drop the request.
    #[default]
    FailClose,
    /// Let the proxy pick by itself.
    FailOpen,
}

/// A model name that clients may ask for, and the models that serve it.
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceModel {
    pub meta: ObjectMeta,
    pub model_name: String,
    pub criticality: Criticality,
    /// Target models. Empty: the model is served under its own name.
    pub target_models: Vec<TargetModel>,
    /// The pool, which is in the model's namespace.
    pub pool: ObjectKey,
}

impl InferenceModel {
    /// True if the model has another name in the engines than for clients.
    #[must_use]
    pub fn renames(&self) -> bool {
        self.target_models.iter().any(|target| target.name != self.model_name)
    }
}

/// Treatment of a model's requests when the pool is saturated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Criticality {
    Critical,
    #[default]
    Standard,
    Sheddable,
}

impl Criticality {
    /// The field's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "Critical",
            Self::Standard => "Standard",
            Self::Sheddable => "Sheddable",
        }
    }
}

/// A name under which the model servers know the model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetModel {
    pub name: String,
    /// Share of the traffic, relative to the sum of all weights; set on all targets or on none.
    pub weight: Option<u32>,
}

// === wire forms ===

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolV1Alpha2 {
    metadata: ObjectMeta,
    spec: PoolSpecV1Alpha2,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PoolSpecV1Alpha2 {
    selector: BTreeMap<String, String>,
    target_port_number: u16,
    extension_ref: ExtensionRef,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExtensionRef {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    port_number: Option<u16>,
    #[serde(default)]
    failure_mode: FailureMode,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PoolV1 {
    metadata: ObjectMeta,
    spec: PoolSpecV1,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PoolSpecV1 {
    selector: LabelSelector,
    target_ports: Vec<PortNumber>,
    #[serde(default)]
    app_protocol: AppProtocol,
    endpoint_picker_ref: Option<EndpointPickerRef>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LabelSelector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct PortNumber {
    number: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointPickerRef {
    group: Option<String>,
    kind: Option<String>,
    name: String,
    port: Option<PortNumber>,
    #[serde(default)]
    failure_mode: FailureMode,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModelV1Alpha2 {
    metadata: ObjectMeta,
    spec: ModelSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModelSpec {
    model_name: String,
    #[serde(default)]
    criticality: Criticality,
    #[serde(default)]
    target_models: Vec<TargetModel>,
    pool_ref: PoolRef,
}

/// The pool that an object belongs to.
#[derive(Deserialize)]
pub(crate) struct PoolRef {
    group: Option<String>,
    kind: Option<String>,
    name: String,
}

// === checks ===

impl TryFrom<PoolV1Alpha2> for InferencePool {
    type Error = FieldError;

    fn try_from(raw: PoolV1Alpha2) -> Result<Self, FieldError> {
        let PoolSpecV1Alpha2 { selector, target_port_number, extension_ref } = raw.spec;
        let ExtensionRef { group, kind, name, port_number, failure_mode } = extension_ref;
        check_service_ref("spec.extensionRef", group, kind)?;
        let port = port_number.unwrap_or(keys::DEFAULT_PICKER_PORT);
        let picker = PickerRef { name, port, failure_mode };
        check_picker(&picker)?;
        check_pool(&selector, &[target_port_number])?;
        Ok(Self {
            meta: raw.metadata,
            version: PoolVersion::V1Alpha2,
            selector,
            target_ports: vec![target_port_number],
            app_protocol: AppProtocol::Http,
            picker: Some(picker),
        })
    }
}

impl TryFrom<PoolV1> for InferencePool {
    type Error = FieldError;

    fn try_from(raw: PoolV1) -> Result<Self, FieldError> {
        let PoolSpecV1 {
            selector: LabelSelector { match_labels: selector },
            target_ports,
            app_protocol,
            endpoint_picker_ref,
        } = raw.spec;
        let target_ports: Vec<u16> = target_ports.into_iter().map(|port| port.number).collect();
        let picker = endpoint_picker_ref.map(PickerRef::try_from).transpose()?;
        check_pool(&selector, &target_ports)?;
        Ok(Self {
            meta: raw.metadata,
            version: PoolVersion::V1,
            selector,
            target_ports,
            app_protocol,
            picker,
        })
    }
}

impl TryFrom<EndpointPickerRef> for PickerRef {
    type Error = FieldError;

    fn try_from(raw: EndpointPickerRef) -> Result<Self, FieldError> {
        let EndpointPickerRef { group, kind, name, port, failure_mode } = raw;
        check_service_ref("spec.endpointPickerRef", group, kind)?;
        let port = port.map_or(keys::DEFAULT_PICKER_PORT, |port| port.number);
        let picker = Self { name, port, failure_mode };
        check_picker(&picker)?;
        Ok(picker)
    }
}

impl TryFrom<ModelV1Alpha2> for InferenceModel {
    type Error = FieldError;

    fn try_from(raw: ModelV1Alpha2) -> Result<Self, FieldError> {
        let ModelSpec { model_name, criticality, target_models, pool_ref } = raw.spec;
        let pool = pool_ref.into_pool(&raw.metadata)?;
        if model_name.is_empty() || model_name.chars().count() > MAX_MODEL_NAME {
            let what = format!("must have 1 to {MAX_MODEL_NAME} characters");
            return Err(FieldError::new("spec.modelName", what));
        }
        check_targets("spec.targetModels", &target_models)?;
        Ok(Self { meta: raw.metadata, model_name, criticality, target_models, pool })
    }
}

impl PoolRef {
    /// The pool to which the object with this metadata refers.
    pub(crate) fn into_pool(self, referrer: &ObjectMeta) -> Result<ObjectKey, FieldError> {
        let Self { group, kind, name } = self;
        if let Some(group) = group.filter(|group| group != keys::GROUP_X && group != keys::GROUP) {
            return Err(FieldError::new("spec.poolRef.group", format!("{group} is not an InferencePool's")));
        }
        if let Some(kind) = kind.filter(|kind| kind != "InferencePool") {
            return Err(FieldError::new("spec.poolRef.kind", format!("{kind} is not InferencePool")));
        }
        Ok(ObjectKey::new(&referrer.namespace, name))
    }
}

fn check_service_ref(path: &str, group: Option<String>, kind: Option<String>) -> Result<(), FieldError> {
    let refuse = |field: &str, value: &str| {
        let what = format!("{value} is not supported, a picker is a core Service");
        Err(FieldError::new(format!("{path}.{field}"), what))
    };
    match (group.as_deref(), kind.as_deref()) {
        (None | Some(""), None | Some("Service")) => Ok(()),
        (Some(group), None | Some("Service")) if !group.is_empty() => refuse("group", group),
        (_, Some(kind)) => refuse("kind", kind),
        (Some(_), None) => Ok(()),
    }
}

fn check_picker(picker: &PickerRef) -> Result<(), FieldError> {
    if picker.port == 0 {
        return Err(FieldError::new("spec", "port 0 is not a port"));
    }
    if picker.name.is_empty() {
        return Err(FieldError::new("spec", "the endpoint picker has no name"));
    }
    Ok(())
}

fn check_pool(selector: &BTreeMap<String, String>, ports: &[u16]) -> Result<(), FieldError> {
    if selector.is_empty() {
        return Err(FieldError::new("spec.selector", "an empty selector selects no pod"));
    }
    if ports.is_empty() || ports.len() > MAX_TARGET_PORTS {
        return Err(FieldError::new("spec.targetPorts", format!("must list 1 to {MAX_TARGET_PORTS} ports")));
    }
    if ports.contains(&0) {
        return Err(FieldError::new("spec", "port 0 is not a port"));
    }
    if let Some(port) =
        ports.iter().enumerate().find_map(|(idx, port)| ports[..idx].contains(port).then_some(port))
    {
        return Err(FieldError::new("spec.targetPorts", format!("port {port} is listed twice")));
    }
    Ok(())
}

pub(crate) fn check_targets(path: &str, targets: &[TargetModel]) -> Result<(), FieldError> {
    let refuse = |what: String| Err(FieldError::new(path, what));
    if targets.len() > MAX_TARGET_MODELS {
        return refuse(format!("at most {MAX_TARGET_MODELS}, not {}", targets.len()));
    }
    let n_weighted = targets.iter().filter(|target| target.weight.is_some()).count();
    if n_weighted != 0 && n_weighted != targets.len() {
        return refuse("set a weight on all of them or on none".to_owned());
    }
    match targets.iter().filter_map(|target| target.weight).find(|w| !(1..=MAX_TARGET_WEIGHT).contains(w)) {
        Some(weight) => refuse(format!("weight {weight} is not in 1..={MAX_TARGET_WEIGHT}")),
        None => Ok(()),
    }
}
