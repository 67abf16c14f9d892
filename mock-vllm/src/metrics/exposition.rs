//! Text formats as Python's `prometheus_client` 0.26 writes them: labels are sorted by name, every value is a float,
//! counters end in `_total`, and each counter, histogram and summary has a `_created` series beside it.

use super::histogram::Histogram;
use std::borrow::Cow;
use std::fmt::Write;

/// Content type of `prometheus_client` 0.22 and later.
pub const CONTENT_TYPE: &str = "text/plain; version=1.0.0; charset=utf-8";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

/// Labels, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels(Vec<(&'static str, Cow<'static, str>)>);

/// One series of a family, with the Unix time of its creation in seconds; `None` for a series that is only read here.
#[derive(Clone, Debug)]
pub(super) struct Series<T> {
    pub(super) labels: Labels,
    pub(super) value: T,
    pub(super) created: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct MetricHead<'a> {
    /// Name, without the `_total` of a counter.
    pub(super) name: &'a str,
    pub(super) help: &'a str,
}

#[derive(Debug)]
pub(super) struct Exposition<'a> {
    text: String,
    format: Format,
    /// Full names of the samples to write; empty for all.
    only: &'a [String],
    /// `_created` samples of the family that is being written, which the text format puts after the others.
    created: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
    Histogram,
    Summary,
}

// === impl Labels ===

impl Labels {
    pub(super) fn new(labels: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        let mut labels: Vec<_> = labels.into_iter().map(|(name, value)| (name, Cow::Owned(value))).collect();
        labels.sort_by_key(|(name, _)| *name);
        Self(labels)
    }

    pub(super) fn with(&self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        let mut labels = self.0.clone();
        labels.insert(labels.partition_point(|(other, _)| *other < name), (name, value.into()));
        Self(labels)
    }

    /// Writes `{a="1",b="2"}`, with `extra` in its place; nothing if there are no labels.
    fn write(&self, out: &mut String, extra: Option<(&str, &str)>) {
        let place = extra.map(|(name, _)| self.0.partition_point(|(other, _)| *other < name));
        let mut separator = '{';
        let mut push = |out: &mut String, name: &str, value: &str| {
            out.push(separator);
            separator = ',';
            out.push_str(name);
            out.push_str("=\"");
            escape(out, value, true);
            out.push('"');
        };
        for (idx, (name, value)) in self.0.iter().enumerate() {
            if let Some((extra_name, extra_value)) = extra.filter(|_| place == Some(idx)) {
                push(out, extra_name, extra_value);
            }
            push(out, name, value);
        }
        if let Some((extra_name, extra_value)) = extra.filter(|_| place == Some(self.0.len())) {
            push(out, extra_name, extra_value);
        }
        if separator == ',' {
            out.push('}');
        }
    }
}

// === impl Format ===

impl Format {
    /// Returns the format that an `Accept` header asks for, and the `Content-Type` of the answer.
    pub fn negotiate(accept: &str) -> (Self, String) {
        const OPEN_METRICS: &str = "application/openmetrics-text";
        for accepted in accept.split(',') {
            let mut tokens = accepted.split(';').map(str::trim);
            let media_type = tokens.next().unwrap_or_default();
            let parameters: Vec<_> = tokens.filter_map(|token| token.split_once('=')).collect();
            let parameter =
                |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            let version = parameter("version").filter(|version| !version.is_empty());
            let is_modern = version.is_some_and(|version| {
                version.split('.').map_while(|part| part.parse().ok()).collect::<Vec<u32>>() >= vec![1, 0, 0]
            });
            // All names are plain, so that they look the same with every scheme.
            let escaping = parameter("escaping")
                .filter(|scheme| ["allow-utf-8", "underscores", "dots", "values"].contains(scheme))
                .unwrap_or("underscores");
            match (media_type, version) {
                (OPEN_METRICS, None) => {
                    return (Self::OpenMetrics, format!("{OPEN_METRICS}; version=1.0.0; charset=utf-8"));
                }
                (OPEN_METRICS, Some(version)) if is_modern => {
                    let escaping = format!("charset=utf-8; escaping={escaping}");
                    return (Self::OpenMetrics, format!("{OPEN_METRICS}; version={version}; {escaping}"));
                }
                ("text/plain", Some(_)) if is_modern => {
                    return (Self::Text, format!("{CONTENT_TYPE}; escaping={escaping}"));
                }
                _ => {}
            }
        }
        (Self::Text, "text/plain; version=0.0.4; charset=utf-8".to_owned())
    }
}

