//! A prompt's token ids, for the precise mode: asked of a model server, which has the tokenizer and the chat template.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::candidates::Member;

/// Largest answer that is read: a million tokens.
const MAX_ANSWER: usize = 16 << 20;

/// Asks `/tokenize`.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    client: Client<HttpConnector, Full<Bytes>>,
    patience: Duration,
}

/// What of a request decides about its tokens; the rest, and the model's name, which clients may have their own of, stays
/// here. Fields are vLLM's.
#[derive(Debug, Deserialize, Serialize)]
pub struct Prompt<'a> {
    #[serde(borrow, skip_serializing)]
    pub model: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    messages: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    tools: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    chat_template: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    chat_template_kwargs: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    add_generation_prompt: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    continue_final_message: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    add_special_tokens: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    mm_processor_kwargs: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Answer {
    tokens: Vec<u32>,
}

// === impl Prompt ===

impl<'a> Prompt<'a> {
    /// # Errors
    /// When the body is not a JSON object whose fields have such types.
    pub fn parse(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The ids, where the request gives them instead of a text.
    #[must_use]
    pub fn given_ids(&self) -> Option<Vec<u32>> {
        serde_json::from_str(self.prompt?.get()).ok()
    }
}

// === impl Tokenizer ===

impl Tokenizer {
    /// `patience`: a request waits no longer for its ids.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { client, patience }
    }

    /// The ids of `prompt` at `member`.
    ///
    /// # Errors
    /// When the member does not answer in time, or has none.
    pub async fn ids(&self, prompt: &Prompt<'_>, member: &Member) -> anyhow::Result<Vec<u32>> {
        let body = serde_json::to_vec(prompt).context("write the request")?;
        let request = Request::post(format!("http://{}/tokenize", member.destination))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))
            .context("build the request")?;
        let exchange = async {
            let response = self.client.request(request).await.context("ask")?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!(error)).context("read the answer")?.to_bytes();
            ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
            let Answer { tokens } = serde_json::from_slice(&body).context("read the ids")?;
            Ok(tokens)
        };
        timeout(self.patience, exchange).await.context("no answer in time")?
    }
}
