//! Results that a run leaves: a summary in the terminal, `report.json`, `junit.xml` and a self-contained `report.html`.
//! The files are written even if a check fails or the run is interrupted.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use load::stats::{mean, median, quantile};
use serde::{Deserialize, Serialize};

use crate::check::{Check, Verdict};
use crate::evidence::join::RequestTrace;
use crate::evidence::pod::CacheCounters;

pub mod html;

mod ttft;

mod timeline;

pub mod junit;

pub mod summary;

/// Name and version of the JSON schema. The version changes when a field is removed or changes its meaning.
pub const SCHEMA: &str = "warmpath.e2e/1";

/// All findings of a run. Times are in virtual milliseconds (wall time times the time scale) unless stated otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: String,
    pub run: Run,
    pub checks: Vec<Check>,
    /// Results of the same conversations through each path; empty if that part did not run.
    pub sides: Vec<Side>,
    pub requests: Vec<RequestTrace>,
    pub parts: Vec<Part>,
}

/// Time and circumstances of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Start in UTC, as in RFC 3339.
    pub started: String,
    pub outcome: Outcome,
    /// Wall seconds from the first process to the last check.
    pub elapsed_s: f64,
    pub manifests: String,
    pub replicas: usize,
    pub time_scale: f64,
    /// Port of listener `http`, the tutorial's 8080.
    pub http_port: u16,
    /// Port of listener `llm-gw`, the tutorial's 8081.
    pub llm_port: u16,
    /// Remarks, for example on parts that did not run.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Passed,
    Failed,
    Interrupted,
}

/// The conversations through one path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Name of the path: `8081`, `8080`, or `8081, no annotation`.
    pub name: String,
    /// Time to first token of every answered request, in the order in which they were sent.
    pub ttft_ms: Vec<f64>,
    /// Number of later turns that went to the pod of their conversation's first turn.
    pub own_pod_turns: usize,
    pub later_turns: usize,
    /// Use of the pods' prefix caches during this part.
    pub pods: Vec<PodCache>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodCache {
    pub pod: String,
    pub requests: usize,
    pub tokens: CacheCounters,
}

/// A part of the run, and the time it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub wall_s: f64,
}

impl Report {
    pub fn failed(&self) -> usize {
        self.checks.iter().filter(|check| check.failed()).count()
    }

    pub fn skipped(&self) -> usize {
        self.checks.iter().filter(|check| matches!(check.verdict, Verdict::Skipped(_))).count()
    }

    /// Writes the three files into `dir`, creates it if needed, and returns their paths.
    pub fn write(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let files = [
            ("report.json", serde_json::to_string_pretty(self)?),
            ("junit.xml", junit::render(self)?),
            ("report.html", html::render(self)?),
        ];
        files
            .into_iter()
            .map(|(name, text)| {
                let path = dir.join(name);
                std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
                Ok(path)
            })
            .collect()
    }
}

impl Side {
    pub fn mean_ttft_ms(&self) -> Option<f64> {
        mean(&self.ttft_ms)
    }

    pub fn median_ttft_ms(&self) -> Option<f64> {
        median(&self.ttft_ms)
    }

    pub fn p90_ttft_ms(&self) -> Option<f64> {
        quantile(&self.ttft_ms, 0.9)
    }

    /// Returns the share of looked-up prompt tokens that the pods found in their caches.
    pub fn hit_ratio(&self) -> Option<f64> {
        let total = self.pods.iter().fold(CacheCounters::default(), |sum, pod| CacheCounters {
            queries: sum.queries + pod.tokens.queries,
            hits: sum.hits + pod.tokens.hits,
            kv_usage: 0.0,
        });
        total.hit_ratio()
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
