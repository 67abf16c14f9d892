//! Envoy's access log: one JSON object per line, with the keys that the local provider configures.

use serde::Deserialize;

/// One finished request as Envoy saw it. Both `-` and null in the log mean that a value is absent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AccessEntry {
    pub path: Option<String>,
    pub code: u16,
    pub flags: Option<String>,
    pub details: Option<String>,
    pub request_id: Option<String>,
    pub upstream_cluster: Option<String>,
    pub upstream_host: Option<String>,
    pub attempts: Option<u32>,
    pub picked: Option<String>,
    pub served: Option<String>,
}

impl AccessEntry {
    /// True for an answer with success that ended as the server meant it to.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        (200..300).contains(&self.code) && self.flags.as_deref().is_none_or(|flags| flags == "-")
    }
}

/// Returns the entries of a log file. An unreadable line is an error with its number.
pub fn parse(text: &str) -> Result<Vec<AccessEntry>, String> {
    complete_lines(text)
        .enumerate()
        .map(|(idx, line)| serde_json::from_str(line).map_err(|error| format!("line {}: {error}", idx + 1)))
        .collect()
}

/// Returns the lines that end with a newline; Envoy may still be writing the last one.
pub fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lines_are_read_up_to_the_one_being_written() {
        let log = concat!(
            r#"{"start_time":"2026-01-01T00:00:00.000Z","method":"POST","path":"/v1/chat/completions","code":200,"flags":"-","details":"via_upstream","duration_ms":171,"ttfb_ms":127,"bytes_in":537,"bytes_out":900,"request_id":"r-1","upstream_cluster":"httproute/default/qwen-backend/rule/0","upstream_host":"127.0.0.1:18001","attempts":1,"picked":"127.0.0.1:18001","served":"127.0.0.1:18001","ext_proc":null}"#,
            "\n",
            r#"{"code":500,"request_id":null,"upstream_host":null,"attempts":null,"picked":null}"#,
            "\n{\"code\":"
        );
        let entries = parse(log).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].upstream_host.as_deref(), Some("127.0.0.1:18001"));
        assert_eq!((entries[1].code, entries[1].picked.as_deref()), (500, None));
    }

    #[test]
    fn a_broken_line_is_named() {
        assert!(parse("{\"code\":200}\nnot json\n").unwrap_err().starts_with("line 2"));
    }
}
