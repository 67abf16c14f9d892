//! Behaviour of FastAPI around the endpoints: it redirects a path with a slash too many, does not treat `HEAD` as
//! `GET`, and answers a path or method without a route with an error in its own shape.

use super::Pod;
use super::error::ApiError;
use axum::Router;
use axum::body::Body;
use axum::extract::{OriginalUri, Request};
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::sync::Arc;
use tower::ServiceExt as _;

/// Characters that a redirect's location keeps: `quote(url, safe=":/%#?=@[]!$&'()*+,;")`.
const UNSAFE_IN_LOCATION: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'_')
    .remove(b'.')
    .remove(b'-')
    .remove(b'~')
    .remove(b':')
    .remove(b'/')
    .remove(b'%')
    .remove(b'#')
    .remove(b'?')
    .remove(b'=')
    .remove(b'@')
    .remove(b'[')
    .remove(b']')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';');

/// Marks a response that only redirects to the right path.
#[derive(Clone, Debug)]
pub(super) struct Redirected {
    /// Path that the client asked for.
    pub(super) from: String,
}

/// Makes a route for `GET` alone. (axum's own answers `HEAD` too.)
pub(super) fn get<H, T>(handler: H) -> MethodRouter<Arc<Pod>>
where
    H: Handler<T, Arc<Pod>>,
    T: 'static,
{
    axum::routing::get(handler).head(async || ([(header::ALLOW, "GET")], wrong_method()))
}

/// Adds an answer for every path and method that the routes do not take.
pub(super) fn complete(routes: Router<Arc<Pod>>, pod: &Arc<Pod>) -> Router<Arc<Pod>> {
    let is_known = routes.clone().route_layer(middleware::from_fn(known)).with_state(pod.clone());
    routes
        .fallback(async move |original: OriginalUri, request: Request| {
            redirected(is_known, original.0, request).await.unwrap_or_else(not_found)
        })
        .method_not_allowed_fallback(async || wrong_method())
}

/// Reduces `allow` to the method of the first route with the path, which is all that FastAPI knows.
pub(super) async fn name_one_method(mut response: Response) -> Response {
    if let Some(allow) = response.headers().get(header::ALLOW)
        && let Some((first, _)) = allow.to_str().unwrap_or_default().split_once(',')
    {
        let first = HeaderValue::try_from(first).expect("it was part of a header value");
        response.headers_mut().insert(header::ALLOW, first);
    }
    response
}

pub(super) fn not_found() -> Response {
    ApiError::detail(StatusCode::NOT_FOUND, "Not Found").into_response()
}

fn wrong_method() -> Response {
    ApiError::detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed").into_response()
}

async fn known(_request: Request, _next: Next) -> StatusCode {
    StatusCode::OK
}

/// Redirects to the path without its slashes at the end, or with one more, if there is a route for it.
async fn redirected(is_known: Router, original: Uri, request: Request) -> Option<Response> {
    let asked = with_other_slash(request.uri().path())?;
    let probe = Request::get(asked).body(Body::empty()).ok()?;
    let answer = is_known.oneshot(probe).await.unwrap_or_else(|never| match never {});
    if answer.status() == StatusCode::NOT_FOUND {
        return None;
    }
    let path = with_other_slash(original.path())?;
    let url = absolute(request.headers(), &path, original.query());
    let location = utf8_percent_encode(&url, UNSAFE_IN_LOCATION).to_string();
    let location = HeaderValue::try_from(location).expect("what is encoded is ASCII");
    let mut response = (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response();
    response.extensions_mut().insert(Redirected { from: request.uri().path().to_owned() });
    Some(response)
}

/// Adds or removes the slash at the end; `None` if nothing would be left.
fn with_other_slash(path: &str) -> Option<String> {
    let other = match path.trim_end_matches('/') {
        "" => return None,
        trimmed if trimmed.len() < path.len() => trimmed.to_owned(),
        whole => format!("{whole}/"),
    };
    PathAndQuery::try_from(&other).is_ok().then_some(other)
}

/// Makes the URL of a path at the server that the client named.
fn absolute(headers: &HeaderMap, path: &str, query: Option<&str>) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let base = host.map(|host| format!("http://{host}")).unwrap_or_default();
    match query.filter(|query| !query.is_empty()) {
        Some(query) => format!("{base}{path}?{query}"),
        None => format!("{base}{path}"),
    }
}
