//! LoRA adapters: the loaded ones, their cards in `/v1/models`, and loading and unloading at run time.

use super::body::Fields;
use super::error::ApiError;
use super::{OptionalEndpoints, Pod, PodConfig, json_body, permission};
use axum::Router;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use parking_lot::RwLock;
use serde_json::{Value, json};
use std::sync::Arc;
use vllm_engine::request::LoraAdapter;

/// One entry of `--lora-modules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraModule {
    pub name: String,
    pub path: String,
    /// Parent in its card, instead of the served model.
    pub base_model_name: Option<String>,
}

/// Adapters that requests can name.
#[derive(Debug)]
pub struct LoraRegistry {
    loaded: RwLock<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    /// Adapters in order of loading.
    adapters: Vec<Entry>,
    n_ever_loaded: u32,
}

#[derive(Clone, Debug)]
struct Entry {
    adapter: Arc<LoraAdapter>,
    base_model_name: Option<String>,
}

/// Action of `/v1/load_lora_adapter` for a name that is loaded already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfLoaded {
    Refuse,
    Replace,
}

pub(super) fn routes(endpoints: OptionalEndpoints) -> Router<Arc<Pod>> {
    if !endpoints.lora_updates {
        return Router::new();
    }
    Router::new().route("/v1/load_lora_adapter", post(load)).route("/v1/unload_lora_adapter", post(unload))
}

// === impl LoraRegistry ===

impl LoraRegistry {
    pub fn new(modules: Vec<LoraModule>) -> Self {
        let registry = Self { loaded: RwLock::default() };
        modules.into_iter().for_each(|module| registry.loaded.write().insert(module));
        registry
    }

    pub(super) fn find(&self, name: &str) -> Option<Arc<LoraAdapter>> {
        let loaded = self.loaded.read();
        loaded.position(name).map(|idx| loaded.adapters[idx].adapter.clone())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.loaded.read().adapters.iter().map(|entry| entry.adapter.name.clone()).collect()
    }

    pub(super) fn cards(&self, config: &PodConfig, created: u64) -> Vec<Value> {
        let loaded = self.loaded.read();
        let card = |Entry { adapter, base_model_name }: &Entry| {
            json!({
                "id": adapter.name,
                "object": "model",
                "created": created,
                "owned_by": "vllm",
                "root": adapter.path,
                "parent": base_model_name.as_deref().unwrap_or(config.displayed_model()),
                "max_model_len": null,
                "permission": permission(created),
            })
        };
        loaded.adapters.iter().map(card).collect()
    }

    fn load(&self, name: String, path: String, if_loaded: IfLoaded) -> Result<(), ApiError> {
        let mut loaded = self.loaded.write();
        match (loaded.position(&name), if_loaded) {
            (Some(_), IfLoaded::Refuse) => {
                let message = format!(
                    "The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set \
                     'load_inplace' to True."
                );
                return Err(invalid_user_input(message));
            }
            (Some(idx), IfLoaded::Replace) => {
                // The adapter keeps its number, so that requests which use it go on.
                let id = loaded.adapters[idx].adapter.id;
                loaded.adapters[idx].adapter = Arc::new(LoraAdapter { id, name, path });
            }
            (None, _) => loaded.insert(LoraModule { name, path, base_model_name: None }),
        }
        Ok(())
    }

    fn unload(&self, name: &str) -> Result<(), ApiError> {
        let mut loaded = self.loaded.write();
        let Some(idx) = loaded.position(name) else {
            return Err(ApiError {
                status: StatusCode::NOT_FOUND,
                kind: "NotFoundError",
                message: format!("The lora adapter '{name}' cannot be found."),
                older: None,
                param: None,
            });
        };
        loaded.adapters.remove(idx);
        Ok(())
    }
}

// === impl Loaded ===

impl Loaded {
    fn position(&self, name: &str) -> Option<usize> {
        self.adapters.iter().position(|entry| entry.adapter.name == name)
    }

    fn insert(&mut self, LoraModule { name, path, base_model_name }: LoraModule) {
        self.n_ever_loaded += 1;
        let adapter = Arc::new(LoraAdapter { id: self.n_ever_loaded, name, path });
        self.adapters.push(Entry { adapter, base_model_name });
    }
}

/// Makes an error of the type that vLLM's LoRA endpoints have.
fn invalid_user_input(message: impl Into<String>) -> ApiError {
    ApiError {
        status: StatusCode::BAD_REQUEST,
        kind: "InvalidUserInput",
        message: message.into(),
        older: None,
        param: None,
    }
}

async fn load(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = json_body(&headers, body)?;
    let mut fields = Fields::parse(&body)?;
    let name = fields.string("lora_name");
    let name = fields.required("lora_name", name).unwrap_or_default();
    let path = fields.string("lora_path");
    let path = fields.required("lora_path", path).unwrap_or_default();
    let if_loaded = match fields.boolean("load_inplace") {
        Some(true) => IfLoaded::Replace,
        Some(false) | None => IfLoaded::Refuse,
    };
    fields.finish()?;
    if name.is_empty() || path.is_empty() {
        return Err(invalid_user_input("Both 'lora_name' and 'lora_path' must be provided."));
    }
    let message = format!("Success: LoRA adapter '{name}' added successfully.");
    pod.loras.load(name, path, if_loaded)?;
    Ok(text(message))
}

async fn unload(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = json_body(&headers, body)?;
    let mut fields = Fields::parse(&body)?;
    let name = fields.string("lora_name");
    let name = fields.required("lora_name", name).unwrap_or_default();
    fields.finish()?;
    if name.is_empty() {
        return Err(invalid_user_input("'lora_name' needs to be provided to unload a LoRA adapter."));
    }
    pod.loras.unload(&name)?;
    Ok(text(format!("Success: LoRA adapter '{name}' removed successfully.")))
}

fn text(message: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], message).into_response()
}