// === impl Exposition ===

impl<'a> Exposition<'a> {
    pub(super) fn new(format: Format, only: &'a [String]) -> Self {
        Self { text: String::with_capacity(80 << 10), format, only, created: String::new() }
    }

    pub(super) fn into_text(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    pub(super) fn gauge<'s>(
        &mut self,
        head: MetricHead<'_>,
        series: impl IntoIterator<Item = &'s Series<f64>>,
    ) {
        self.family(Kind::Gauge, head, |out| {
            series
                .into_iter()
                .for_each(|Series { labels, value, created: _ }| out.sample(head.name, labels, *value));
        });
    }

    pub(super) fn counter<'s>(
        &mut self,
        head: MetricHead<'_>,
        series: impl IntoIterator<Item = &'s Series<f64>>,
    ) {
        let total = format!("{}_total", head.name);
        self.family(Kind::Counter, head, |out| {
            for Series { labels, value, created } in series {
                out.sample(&total, labels, *value);
                out.created(head.name, labels, *created);
            }
        });
    }

    pub(super) fn histogram<'s>(
        &mut self,
        head: MetricHead<'_>,
        series: impl IntoIterator<Item = &'s Series<&'s Histogram>>,
    ) {
        let [bucket, count, sum] = ["bucket", "count", "sum"].map(|suffix| format!("{}_{suffix}", head.name));
        self.family(Kind::Histogram, head, |out| {
            for Series { labels, value, created } in series {
                let mut n_all = 0;
                for (bound, n_below) in value.cumulative() {
                    out.sample_with(&bucket, labels, Some(("le", &float(bound))), n_below as f64);
                    n_all = n_below;
                }
                out.sample(&count, labels, n_all as f64);
                out.sample(&sum, labels, value.sum());
                out.created(head.name, labels, *created);
            }
        });
    }

    /// Writes the count and the sum of each series.
    pub(super) fn summary<'s>(
        &mut self,
        head: MetricHead<'_>,
        series: impl IntoIterator<Item = &'s Series<(u64, f64)>>,
    ) {
        let [count, sum] = ["count", "sum"].map(|suffix| format!("{}_{suffix}", head.name));
        self.family(Kind::Summary, head, |out| {
            for Series { labels, value: (n_all, total), created } in series {
                out.sample(&count, labels, *n_all as f64);
                out.sample(&sum, labels, *total);
                out.created(head.name, labels, *created);
            }
        });
    }

    fn family(&mut self, kind: Kind, head: MetricHead<'_>, samples: impl FnOnce(&mut Self)) {
        let MetricHead { name, help } = head;
        let start = self.text.len();
        let suffix = if kind == Kind::Counter && self.format == Format::Text { "_total" } else { "" };
        self.head(&format!("{name}{suffix}"), help, kind);
        let head_end = self.text.len();
        samples(self);
        let created = std::mem::take(&mut self.created);
        if !self.only.is_empty() && self.text.len() == head_end && created.is_empty() {
            self.text.truncate(start);
            return;
        }
        if !created.is_empty() {
            self.head(&format!("{name}_created"), help, Kind::Gauge);
            self.text.push_str(&created);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: Kind) {
        let quotes = self.format == Format::OpenMetrics;
        self.text.push_str("# HELP ");
        self.text.push_str(name);
        self.text.push(' ');
        escape(&mut self.text, help, quotes);
        writeln!(self.text, "\n# TYPE {name} {}", kind.as_str()).expect("a String takes any text");
    }

    fn sample(&mut self, name: &str, labels: &Labels, value: f64) {
        self.sample_with(name, labels, None, value);
    }

    fn sample_with(&mut self, name: &str, labels: &Labels, extra: Option<(&str, &str)>, value: f64) {
        if self.wants(name) {
            write_sample(&mut self.text, name, labels, extra, value);
        }
    }

    fn created(&mut self, name: &str, labels: &Labels, created: Option<f64>) {
        let Some(created) = created else { return };
        let name = format!("{name}_created");
        if self.wants(&name) {
            let out = match self.format {
                Format::Text => &mut self.created,
                Format::OpenMetrics => &mut self.text,
            };
            write_sample(out, &name, labels, None, created);
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|wanted| wanted == name)
    }
}

