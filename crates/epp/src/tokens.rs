//! Token ids of a request's prompts, for the precise mode. A model server is asked, because it has the tokenizer and
//! the chat template.
//!
//! vLLM renders requests of all its APIs for routers (0.33, `--enable-scale-out`): it gets the client's own bytes.
//! Otherwise `/tokenize` returns the ids, if it knows all fields of the request.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use prefix_index::blocks::{Media, TokenPrompt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::datastore::LiveEndpoint;
use crate::http_client::{self, HttpClient};
use ext_proc::body::Api;

/// Largest answer that is read: about a million tokens.
const MAX_ANSWER: usize = 16 << 20;
/// Longest part of an engine's error message that is passed on.
const MAX_COMPLAINT: usize = 200;

/// The `type`s of message parts that are text.
const TEXT_PARTS: [&str; 5] = ["text", "input_text", "output_text", "refusal", "thinking"];

/// Asks engines for token ids.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    client: HttpClient,
    patience: Duration,
}

/// Answer of `/…/render`: a request in the engine's form, or one per prompt.
#[derive(Deserialize)]
#[serde(untagged)]
enum Rendered {
    One(GenerateRequest),
    Each(Vec<GenerateRequest>),
}

#[derive(Deserialize)]
struct GenerateRequest {
    token_ids: Vec<u32>,
    features: Option<Features>,
}

/// Media by modality, in the order of the prompt.
#[derive(Deserialize)]
struct Features {
    mm_hashes: HashMap<String, Vec<String>>,
    mm_placeholders: HashMap<String, Vec<Placeholder>>,
}

#[derive(Deserialize)]
struct Placeholder {
    offset: u32,
    length: u32,
}

/// Fields of a request that `/tokenize` takes, and fields that change the tokens but that it ignores. Names are vLLM's.
#[derive(Debug, Deserialize, Serialize)]
struct TokenizeRequest<'a> {
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
    #[serde(borrow, skip_serializing)]
    documents: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing)]
    reasoning_effort: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing)]
    truncate_prompt_tokens: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing)]
    prompt_embeds: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Tokenized {
    tokens: Vec<u32>,
}

// === impl Tokenizer ===

impl Tokenizer {
    /// Creates a tokenizer; `patience` is the longest wait of a request for its ids.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self { client: http_client::new(), patience }
    }

    /// The prompts of the request `body` of `api`, from `endpoint`, without adapter and salt. `model` is the engine's
    /// name for the request's model, if clients use another.
    ///
    /// # Errors
    /// If the endpoint does not answer in time, or cannot tokenize the request.
    pub async fn prompts(
        &self,
        api: Api,
        (body, model): (&[Bytes], Option<&str>),
        endpoint: &LiveEndpoint,
    ) -> anyhow::Result<Vec<TokenPrompt>> {
        timeout(self.patience, self.ask(api, (body, model), endpoint)).await.context("no answer in time")?
    }

    async fn ask(
        &self,
        api: Api,
        (body, model): (&[Bytes], Option<&str>),
        endpoint: &LiveEndpoint,
    ) -> anyhow::Result<Vec<TokenPrompt>> {
        let path = render_path(api).context("requests of this API are not rendered")?;
        if !endpoint.state.facts.lacks(path) {
            let (status, answer) = self.post(endpoint, path, overridden(body, model)?).await?;
            match status {
                StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => endpoint.state.facts.note_lack(path),
                _ => return rendered(&successful(status, &answer)?),
            }
        }
        let body = body.concat();
        let request: TokenizeRequest<'_> = serde_json::from_slice(&body).context("read the request")?;
        if let Some(prompts) = request.given_ids() {
            return Ok(prompts.into_iter().map(prompt).collect());
        }
        request.check(api)?;
        let request = serde_json::to_vec(&request).context("write the request")?;
        let (status, answer) = self.post(endpoint, "/tokenize", vec![request.into()]).await?;
        let answer = successful(status, &answer)?;
        let Tokenized { tokens } = serde_json::from_slice(&answer).context("read the ids")?;
        Ok(vec![prompt(tokens)])
    }

    async fn post(
        &self,
        endpoint: &LiveEndpoint,
        path: &str,
        body: Vec<Bytes>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::post(format!("http://{}{path}", endpoint.destination))
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.into())
            .context("build the request")?;
        let response = self.client.request(request).await.context("ask")?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let answer = answer.map_err(|error| anyhow::anyhow!(error)).context("read the answer")?;
        Ok((status, answer.to_bytes()))
    }
}

/// Path at which vLLM renders requests of `api`; `None` if it does not.
fn render_path(api: Api) -> Option<&'static str> {
    match api {
        Api::Chat => Some("/v1/chat/completions/render"),
        Api::Completions => Some("/v1/completions/render"),
        Api::Responses => Some("/v1/responses/render"),
        Api::Messages => Some("/v1/messages/render"),
        Api::Pooling | Api::Generate | Api::Any | Api::Invocations | Api::ModelOnly => None,
    }
}

