//! The faults of a pod at its HTTP surface: `/debug/faults`, which sets them live, and what carries them out.

pub(super) mod inject;
mod body;
pub mod keeper;

use super::error::ApiError;
use super::framework::get;
use super::{Pod, json_body};
use crate::faults::active::ActiveRule;
use crate::faults::spec::InvalidRule;
use crate::faults::{Fault, Rule, page};
use crate::metrics::exposition::Format;
use axum::Router;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Json;
use bytes::Bytes;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum SetFaultsError {
    #[error(transparent)]
    Invalid(#[from] InvalidRule),
    #[error("{rule}: this pod is {own}; ask the other one, or leave `pod` out")]
    OtherPod { rule: String, own: String },
    #[error(
        "{rule}: /metrics has no `{metric}`; it is running, waiting, kv_cache_usage or a metric's full name"
    )]
    UnknownMetric { rule: String, metric: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FaultsBody {
    faults: Vec<Value>,
}

pub(super) fn routes() -> Router<Arc<Pod>> {
    Router::new().route("/debug/faults", get(show).post(replace).delete(clear))
}

async fn show(State(pod): State<Arc<Pod>>) -> Json<Value> {
    Json(view(&pod))
}

/// Sets these faults and no others, or none if one of them is wrong.
async fn replace(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, ApiError> {
    let body = json_body(&headers, body)?;
    let refuse = |error: &dyn std::error::Error| ApiError::bad_request(error.to_string(), Some("faults"));
    let FaultsBody { faults } = serde_json::from_slice(&body).map_err(|error| refuse(&error))?;
    let rules: Result<Vec<_>, _> = faults.into_iter().map(Rule::from_json).collect();
    let rules = rules.map_err(|error| refuse(&error))?;
    pod.set_faults(rules).map_err(|error| refuse(&error))?;
    Ok(Json(view(&pod)))
}

async fn clear(State(pod): State<Arc<Pod>>) -> Json<Value> {
    pod.faults.set(Vec::new());
    Json(view(&pod))
}

fn view(pod: &Pod) -> Value {
    let now = pod.faults.now();
    let rules = pod.faults.rules();
    let faults: Vec<Value> = rules
        .iter()
        .map(|active| {
            let count = active.count();
            json!({
                "rule": active.rule.to_string(),
                "fault": active.rule.to_json(),
                "active": active.is_active(now),
                "matched": count.matched,
                "hit": count.hit,
            })
        })
        .collect();
    json!({"pod": pod.config.pod_name, "faults": faults})
}

// === impl Pod ===

impl Pod {
    /// Sets these faults and no others.
    ///
    /// # Errors
    /// Fails for a rule about another pod or about a metric that does not exist; then nothing changes.
    pub fn set_faults(&self, rules: Vec<Rule>) -> Result<(), SetFaultsError> {
        for rule in &rules {
            let own = &self.config.pod_name;
            if rule.pod.as_ref().is_some_and(|pod| pod != own) {
                return Err(SetFaultsError::OtherPod { rule: rule.to_string(), own: own.clone() });
            }
            if let Some(metric) = rule.fault.metric()
                && page::resolve(metric, &self.true_page(Format::Text, &[])).is_none()
            {
                return Err(SetFaultsError::UnknownMetric {
                    rule: rule.to_string(),
                    metric: metric.to_owned(),
                });
            }
        }
        self.faults.set(rules);
        self.freeze_pages();
        Ok(())
    }

    /// Writes the page of `/metrics`: the true one, unless faults change it.
    pub(super) fn metrics_page(&self, format: Format, only: &[String]) -> String {
        let page = || self.true_page(format, only);
        if !self.faults.any() {
            return page();
        }
        let is_frozen = |active: &Arc<ActiveRule>| matches!(active.rule.fault, Fault::MetricsFreeze {});
        let frozen = self.faults.active().find(is_frozen);
        let page = frozen.map_or_else(page, |rule| rule.frozen(|| self.freeze()).page(format, only));
        self.faults.active().fold(page, |page, active| {
            if let Fault::MetricsLie { metric, value } = &active.rule.fault {
                page::lie(&page, metric, value.at(self.faults.now().since(active.begins_at())))
            } else if let Fault::MetricsOmit { metric } = &active.rule.fault {
                metric.as_ref().map_or_else(String::new, |metric| page::omit(&page, metric))
            } else {
                page
            }
        })
    }

    /// Keeps the current page for each rule that freezes it by now.
    fn freeze_pages(&self) {
        for active in self.faults.active() {
            if matches!(active.rule.fault, Fault::MetricsFreeze {}) {
                active.frozen(|| self.freeze());
            }
        }
    }

    fn freeze(&self) -> page::FrozenPages {
        page::FrozenPages {
            text: self.true_page(Format::Text, &[]),
            open_metrics: self.true_page(Format::OpenMetrics, &[]),
        }
    }
}
