//! The picker's records: its log in zap's console format, and the decisions on its metrics port.

use serde::{Deserialize, Serialize};

use crate::evidence::access_log::complete_lines;

/// Message of the tutorial's log line.
pub const PREFIX_AWARE: &str = "Do prefix-aware routing!";

/// One log line: `time<TAB>LEVEL<TAB>file:line<TAB>message<TAB>{json}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub text: String,
    pub level: String,
    pub message: String,
    pub fields: serde_json::Map<String, serde_json::Value>,
}

/// Returns the lines that announce prefix-aware routing. Lines of another format are skipped.
pub fn prefix_aware_lines(log: &str) -> Vec<LogLine> {
    complete_lines(log).filter_map(parse_line).filter(|line| line.message == PREFIX_AWARE).collect()
}

fn parse_line(text: &str) -> Option<LogLine> {
    let mut parts = text.splitn(5, '\t');
    let (_time, level, _caller, message) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let fields = serde_json::from_str(parts.next().unwrap_or("{}")).ok()?;
    Some(LogLine { text: text.to_owned(), level: level.to_owned(), message: message.to_owned(), fields })
}

/// True if a line has the tutorial's format byte for byte, apart from its time, caller and request name: tab-separated
/// zap console encoding, `{"request": "10 characters", "matching ratio": " d.dd > d.dd"}`.
pub fn has_tutorial_shape(line: &LogLine, ratio: &str) -> bool {
    let parts: Vec<&str> = line.text.split('\t').collect();
    let [time, level, caller, message, fields] = parts.as_slice() else { return false };
    let name = line.fields.get("request").and_then(|name| name.as_str()).unwrap_or_default();
    let expected = format!("{{\"request\": \"{name}\", \"matching ratio\": \"{ratio}\"}}");
    is_utc_second(time)
        && *level == "INFO"
        && is_caller(caller)
        && *message == PREFIX_AWARE
        && is_request_name(name)
        && *fields == expected
}

/// True for a time such as `2025-05-23T03:33:09Z`.
fn is_utc_second(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { 'd' } else { c }).collect();
    shape == "dddd-dd-ddTdd:dd:ddZ"
}

/// True for a caller such as `scheduling/prefixcache_filter.go:311`.
fn is_caller(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(file, line)| {
        file.matches('/').count() == 1 && !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit())
    })
}

/// True for ten characters of the alphabet of Kubernetes' `rand.String`.
fn is_request_name(name: &str) -> bool {
    name.len() == 10 && name.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c))
}

/// One decision of the picker, as in `/debug/decisions`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub seq: u64,
    pub request: String,
    pub x_request_id: Option<String>,
    pub strategy: Option<String>,
    pub outcome: String,
    pub endpoint: Option<String>,
    pub pod: Option<String>,
    pub reason: Option<String>,
    #[serde(default)]
    pub matched_bytes: u64,
    #[serde(default)]
    pub total_bytes: u64,
    #[serde(default)]
    pub ratio: f64,
    /// Threshold of the strategy, if it has one.
    pub threshold: Option<f64>,
    #[serde(default)]
    pub candidates: Vec<Candidate>,
    /// The response, once it has ended.
    pub response: Option<Answered>,
}

/// The picker's record of a response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    /// HTTP status; absent if no response came.
    pub status: Option<u16>,
}

impl Decision {
    /// Returns the longest match of any candidate, in bytes.
    pub fn best_match(&self) -> u64 {
        self.candidates.iter().map(|candidate| candidate.matched_bytes).max().unwrap_or(0)
    }

    /// True if the pod was picked because of its match.
    pub fn by_prefix(&self) -> bool {
        self.threshold.is_some_and(|threshold| self.ratio > threshold)
    }
}

/// A pod that could have been picked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    pub endpoint: String,
    pub pod: Option<String>,
    #[serde(default)]
    pub matched_bytes: u64,
    #[serde(default)]
    pub ratio: f64,
    /// Tokens of the prompt that the engine reports as cached; absent if the pool does not use such reports.
    pub cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Decisions {
    decisions: Vec<Decision>,
}

/// Reads the decisions in a body of `/debug/decisions`.
pub fn parse_decisions(body: &[u8]) -> Result<Vec<Decision>, serde_json::Error> {
    serde_json::from_slice::<Decisions>(body).map(|decisions| decisions.decisions)
}

#[cfg(test)]
mod tests {
    use super::{has_tutorial_shape, parse_decisions, prefix_aware_lines};

    const LINE: &str = "2025-05-23T03:33:09Z\tINFO\tscheduling/prefixcache_filter.rs:311\tDo prefix-aware routing!\t{\"request\": \"v68m4zx472\", \"matching ratio\": \" 0.54 > 0.50\"}";

    #[test]
    fn the_tutorials_line_is_found_among_others() {
        let log =
            format!("2025-05-23T03:33:08Z\tINFO\tepp/main.rs:1\tStarting\t{{}}\n{LINE}\nplain text\n{LINE}");
        let lines = prefix_aware_lines(&log);
        assert_eq!(lines.len(), 1, "the last line has no newline yet");
        assert_eq!(lines[0].fields["matching ratio"], " 0.54 > 0.50");
        assert!(has_tutorial_shape(&lines[0], " 0.54 > 0.50"));
    }

    #[test]
    fn another_shape_is_refused() {
        let variants = [
            LINE.replace('\t', " "),
            LINE.replace("\": ", "\":"),
            LINE.replace("v68m4zx472", "v68m4zx47"),
            LINE.replace("v68m4zx472", "a68m4zx472"),
            LINE.replace("INFO", "LEVEL(-2)"),
            LINE.replace(" 0.54", "0.54"),
            LINE.replace("09Z", "09.123Z"),
        ];
        for variant in variants {
            let lines = prefix_aware_lines(&format!("{variant}\n"));
            assert!(!lines.iter().any(|line| has_tutorial_shape(line, " 0.54 > 0.50")), "{variant}");
        }
    }

    #[test]
    fn decisions_are_read() {
        let body = br#"{"decisions":[{"seq":1,"time":"2026-01-01T00:00:00.000000Z","request":"v68m4zx472","x_request_id":"r-1","pool":"default/p","model":"m","target_model":"m","strategy":"PREFIX_CACHE","outcome":"picked","endpoint":"127.0.0.1:1","pod":"q-0","reason":"prefix","matched_bytes":392,"total_bytes":728,"ratio":0.538,"threshold":null,"candidates":[{"endpoint":"127.0.0.1:1","pod":"q-0","matched_bytes":392,"ratio":0.538,"waiting":0,"running":0,"kv_usage":0.0,"in_flight":0,"metrics_age_ms":12}]}]}"#;
        let decisions = parse_decisions(body).unwrap();
        assert_eq!((decisions[0].best_match(), decisions[0].threshold), (392, None));
    }
}
