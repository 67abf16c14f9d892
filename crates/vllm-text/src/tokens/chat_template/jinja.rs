//! Environment for chat templates like that of transformers, on top of minijinja: block trimming, loop controls,
//! Python's methods and spellings, `raise_exception`, `strftime_now`, `tojson`, `{% generation %}`.

use crate::python_text::{self, JsonStyle};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use minijinja_contrib::pycompat;
use regex::{Captures, Regex};
use std::sync::LazyLock;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description;

/// Most instructions of one rendering; a chat of a million tokens takes about a tenth. vLLM has a time limit instead
/// (`VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT`).
const FUEL: u64 = 10_000_000;

/// Error that a template raised itself, whose text is for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Makes the environment. `now` returns the time since 1970, for `strftime_now`.
pub(super) fn environment(now: fn() -> Duration) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the delimiters are Jinja's"),
    );
    environment.set_fuel(Some(FUEL));
    environment.set_formatter(write_str);
    environment.set_unknown_method_callback(call_method);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", move |format: String| strftime(now(), &format));
    environment
}

/// Adapts a source where Jinja and minijinja differ: in line ends, and in `{% generation %}` blocks, which mark
/// generated text and do not change it.
pub(super) fn portable(source: &str) -> String {
    static GENERATION: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})").expect("the pattern is valid")
    });
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let replace = |found: &Captures<'_>| {
        let word = if found.get(2).is_some() { "endif" } else { "if true" };
        format!("{}{word}{}", &found[1], &found[3])
    };
    GENERATION.replace_all(&source, replace).into_owned()
}

/// Returns what vLLM reports to the client about a failed template.
pub(super) fn reason(error: &Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return message.clone();
        }
        cause = current.source();
    }
    match (error.detail(), error.line()) {
        (Some(detail), Some(line)) => format!("{detail} (line {line} of the chat template)"),
        (Some(detail), None) => detail.to_owned(),
        (None, Some(line)) => format!("{} (line {line} of the chat template)", error.kind()),
        (None, None) => error.kind().to_string(),
    }
}

/// Writes a value like `str(value)`.
fn write_str(output: &mut Output<'_>, _state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return Ok(output.write_str(text)?);
    }
    let text = match value.kind() {
        ValueKind::Undefined => return Ok(()),
        ValueKind::None
        | ValueKind::Bool
        | ValueKind::Number
        | ValueKind::Seq
        | ValueKind::Map
        | ValueKind::Iterable => python_text::repr(&plain(value)?),
        _ => value.to_string(),
    };
    Ok(output.write_str(&text)?)
}

fn plain(value: &Value) -> Result<serde_json::Value, Error> {
    serde_json::to_value(value).map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// Filter of transformers: not HTML-safe, Unicode unchanged, with the arguments of `json.dumps`.
fn to_json(value: &Value, args: Kwargs) -> Result<Value, Error> {
    let style = JsonStyle::unicode();
    let indent: Option<Value> = args.get("indent")?;
    let indent = match indent {
        Some(indent) if !indent.is_none() => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?),
        }),
        Some(_) | None => None,
    };
    let separators: Option<Serde<(String, String)>> = args.get("separators")?;
    let (item_separator, key_separator) = match (separators, &indent) {
        (Some(Serde(separators)), _) => separators,
        (None, Some(_)) => (",".to_owned(), style.key_separator.clone()),
        (None, None) => (style.item_separator.clone(), style.key_separator.clone()),
    };
    let ensure_ascii: Option<bool> = args.get("ensure_ascii")?;
    let sort_keys: Option<bool> = args.get("sort_keys")?;
    args.assert_all_used()?;
    let style = JsonStyle {
        ensure_ascii: ensure_ascii.unwrap_or_default(),
        indent,
        item_separator,
        key_separator,
        sort_keys: sort_keys.unwrap_or_default(),
    };
    Ok(Value::from(style.dumps(&plain(value)?)))
}

fn strftime(now: Duration, format: &str) -> Result<String, Error> {
    let failed =
        |error: String| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}"));
    let items =
        format_description::parse_strftime_owned(format).map_err(|error| failed(error.to_string()))?;
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| OffsetDateTime::from_unix_timestamp(now).ok());
    let now = now.ok_or_else(|| failed("the clock is beyond year 9999".to_owned()))?;
    now.format(&items).map_err(|error| failed(error.to_string()))
}

/// Calls Python's methods of strings, lists and dictionaries: those of `minijinja-contrib`, and others that templates
/// use.
fn call_method(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.as_str(), method) {
        (Some(text), "rsplit") => {
            let (separator, n_max): (Option<&str>, Option<i64>) = from_args(args)?;
            Ok(rsplit(text, separator, n_max).into_iter().map(Value::from).collect())
        }
        (Some(text), "partition") => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) =
                text.split_once(separator).map_or((text, None), |(before, after)| (before, Some(after)));
            let separator = if after.is_some() { separator } else { "" };
            Ok([before, separator, after.unwrap_or_default()].into_iter().map(Value::from).collect())
        }
        (Some(text), "removeprefix") => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        (Some(text), "removesuffix") => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        (_, _) => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn rsplit<'a>(text: &'a str, separator: Option<&str>, n_max: Option<i64>) -> Vec<&'a str> {
    let n_max = n_max.and_then(|n_max| usize::try_from(n_max).ok()).unwrap_or(usize::MAX);
    let n_pieces = n_max.saturating_add(1);
    let mut pieces: Vec<&str> = match separator {
        Some(separator) => text.rsplitn(n_pieces, separator).collect(),
        None => {
            let mut pieces = Vec::new();
            let mut rest = text.trim();
            while !rest.is_empty() && pieces.len() < n_max {
                let Some((before, last)) = rest.rsplit_once(char::is_whitespace) else { break };
                pieces.push(last);
                rest = before.trim_end();
            }
            if !rest.is_empty() {
                pieces.push(rest);
            }
            pieces
        }
    };
    pieces.reverse();
    pieces
}
