//! Reports what the prefix cache really had for a request, as a header and as JSON, so that a router can check its
//! estimate.

use super::OptionalEndpoints;
use axum::response::Response;
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use std::num::NonZeroU32;

/// Header of every answer to a request for text that the engine admitted: a dictionary of RFC 8941.
const CACHE_HEADER: HeaderName = HeaderName::from_static("x-mock-vllm-cache");

/// Counts of a prompt. `*_blocks` are full blocks, and the last token of a prompt is always computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PrefixHit {
    cached_tokens: u32,
    cached_blocks: u32,
    prompt_tokens: usize,
    prompt_blocks: usize,
}

// === impl PrefixHit ===

impl PrefixHit {
    pub(super) fn new(cached_tokens: u32, prompt_tokens: usize, block_size: NonZeroU32) -> Self {
        Self {
            cached_tokens,
            cached_blocks: cached_tokens / block_size,
            prompt_tokens,
            prompt_blocks: prompt_tokens / block_size.get() as usize,
        }
    }

    /// Adds the header, unless the pod answers as vLLM alone. For a request with several prompts or choices it is about the
    /// first one.
    pub(super) fn on(self, endpoints: OptionalEndpoints, mut response: Response) -> Response {
        if !endpoints.mock {
            return response;
        }
        let Self { cached_tokens, cached_blocks, prompt_tokens, prompt_blocks } = self;
        let value = format!(
            "cached_tokens={cached_tokens}, cached_blocks={cached_blocks}, prompt_tokens={prompt_tokens}, \
             prompt_blocks={prompt_blocks}"
        );
        let value = HeaderValue::try_from(value).expect("names and numbers are a header value");
        response.headers_mut().insert(CACHE_HEADER, value);
        response
    }
}
