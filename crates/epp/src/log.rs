//! The log, in zap's console format: tabs, RFC 3339 seconds, `{"key": "value"}`.
//!
//! ```text
//! 2025-05-23T03:33:09Z⇥INFO⇥director/note.rs:181⇥Do prefix-aware routing!⇥{"request": "v68m4zx472", …}
//! ```
//! Each event is one `write_all`, so lines of different threads never mix. A separate thread writes them to stderr.

mod queue;

use std::fmt;
use std::io::Write;
use std::str::FromStr;
use std::time::SystemTime;

use parking_lot::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, warn};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

pub use self::queue::Log;
use self::queue::Queue;

/// The level to log: `info`, or levels by module as in `warn,epp=debug,epp::director=trace`.
#[derive(Clone, Debug)]
pub struct Filter(Targets);

impl FromStr for Filter {
    type Err = tracing_subscriber::filter::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// Installs the log for the whole process, on stderr.
///
/// # Errors
/// If the process already has a log, or no thread can be started for it.
pub fn init(filter: &Filter) -> anyhow::Result<Log> {
    let for_losses = filter.clone();
    let tell = move |n_lines| {
        let direct = subscriber(&for_losses, wall_clock, std::io::stderr());
        let told = || warn!(n_lines, "Dropped lines of the log: nobody read it");
        tracing::subscriber::with_default(direct, told);
    };
    let (queue, log) = Queue::start(std::io::stderr(), tell)?;
    let layer = LogLayer { clock: wall_clock, writer: Mutex::new(queue) };
    tracing_subscriber::registry().with(layer.with_filter(filter.0.clone())).try_init()?;
    Ok(log)
}

/// A subscriber that writes to `writer` and takes the time from `clock`, for tests.
pub fn subscriber<W: Write + Send + 'static>(
    filter: &Filter,
    clock: fn() -> SystemTime,
    writer: W,
) -> impl Subscriber + Send + Sync {
    let layer = LogLayer { clock, writer: Mutex::new(writer) };
    tracing_subscriber::registry().with(layer.with_filter(filter.0.clone()))
}

struct LogLayer<W> {
    clock: fn() -> SystemTime,
    writer: Mutex<W>,
}

impl<S, W> Layer<S> for LogLayer<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + Send + 'static,
{
    fn on_event(&self, event: &Event<'_>, _ctx: Context<'_, S>) {
        let mut fields = FieldWriter::default();
        event.record(&mut fields);
        let line = console_line((self.clock)(), event.metadata(), &fields);
        // There is no place to report that the log cannot be written.
        let _ = self.writer.lock().write_all(line.as_bytes());
    }
}

/// Collects the message, and the other fields as the inside of a JSON object with zap's spacing.
#[derive(Default)]
struct FieldWriter {
    message: String,
    fields: String,
}

impl FieldWriter {
    fn key(&mut self, field: &Field) {
        if !self.fields.is_empty() {
            self.fields.push_str(", ");
        }
        push_quoted(&mut self.fields, field.name());
        self.fields.push_str(": ");
    }

    fn raw(&mut self, field: &Field, value: &dyn fmt::Display) {
        self.key(field);
        self.fields.push_str(&value.to_string());
    }
}

impl Visit for FieldWriter {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.record_str(field, &text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
            return;
        }
        self.key(field);
        push_quoted(&mut self.fields, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.raw(field, &value);
        } else {
            self.record_str(field, &value.to_string());
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.raw(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.raw(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.raw(field, &value);
    }
}

fn console_line(now: SystemTime, metadata: &Metadata<'_>, fields: &FieldWriter) -> String {
    let mut line = format!(
        "{}\t{}\t{}\t{}",
        timestamp(now),
        console_level(*metadata.level()),
        caller(metadata),
        fields.message
    );
    if !fields.fields.is_empty() {
        line.push_str("\t{");
        line.push_str(&fields.fields);
        line.push('}');
    }
    line.push('\n');
    line
}

/// Formats the time like zap's `RFC3339TimeEncoder`: RFC 3339 in UTC, whole seconds.
fn timestamp(now: SystemTime) -> String {
    let now = OffsetDateTime::from(now);
    now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default()
}

/// The level's name, as zap prints logr's levels: V(1) is DEBUG, V(2) has no name.
fn console_level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARN",
        Level::INFO => "INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "LEVEL(-2)",
    }
}

/// The caller in zap's short form, `dir/file.rs:LINE`. The crate's name replaces `src`, which would say nothing.
fn caller(metadata: &Metadata<'_>) -> String {
    let file = metadata.file().unwrap_or("unknown");
    let mut parts = file.rsplit(['/', '\\']);
    let name = parts.next().unwrap_or(file);
    let line = metadata.line().unwrap_or(0);
    match parts.find(|part| *part != "src") {
        Some(directory) => format!("{directory}/{name}:{line}"),
        None => format!("{name}:{line}"),
    }
}

/// Quotes text like zap's `safeAddString`: escapes quotes, backslashes and control characters only.
fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            plain => out.push(plain),
        }
    }
    out.push('"');
}

#[expect(clippy::disallowed_methods, reason = "the log is an edge: it stamps events with the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
