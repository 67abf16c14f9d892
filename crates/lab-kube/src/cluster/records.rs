//! Lines of containers' logs, sorted into the files of a run. Envoy Gateway's access log gets the keys of the lab's.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The kind of a container's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Lines of the log, and JSON records of requests.
    Engine,
    /// Lines of the log only.
    Picker,
    /// Lines of the log, and JSON entries of the access log.
    Envoy,
}

/// The files for the log of one container.
#[derive(Debug)]
pub(super) struct Records {
    source: Source,
    log: File,
    records: File,
}

impl Records {
    /// Opens the file of the log and the one of records, for appending.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub(super) fn open(source: Source, log: &Path, records: &Path) -> Result<Self> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.with_context(|| format!("open {}", path.display()))
        };
        Ok(Self { source, log: open(log)?, records: open(records)? })
    }

    /// Writes one line to the file to which it belongs.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(super) fn write(&mut self, line: &str) -> Result<()> {
        match record(self.source, line) {
            Some(record) => self.records.write_all(format!("{record}\n").as_bytes())?,
            None => self.log.write_all(format!("{line}\n").as_bytes())?,
        }
        Ok(())
    }
}

/// Path of the file of a container's log, and of its records.
pub(super) fn paths(source: Source, (logs, access_log): (&Path, &Path), pod: &str) -> (PathBuf, PathBuf) {
    let log = logs.join(format!("{pod}.log"));
    let records = match source {
        Source::Engine | Source::Picker => logs.join(format!("{pod}.requests.jsonl")),
        Source::Envoy => access_log.to_owned(),
    };
    (log, records)
}

/// Returns the record in a line, in the lab's own format; `None` if it is a line of the log.
fn record(source: Source, line: &str) -> Option<String> {
    if source == Source::Picker || !line.starts_with('{') {
        return None;
    }
    let value: Value = serde_json::from_str(line).ok()?;
    match source {
        Source::Engine => value.get("request_id").map(|_| line.to_owned()),
        Source::Envoy => value.get("response_code").map(|_| access(&value).to_string()),
        Source::Picker => None,
    }
}

/// Returns an entry of Envoy Gateway's access log with the keys of the lab's. It has neither attempts nor the pick.
fn access(entry: &Value) -> Value {
    json!({
        "path": entry["x-envoy-origin-path"],
        "code": entry["response_code"],
        "flags": entry["response_flags"],
        "details": details(entry),
        "request_id": entry["x-request-id"],
        "upstream_cluster": entry["upstream_cluster"],
        "upstream_host": entry["upstream_host"],
    })
}

/// The reason of a response, and that of a failure on the way to the server.
fn details(entry: &Value) -> Value {
    let texts = ["response_code_details", "upstream_transport_failure_reason"].map(|key| entry[key].as_str());
    let texts: Vec<&str> = texts.into_iter().flatten().collect();
    if texts.is_empty() { Value::Null } else { texts.join(" ").into() }
}

#[cfg(test)]
mod tests {
    use lab::evidence::access_log;

    use super::{Source, record};

    /// A line of Envoy Gateway 1.9.1.
    const ACCESS: &str = r#"{":authority":"172.18.0.2:8081","bytes_received":0,"bytes_sent":0,"connection_termination_details":null,"downstream_local_address":"10.244.0.15:8081","downstream_remote_address":"172.18.0.1:54788","duration":17,"method":"GET","protocol":"HTTP/1.1","requested_server_name":null,"response_code":200,"response_code_details":"via_upstream","response_flags":"-","route_name":"httproute/default/qwen-backend/rule/0/match/0/*","start_time":"2026-11-29T14:13:16.584Z","upstream_cluster":"httproute/default/qwen-backend/rule/0","upstream_host":"10.244.0.11:8000","upstream_local_address":"10.244.0.15:53238","upstream_transport_failure_reason":null,"user-agent":null,"x-envoy-origin-path":"/health","x-envoy-upstream-service-time":null,"x-forwarded-for":"172.18.0.1","x-request-id":"6825a76d-6853-4aad-8bc5-4f92bfb19dd5"}"#;

    #[test]
    fn the_access_log_of_envoy_gateway_is_read_as_the_labs() {
        let line = record(Source::Envoy, ACCESS).unwrap();
        let entry = access_log::parse(&format!("{line}\n")).unwrap().remove(0);
        assert_eq!((entry.code, entry.upstream_host.as_deref()), (200, Some("10.244.0.11:8000")));
        assert_eq!(entry.request_id.as_deref(), Some("6825a76d-6853-4aad-8bc5-4f92bfb19dd5"));
        assert_eq!(entry.details.as_deref(), Some("via_upstream"));
    }

    #[test]
    fn lines_that_are_no_records_stay_in_the_log() {
        for source in [Source::Engine, Source::Envoy, Source::Picker] {
            assert_eq!(record(source, "[info] starting"), None);
            assert_eq!(record(source, r#"{"level":"info"}"#), None);
        }
        assert!(record(Source::Engine, r#"{"request_id":"a"}"#).is_some());
        assert_eq!(record(Source::Picker, r#"{"request_id":"a"}"#), None);
    }
}
