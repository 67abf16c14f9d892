//! Carries out the faults of requests. A request without one costs a look at a flag and at a header that is missing.

use super::super::Pod;
use super::super::error::{self, ApiError};
use super::body::{self, Cut, Cutting};
use crate::faults::socket::Connection;
use crate::faults::{Endpoints, Fault, Rule};
use crate::metrics::AdmissionLimit;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Json, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Faults of this request; in an answer, those that the answer has.
const FAULT_HEADER: HeaderName = HeaderName::from_static("x-mock-vllm-fault");
/// Time in the `Retry-After` of an overloaded server, unless the fault has its own.
const DEFAULT_RETRY: Duration = Duration::from_secs(1);

pub(in crate::http) async fn inject(State(pod): State<Arc<Pod>>, request: Request, next: Next) -> Response {
    let asks = pod.config.endpoints.mock && request.headers().contains_key(FAULT_HEADER);
    if !pod.faults.any() && !asks {
        return next.run(request).await;
    }
    let Some(endpoints) = Endpoints::of(request.uri().path()) else { return next.run(request).await };
    let rules = match rules(&pod, &request, endpoints) {
        Ok(rules) => rules,
        Err(error) => return error.into_response(),
    };
    let connection =
        request.extensions().get::<ConnectInfo<Connection>>().map(|ConnectInfo(info)| info.clone());
    if rules.iter().any(|rule| matches!(rule.fault, Fault::Crash {})) {
        tracing::error!(pod = %pod.config.pod_name, "Crashing, as a fault says");
        pod.faults.kill();
        // The client does not get this answer: its connection is cut, and notices at the first byte that it writes. If
        // the handler waited instead, a connection whose request has come only in part would stay open, because nothing
        // reads on for a handler that does not ask.
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let early = rules.iter().find_map(|rule| {
        if let Fault::Status { code, retry_after } = rule.fault {
            Some(error_response(code, retry_after))
        } else {
            let starts = matches!(rule.fault, Fault::SlowStart { .. });
            starts.then(|| error_response(StatusCode::SERVICE_UNAVAILABLE, None))
        }
    });
    let response = match early {
        Some(response) => response,
        None => next.run(request).await,
    };
    if rules.is_empty() {
        return response;
    }
    // Faults change the final bytes, so the answer is converted first.
    let mut response = error::dated(response, pod.config.version);
    response.extensions_mut().remove::<ApiError>();
    let cutting = Cutting { clock: pod.faults.clock().clone(), connection };
    let mut response = spoil(response, &rules, &cutting).await;
    if !pod.config.endpoints.mock {
        response.headers_mut().remove(FAULT_HEADER);
    }
    response
}

/// Returns the pod's rules that hit this request, then the request's own.
fn rules(pod: &Pod, request: &Request, endpoints: Endpoints) -> Result<Vec<Rule>, ApiError> {
    let mut rules: Vec<Rule> = pod.faults.starts_slowly().iter().map(|active| active.rule.clone()).collect();
    if rules.is_empty() {
        rules.extend(pod.faults.hits_of_request(endpoints).iter().map(|active| active.rule.clone()));
    }
    let own = pod.config.endpoints.mock.then(|| request.headers().get_all(FAULT_HEADER));
    for value in own.into_iter().flatten() {
        let text = String::from_utf8_lossy(value.as_bytes());
        let own = Rule::parse_header(&text).map_err(|error| {
            ApiError::bad_request(format!("{FAULT_HEADER}: {error}"), Some(FAULT_HEADER.as_str()))
        })?;
        rules.extend(own);
    }
    Ok(rules)
}

/// Changes the answer's bytes as the rules say.
async fn spoil(mut response: Response, rules: &[Rule], cutting: &Cutting) -> Response {
    let told = rules.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if let Ok(told) = HeaderValue::try_from(told) {
        response.headers_mut().insert(FAULT_HEADER, told);
    }
    let is_stream = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    let mut cuts = Vec::new();
    for rule in rules {
        if let Fault::ContentLength { off } = rule.fault
            && !is_stream
        {
            response = body::with_wrong_length(response, off.get(), cutting).await;
        }
        cuts.extend(cut(&rule.fault));
    }
    if cuts.is_empty() {
        return response;
    }
    cuts.sort_by_key(|(tokens, _)| *tokens);
    if is_stream {
        body::cut_stream(response, cuts, cutting)
    } else {
        body::cut_plain(response, cuts, cutting).await
    }
}

/// Returns the number of tokens after which the fault cuts an answer, and how.
fn cut(fault: &Fault) -> Option<(u32, Cut)> {
    if let Fault::Stall { tokens, delay } = *fault {
        Some((tokens, Cut::Stall(delay)))
    } else if let Fault::Reset { tokens } = *fault {
        Some((tokens, Cut::Reset))
    } else if let Fault::Truncate { tokens } = *fault {
        Some((tokens, Cut::Close))
    } else {
        None
    }
}

fn error_response(code: StatusCode, retry_after: Option<Duration>) -> Response {
    let mut response = match code {
        StatusCode::UNAUTHORIZED => (code, Json(json!({"error": "Unauthorized"}))).into_response(),
        StatusCode::INTERNAL_SERVER_ERROR => ApiError::engine_dead().into_response(),
        StatusCode::SERVICE_UNAVAILABLE => {
            ApiError::queue_full(AdmissionLimit::MaxNumQueuedReqs).into_response()
        }
        _ => ApiError::plain(code).into_response(),
    };
    let is_retried = matches!(code, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    if let Some(retry_after) = retry_after.or(is_retried.then_some(DEFAULT_RETRY)) {
        // The header counts whole seconds.
        let seconds = retry_after.as_secs_f64().ceil();
        let seconds = HeaderValue::try_from(format!("{seconds}")).expect("a number is a header value");
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    response
}
