//! What FastAPI does around the endpoints: a path with a slash too many is redirected, `HEAD` is not `GET`, and a path or a method that no
//! route takes is an error in the framework's own shape.

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

/// What stays as it is in a redirect's location: `quote(url, safe=":/%#?=@[]!$&'()*+,;")`.
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

/// Marks a response that only says where the path would be right.
#[derive(Clone, Debug)]
pub(super) struct Redirected {
    /// The path that was asked for.
    pub(super) from: String,
}

/// A route for `GET` and nothing else: axum's own answers `HEAD` too.
pub(super) fn get<H, T>(handler: H) -> MethodRouter<Arc<Pod>>
where
    H: Handler<T, Arc<Pod>>,
    T: 'static,
{
    axum::routing::get(handler).head(async || ([(header::ALLOW, "GET")], wrong_method()))
}

/// The routes, with an answer for every path and method that they do not take.
pub(super) fn complete(routes: Router<Arc<Pod>>, pod: &Arc<Pod>) -> Router<Arc<Pod>> {
    let is_known = routes.clone().route_layer(middleware::from_fn(known)).with_state(pod.clone());
    routes
        .fallback(async move |original: OriginalUri, request: Request| {
            redirected(is_known, original.0, request).await.unwrap_or_else(not_found)
        })
        .method_not_allowed_fallback(async || wrong_method())
}

/// Names in `allow` the method of the first route that has the path, which is all that FastAPI knows.
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

/// To the path without its last slashes, or with one more, if a route has that one.
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

/// `None` if nothing would be left.
fn with_other_slash(path: &str) -> Option<String> {
    let other = match path.trim_end_matches('/') {
        "" => return None,
        trimmed if trimmed.len() < path.len() => trimmed.to_owned(),
        whole => format!("{whole}/"),
    };
    PathAndQuery::try_from(&other).is_ok().then_some(other)
}

/// At the server that the client named.
fn absolute(headers: &HeaderMap, path: &str, query: Option<&str>) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let base = host.map(|host| format!("http://{host}")).unwrap_or_default();
    match query.filter(|query| !query.is_empty()) {
        Some(query) => format!("{base}{path}?{query}"),
        None => format!("{base}{path}"),
    }
}