// === impl Kind ===

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
            Self::Summary => "summary",
        }
    }
}

fn write_sample(out: &mut String, name: &str, labels: &Labels, extra: Option<(&str, &str)>, value: f64) {
    out.push_str(name);
    labels.write(out, extra);
    out.push(' ');
    out.push_str(&float(value));
    out.push('\n');
}

fn escape(out: &mut String, text: &str, quotes: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str(r"\\"),
            '\n' => out.push_str(r"\n"),
            '"' if quotes => out.push_str("\\\""),
            _ => out.push(c),
        }
    }
}

/// Writes a float like Python's `repr`, but with an exponent if its whole part has more than six digits.
pub(crate) fn float(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if value.is_nan() {
        return "NaN".to_owned();
    }
    let text = format!("{value:?}");
    if let Some((mantissa, exponent)) = text.split_once('e') {
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    let Some(dot) = text.find('.').filter(|dot| value > 0.0 && *dot > 6) else { return text };
    let mantissa = format!("{}.{}{}", &text[..1], &text[1..dot], &text[dot + 1..]);
    format!("{}e+{:02}", mantissa.trim_end_matches(['0', '.']), dot - 1)
}

#[cfg(test)]
mod tests {
    use super::{Format, Labels, float};

    #[test]
    fn floats_are_spelled_as_python_spells_them() {
        let check = |value: f64, expected: &str| assert_eq!(float(value), expected);
        check(0.0, "0.0");
        check(0.001, "0.001");
        check(0.000_05, "5e-05");
        check(0.000_012_5, "1.25e-05");
        check(16_384.0, "16384.0");
        check(1_234_567.0, "1.234567e+06");
        check(1_750_000_000.5, "1.7500000005e+09");
        check(2_000_000.0, "2e+06");
        check(1e16, "1e+16");
        check(f64::INFINITY, "+Inf");
    }

    #[test]
    fn labels_are_sorted_and_escaped() {
        let labels = Labels::new([("model_name", "a\"b\\c".to_owned()), ("engine", "0".to_owned())])
            .with("reason", "x");
        let mut text = String::new();
        labels.write(&mut text, Some(("le", "0.5")));
        assert_eq!(text, r#"{engine="0",le="0.5",model_name="a\"b\\c",reason="x"}"#);
        text.clear();
        Labels::default().write(&mut text, None);
        assert_eq!(text, "");
        Labels::default().write(&mut text, Some(("le", "1.0")));
        assert_eq!(text, r#"{le="1.0"}"#);
    }

    #[test]
    fn the_format_is_what_the_client_accepts() {
        let check = |accept: &str, format: Format, content_type: &str| {
            assert_eq!(Format::negotiate(accept), (format, content_type.to_owned()), "{accept}");
        };
        let plain = "text/plain; version=0.0.4; charset=utf-8";
        check("", Format::Text, plain);
        check("*/*", Format::Text, plain);
        check("text/plain;version=0.0.4", Format::Text, plain);
        check(
            "application/openmetrics-text",
            Format::OpenMetrics,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        );
        check("application/openmetrics-text;version=0.0.1;q=0.75", Format::Text, plain);
        check(
            "text/html, application/openmetrics-text; version=1.0.0; escaping=allow-utf-8;q=0.6",
            Format::OpenMetrics,
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
        );
        check(
            "text/plain;version=1.0.0;escaping=dots",
            Format::Text,
            "text/plain; version=1.0.0; charset=utf-8; escaping=dots",
        );
    }
}