/// The object `body` with two fields appended: the engine's own name for the model, and the wish for an answer without
/// media content. Engines use the last of equal keys.
fn overridden(body: &[Bytes], model: Option<&str>) -> anyhow::Result<Vec<Bytes>> {
    let mut chunks = body.to_vec();
    while let Some(last) = chunks.last_mut() {
        let n_bytes = last.trim_ascii_end().len();
        if n_bytes == 0 {
            chunks.pop();
            continue;
        }
        ensure!(last[n_bytes - 1] == b'}', "the request is not an object");
        last.truncate(n_bytes - 1);
        break;
    }
    let model = model.map(|model| format!(r#""model":{},"#, Value::from(model))).unwrap_or_default();
    chunks.push(format!(r#",{model}"mm_payload":"none"}}"#).into());
    Ok(chunks)
}

fn successful(status: StatusCode, answer: &Bytes) -> anyhow::Result<Bytes> {
    if !status.is_success() {
        let complaint = String::from_utf8_lossy(answer);
        bail!("{status}: {}", &complaint[..complaint.floor_char_boundary(MAX_COMPLAINT)]);
    }
    Ok(answer.clone())
}

fn rendered(answer: &Bytes) -> anyhow::Result<Vec<TokenPrompt>> {
    let requests = match serde_json::from_slice(answer).context("read what was rendered")? {
        Rendered::One(request) => vec![request],
        Rendered::Each(requests) => requests,
    };
    requests.into_iter().map(GenerateRequest::into_prompt).collect()
}

fn prompt(tokens: Vec<u32>) -> TokenPrompt {
    TokenPrompt { tokens, ..TokenPrompt::default() }
}

// === impl GenerateRequest ===

impl GenerateRequest {
    fn into_prompt(self) -> anyhow::Result<TokenPrompt> {
        let Self { token_ids, features } = self;
        let mut media = Vec::new();
        for (modality, placeholders) in features.iter().flat_map(|features| &features.mm_placeholders) {
            let hashes = features.iter().find_map(|features| features.mm_hashes.get(modality));
            let hashes = hashes.filter(|hashes| hashes.len() == placeholders.len());
            let hashes = hashes.with_context(|| format!("not every {modality} has a hash"))?;
            media.extend(hashes.iter().zip(placeholders).map(|(hash, placeholder)| Media {
                hash: hash.clone(),
                offset: placeholder.offset,
                length: placeholder.length,
            }));
        }
        media.sort_unstable_by_key(|media| media.offset);
        Ok(TokenPrompt { media, ..prompt(token_ids) })
    }
}

// === impl TokenizeRequest ===

impl TokenizeRequest<'_> {
    /// The token ids, if the request contains ids in place of a text.
    fn given_ids(&self) -> Option<Vec<Vec<u32>>> {
        let prompt = self.prompt?.get();
        serde_json::from_str(prompt).map(|ids| vec![ids]).or_else(|_| serde_json::from_str(prompt)).ok()
    }

    /// Checks that `/tokenize` returns the ids that the engine would use for the request.
    ///
    /// # Errors
    /// If it would return others.
    fn check(&self, api: Api) -> anyhow::Result<()> {
        let untold = [
            ("documents", self.documents),
            ("reasoning_effort", self.reasoning_effort),
            ("truncate_prompt_tokens", self.truncate_prompt_tokens),
            ("prompt_embeds", self.prompt_embeds),
        ];
        if let Some((field, _)) = untold.iter().find(|(_, value)| value.is_some()) {
            bail!("the engine renders no requests, and /tokenize does not know `{field}`");
        }
        match api {
            Api::Chat => {
                let messages = self.messages.context("no messages")?.get();
                let messages: Vec<Value> = serde_json::from_str(messages).context("read the messages")?;
                let has_media = messages.iter().any(has_media);
                ensure!(
                    !has_media,
                    "the engine renders no requests, and /tokenize does not tell media apart"
                );
                Ok(())
            }
            Api::Completions => {
                let is_text = self.prompt.is_some_and(|prompt| prompt.get().starts_with('"'));
                ensure!(is_text, "the engine renders no requests, and /tokenize takes one text");
                Ok(())
            }
            Api::Responses
            | Api::Messages
            | Api::Pooling
            | Api::Generate
            | Api::Any
            | Api::Invocations
            | Api::ModelOnly => bail!("the engine renders no requests of this API"),
        }
    }
}

/// Returns true if the message has parts that are not text.
fn has_media(message: &Value) -> bool {
    let is_text = |part: &Value| match part.get("type") {
        Some(kind) => TEXT_PARTS.iter().any(|text| kind == text),
        None => part.is_string(),
    };
    message.get("content").and_then(Value::as_array).is_some_and(|parts| !parts.iter().all(is_text))
}
