//! Timeline of a section's requests, one lane per pod. Positions are in per cent of the section's time span.

use load::stats::as_f64;
use serde::Serialize;

use crate::evidence::join::RequestTrace;

/// Pixels from one row of bars to the next.
const ROW: f64 = 15.0;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Timeline {
    pub(super) lanes: Vec<Lane>,
    /// Seconds of wall time from the first request to the last byte.
    pub(super) span_s: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Lane {
    pub(super) pod: String,
    pub(super) height: f64,
    pub(super) bars: Vec<Bar>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Bar {
    left: f64,
    width: f64,
    top: f64,
    /// Part of the bar before the first token, in per cent.
    first_token: f64,
    class: &'static str,
    title: String,
}

/// Makes the lanes of a section. Requests that no pod served have their own lane.
pub(super) fn timeline(traces: &[&RequestTrace], time_scale: f64) -> Timeline {
    let wall_s = |ms: f64| ms / 1e3 / time_scale;
    let start = traces.iter().map(|trace| trace.client.sent_at).fold(f64::INFINITY, f64::min);
    let end =
        traces.iter().map(|trace| trace.client.sent_at + wall_s(trace.client.e2e_ms)).fold(start, f64::max);
    let span_s = (end - start).max(1e-6);
    let percent = |seconds: f64| seconds / span_s * 100.0;
    let mut lanes: Vec<(String, Vec<&RequestTrace>)> = Vec::new();
    for trace in traces {
        let pod = trace.served_by.clone().unwrap_or_else(|| "no pod".to_owned());
        match lanes.iter_mut().find(|(name, _)| *name == pod) {
            Some((_, of_pod)) => of_pod.push(trace),
            None => lanes.push((pod, vec![trace])),
        }
    }
    lanes.sort_by(|a, b| a.0.cmp(&b.0));
    let lanes = lanes.into_iter().map(|(pod, mut of_pod)| {
        of_pod.sort_by(|a, b| a.client.sent_at.total_cmp(&b.client.sent_at));
        let mut rows: Vec<f64> = Vec::new();
        let bars = of_pod.into_iter().map(|trace| {
            let from = trace.client.sent_at - start;
            let until = from + wall_s(trace.client.e2e_ms);
            let row = rows.iter().position(|busy| *busy <= from).unwrap_or(rows.len());
            rows.resize(rows.len().max(row + 1), 0.0);
            rows[row] = until;
            let first_token = trace.client.ttft_ms.map_or(100.0, |ttft| ttft / trace.client.e2e_ms * 100.0);
            Bar {
                left: percent(from),
                width: percent(until - from).max(0.4),
                top: as_f64(row) * ROW,
                first_token: first_token.clamp(0.0, 100.0),
                class: class(trace),
                title: title(trace),
            }
        });
        let bars: Vec<Bar> = bars.collect();
        Lane { pod, height: as_f64(rows.len()) * ROW, bars }
    });
    Timeline { lanes: lanes.collect(), span_s }
}

/// Returns the colour class of a request: by the share of its prompt that was cached.
pub(super) fn class(trace: &RequestTrace) -> &'static str {
    let Some(usage) = trace.client.usage else { return "bad" };
    let cached = f64::from(usage.cached_tokens()) / f64::from(usage.prompt_tokens.max(1));
    match cached {
        share if share > 0.5 => "warm",
        share if share > 0.0 => "some",
        _ => "cold",
    }
}

fn title(trace: &RequestTrace) -> String {
    let client = &trace.client;
    let ttft =
        client.ttft_ms.map_or_else(|| "no token".to_owned(), |ms| format!("first token after {ms:.0} ms"));
    let cached = client.usage.map_or_else(String::new, |usage| {
        format!(", {} of {} prompt tokens cached", usage.cached_tokens(), usage.prompt_tokens)
    });
    format!("{} via {}: {ttft}{cached}", client.label, client.via)
}

#[cfg(test)]
mod tests {
    use super::timeline;
    use crate::evidence::join::RequestTrace;
    use crate::report::fixtures::report;

    #[test]
    fn overlapping_requests_of_a_pod_get_rows() {
        let traces = report().requests;
        let traces: Vec<&RequestTrace> = traces.iter().collect();
        let timeline = timeline(&traces, 1.0);
        let [lane] = timeline.lanes.as_slice() else { panic!("one pod, one lane") };
        // Requests are sent every 0.7 s and take 0.9 s each, so two rows are enough.
        assert_eq!(lane.height, 30.0);
        assert_eq!(lane.bars.iter().map(|bar| bar.top).collect::<Vec<_>>(), [0.0, 15.0, 0.0, 15.0]);
        assert!((timeline.span_s - 3.0).abs() < 1e-9);
        assert!(lane.bars.iter().all(|bar| bar.left + bar.width <= 100.001));
    }
}
