//! The tutorial's two requests, in the three forms that a shell makes of its `echo` commands.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde_json::Value;

/// The way in which a request file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Written by bash: `you're` and `I'm` lose their apostrophes.
    Bash,
    /// Written as intended.
    Quoted,
    /// Written by dash: `\n` becomes a line break, which is not valid in JSON.
    Dash,
}

impl Form {
    pub const ALL: [Self; 3] = [Self::Bash, Self::Quoted, Self::Dash];
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bash => "bash",
            Self::Quoted => "quoted",
            Self::Dash => "dash",
        })
    }
}

/// The request files of a manifests directory.
#[derive(Debug, Clone)]
pub struct Requests {
    dir: PathBuf,
}

impl Requests {
    /// Takes the requests of this directory.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Returns the file unchanged, as `curl --data-binary @file` sends it.
    pub fn raw(&self, form: Form, round: u32) -> Result<Bytes> {
        let path = self.dir.join(form.to_string()).join(format!("round{round}.txt"));
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(bytes.into())
    }

    /// Returns what `curl -d @file` sends: the file without carriage returns, line feeds and NULs.
    pub fn curl(&self, form: Form, round: u32) -> Result<Bytes> {
        Ok(strip(&self.raw(form, round)?))
    }

    /// Returns the properly quoted request as JSON, to build variants from.
    pub fn json(&self, round: u32) -> Result<Value> {
        serde_json::from_slice(&self.curl(Form::Quoted, round)?).context("parse the tutorial's request")
    }

    /// Returns the model that the tutorial asks for, the only thing that conversations share with its requests.
    pub fn model(&self) -> String {
        let request = self.json(1).ok();
        let model = request.as_ref().and_then(|request| request.get("model")?.as_str());
        model.unwrap_or("/model/qwen").to_owned()
    }

    /// Returns the request in the bash form as JSON.
    pub fn bash_json(&self, round: u32) -> Result<Value> {
        serde_json::from_slice(&self.curl(Form::Bash, round)?).context("parse the tutorial's request")
    }
}

fn strip(bytes: &[u8]) -> Bytes {
    bytes.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)).collect()
}

/// Returns the body of a request.
pub fn body(request: &Value) -> Bytes {
    request.to_string().into()
}

/// Returns the body of the request with a cache salt. vLLM shares blocks only between equal salts.
pub fn salted(request: &Value, salt: &str) -> Bytes {
    let mut request = request.clone();
    if let Some(fields) = request.as_object_mut() {
        fields.insert("cache_salt".to_owned(), salt.into());
    }
    body(&request)
}

#[cfg(test)]
mod tests {
    use super::{salted, strip};

    #[test]
    fn curl_strips_line_breaks_only() {
        assert_eq!(&strip(b"a\r\nb\0 \tc\n")[..], b"ab \tc");
    }

    #[test]
    fn a_salt_is_added_to_the_request() {
        let body = salted(&serde_json::json!({"model": "m"}), "s-1");
        assert_eq!(&body[..], br#"{"model":"m","cache_salt":"s-1"}"#);
    }
}
