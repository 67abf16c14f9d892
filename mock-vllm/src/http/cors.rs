//! Cross-origin requests: answers what Starlette's `CORSMiddleware` answers with `--allowed-origins` and its sister
//! flags, byte for byte. The libraries for it answer other bytes.

use super::Pod;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use std::collections::BTreeSet;
use std::sync::Arc;
use vllm_engine::vllm_version::VllmVersion;

/// Time that a browser may remember a preflight, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
const ANY: &str = "*";
const ANY_VALUE: HeaderValue = HeaderValue::from_static(ANY);
const TRUE: HeaderValue = HeaderValue::from_static("true");
/// Methods that `*` stands for. Starlette knows the last one since 1.0.
const METHODS: [&str; 8] = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY"];
/// Headers that every page may send.
const SAFE_HEADERS: [&str; 4] = ["Accept", "Accept-Language", "Content-Language", "Content-Type"];
const PREFLIGHT_VARY: HeaderValue = HeaderValue::from_static(
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network",
);
const PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");

/// Origins, methods and headers that pages may use; `*` in a list allows all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorsConfig {
    pub origins: Vec<String>,
    pub methods: Vec<String>,
    pub headers: Vec<String>,
    pub credentials: bool,
}

/// Rules of a pod, with the generation of its Starlette.
#[derive(Clone, Copy, Debug)]
struct Cors<'a> {
    config: &'a CorsConfig,
    /// True for Starlette 1.0 and newer, whose answers always vary by the origin. Before, a cookie made the origin
    /// explicit.
    is_modern: bool,
}

pub(super) async fn cors(State(pod): State<Arc<Pod>>, request: Request, next: Next) -> Response {
    let cors = Cors { config: &pod.config.cors, is_modern: matches!(pod.config.version, VllmVersion::V0_33) };
    let origin = request.headers().get(header::ORIGIN).cloned();
    if let Some(origin) = &origin
        && request.method() == Method::OPTIONS
        && let Some(method) = request.headers().get(header::ACCESS_CONTROL_REQUEST_METHOD)
    {
        return cors.preflight(origin, method, request.headers());
    }
    let has_cookie = request.headers().contains_key(header::COOKIE);
    let mut response = next.run(request).await;
    cors.allow(response.headers_mut(), origin, has_cookie);
    response
}

// === impl Cors ===

impl Cors<'_> {
    fn has_any(list: &[String]) -> bool {
        list.iter().any(|item| item == ANY)
    }

    fn allows_origin(&self, origin: &HeaderValue) -> bool {
        Self::has_any(&self.config.origins) || self.config.origins.iter().any(|allowed| origin == allowed)
    }

    fn methods(&self) -> Vec<&str> {
        if Self::has_any(&self.config.methods) {
            METHODS[..if self.is_modern { METHODS.len() } else { METHODS.len() - 1 }].to_vec()
        } else {
            self.config.methods.iter().map(String::as_str).collect()
        }
    }

    /// Names of allowed headers, in the order of their bytes.
    fn headers(&self) -> BTreeSet<&str> {
        self.config.headers.iter().map(String::as_str).chain(SAFE_HEADERS).collect()
    }

    fn preflight(&self, origin: &HeaderValue, method: &HeaderValue, asked: &HeaderMap) -> Response {
        let any_header = Self::has_any(&self.config.headers);
        let asked_headers = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        let mut failures = Vec::new();
        let mut headers = self.preflight_headers();
        if !self.allows_origin(origin) {
            failures.push("origin");
        } else if !Self::has_any(&self.config.origins) || self.config.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        }
        if !self.methods().iter().any(|allowed| method == allowed) {
            failures.push("method");
        }
        match asked_headers {
            Some(asked) if any_header => {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
            }
            Some(asked) if !self.allows_headers(asked) => failures.push("headers"),
            Some(_) | None => {}
        }
        if self.is_modern && asked.contains_key(PRIVATE_NETWORK) {
            failures.push("private-network");
        }
        let (status, text) = match failures.as_slice() {
            [] => (StatusCode::OK, "OK".to_owned()),
            failures => (StatusCode::BAD_REQUEST, format!("Disallowed CORS {}", failures.join(", "))),
        };
        (status, headers, text).into_response()
    }

    /// Headers of the answer to every preflight.
    fn preflight_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let is_explicit = !Self::has_any(&self.config.origins) || self.config.credentials;
        if self.is_modern {
            headers.insert(header::VARY, PREFLIGHT_VARY);
        } else if is_explicit {
            headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        }
        if !is_explicit {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY_VALUE);
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, value(self.methods().join(", ")));
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        if !Self::has_any(&self.config.headers) {
            let names: Vec<&str> = self.headers().into_iter().collect();
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, value(names.join(", ")));
        }
        if self.config.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        headers
    }

    fn allows_headers(&self, asked: &HeaderValue) -> bool {
        let allowed = self.headers();
        let is_allowed = |name: &str| allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name.trim()));
        asked.to_str().is_ok_and(|asked| asked.split(',').all(is_allowed))
    }

    /// Adds the headers to the answer of a request that is not a preflight.
    fn allow(&self, headers: &mut HeaderMap, origin: Option<HeaderValue>, has_cookie: bool) {
        let any_origin = Self::has_any(&self.config.origins);
        let Some(origin) = origin else {
            if self.is_modern {
                vary_by_origin(headers);
            }
            return;
        };
        if any_origin {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, ANY_VALUE);
        }
        if self.config.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        let is_personal = if self.is_modern { self.config.credentials } else { has_cookie };
        let is_explicit = if any_origin { is_personal } else { self.allows_origin(&origin) };
        if is_explicit {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        if is_explicit || self.is_modern {
            vary_by_origin(headers);
        }
    }
}

fn vary_by_origin(headers: &mut HeaderMap) {
    let values = headers.get_all(header::VARY).iter().filter_map(|value| value.to_str().ok());
    let all: Vec<&str> = values.chain(["Origin"]).collect();
    let all = value(all.join(", "));
    headers.insert(header::VARY, all);
}

/// Converts a flag's text, which was checked when the flag was read.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("methods and names of headers are header values")
}
