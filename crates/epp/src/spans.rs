//! Requests as OpenTelemetry spans, sent over OTLP; only if an endpoint is given.
//!
//! ```text
//! gateway.request                 from the request's headers to the end of its stream, below the proxy's span
//! └─ gateway.request_orchestration  the decision
//! ```

use std::fmt;
use std::time::SystemTime;

use anyhow::Context as _;
use envoy_proto::service::ext_proc::v3::HttpHeaders;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span};
use tracing::warn;

use crate::explain::DecisionRecord;
use ext_proc::exchange::ResponseReport;
use ext_proc::pick_request::header_value;

/// The receiver of spans.
#[derive(Clone, Debug, PartialEq)]
pub struct Otlp {
    /// An OTLP receiver (gRPC), `http://host:4317`.
    pub endpoint: String,
    /// Share of the requests without a sampled parent that are recorded, in 0..=1.
    pub sample_ratio: f64,
}

/// Makes the spans of all requests.
pub struct Spans(Option<Tracing>);

struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

/// Span of a request; ends when it is dropped.
pub struct RequestSpan(Option<Recording>);

struct Recording {
    tracer: SdkTracer,
    context: Context,
}

/// The headers from the proxy, as a carrier of the parent span.
struct Headers<'a>(&'a HttpHeaders);

// === impl Spans ===

impl Spans {
    /// Sends spans to `otlp`; creates none without it. Must be called in a Tokio runtime.
    ///
    /// # Errors
    /// If the endpoint is not valid.
    pub fn try_new(otlp: Option<&Otlp>) -> anyhow::Result<Self> {
        let Some(Otlp { endpoint, sample_ratio }) = otlp else { return Ok(Self(None)) };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.with_context(|| format!("send spans to {endpoint} (--otlp-endpoint)"))?;
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(*sample_ratio)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(Resource::builder().with_service_name("epp").build())
            .build();
        let tracer = provider.tracer("epp");
        Ok(Self(Some(Tracing { provider, tracer, propagator: TraceContextPropagator::new() })))
    }

    /// Starts the span of a request with these headers.
    #[must_use]
    pub fn begin(&self, headers: &HttpHeaders) -> RequestSpan {
        let Some(Tracing { tracer, propagator, .. }) = &self.0 else { return RequestSpan(None) };
        let parent = propagator.extract(&Headers(headers));
        let builder = tracer.span_builder("gateway.request").with_kind(SpanKind::Server);
        let span: Span = builder.start_with_context(tracer, &parent);
        if !span.is_recording() {
            return RequestSpan(None);
        }
        RequestSpan(Some(Recording { tracer: tracer.clone(), context: Context::new().with_span(span) }))
    }

    /// Sends the remaining spans. Blocks, so call it in a separate thread.
    pub fn shut_down(&self) {
        if let Some(Tracing { provider, .. }) = &self.0
            && let Err(error) = provider.shutdown()
        {
            warn!(%error, "Cannot send the last spans");
        }
    }
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Spans").field(&self.0.is_some()).finish()
    }
}

// === impl RequestSpan ===

impl RequestSpan {
    /// The span of a request that is not recorded.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// Records the decision, which was made between `began` and `ended`.
    pub fn note_decision(&self, decision: &DecisionRecord, began: SystemTime, ended: SystemTime) {
        let Some(Recording { tracer, context }) = &self.0 else { return };
        let builder = tracer.span_builder("gateway.request_orchestration").with_start_time(began);
        let mut orchestration: Span = builder.start_with_context(tracer, context);
        orchestration.set_attributes(decision_attributes(decision));
        orchestration.end_with_timestamp(ended);
        let span = context.span();
        let model = decision.model.as_ref().map(|model| KeyValue::new("gen_ai.request.model", model.clone()));
        span.set_attributes(model);
        span.set_attribute(KeyValue::new("warmpath.request", decision.request.clone()));
        if decision.endpoint.is_none() {
            span.set_attribute(KeyValue::new("error.type", decision.outcome));
            span.set_status(Status::error(decision.outcome));
        }
    }

    /// Records the response, at the end of the stream.
    pub fn note_response(&self, report: &ResponseReport) {
        let Some(Recording { context, .. }) = &self.0 else { return };
        let span = context.span();
        let ResponseReport { status, usage, n_bytes: _, complete } = *report;
        if let Some(status) = status {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        }
        let usage = usage.unwrap_or_default();
        let tokens = [
            ("gen_ai.usage.input_tokens", usage.prompt_tokens),
            ("gen_ai.usage.output_tokens", usage.completion_tokens),
            ("gen_ai.usage.cache_read.input_tokens", usage.cached_tokens),
        ];
        let known = tokens.into_iter().filter_map(|(key, tokens)| Some((key, tokens?)));
        span.set_attributes(known.map(|(key, tokens)| KeyValue::new(key, i64::from(tokens))));
        if complete == Some(false) {
            span.set_attribute(KeyValue::new("error.type", "incomplete"));
            span.set_status(Status::error("the response broke off"));
        }
    }
}

impl fmt::Debug for RequestSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequestSpan").field(&self.0.is_some()).finish()
    }
}

#[expect(clippy::cast_possible_wrap, reason = "prompts are far below 2^63 bytes")]
fn decision_attributes(decision: &DecisionRecord) -> impl Iterator<Item = KeyValue> {
    let text = |key: &'static str, value: Option<&str>| Some(KeyValue::new(key, value?.to_owned()));
    let picked = decision.endpoint.is_some();
    let number = |key, value: u64| picked.then(|| KeyValue::new(key, value as i64));
    [
        text("warmpath.outcome", Some(decision.outcome)),
        text("warmpath.pool", decision.pool.as_deref()),
        text("warmpath.strategy", decision.strategy),
        text("warmpath.endpoint", decision.endpoint.as_deref()),
        text("warmpath.pod", decision.pod.as_deref()),
        text("warmpath.reason", decision.reason),
        text("warmpath.target_model", decision.target_model.as_deref()),
        number("warmpath.prefix.matched_bytes", decision.matched_bytes),
        number("warmpath.prefix.total_bytes", decision.total_bytes),
        picked.then(|| KeyValue::new("warmpath.prefix.ratio", decision.ratio)),
        number("warmpath.candidates", decision.n_candidates as u64),
    ]
    .into_iter()
    .flatten()
}

// === impl Headers ===

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let headers = self.0.headers.iter().flat_map(|map| &map.headers);
        headers.into_iter().find(|header| header.key.eq_ignore_ascii_case(key)).map(header_value)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.headers.iter().flat_map(|map| &map.headers).map(|header| header.key.as_str()).collect()
    }
}
