//! The text format of Prometheus as Python's `prometheus_client` 0.2x writes it: labels sorted by name, every value a float,
//! counters under `_total`, and a `_created` gauge beside each counter and histogram.

use super::histogram::Histogram;
use std::collections::BTreeMap;
use std::fmt::Write;

#[derive(Clone, Debug)]
pub(super) struct Labels(BTreeMap<String, String>);

#[derive(Debug)]
pub(super) struct Exposition {
    text: String,
    created: f64,
}

// === impl Labels ===

impl Labels {
    pub(super) fn new(labels: &[(&str, &str)]) -> Self {
        Self(labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    pub(super) fn with(&self, name: &str, value: &str) -> Self {
        let mut labels = self.clone();
        labels.0.insert(name.to_owned(), value.to_owned());
        labels
    }
}

impl std::fmt::Display for Labels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (label_idx, (name, value)) in self.0.iter().enumerate() {
            let separator = if label_idx == 0 { '{' } else { ',' };
            let value = value.replace('\\', r"\\").replace('\n', r"\n").replace('"', "\\\"");
            write!(f, "{separator}{name}=\"{value}\"")?;
        }
        f.write_str(if self.0.is_empty() { "" } else { "}" })
    }
}

// === impl Exposition ===

impl Exposition {
    pub(super) fn new(created: f64) -> Self {
        Self { text: String::new(), created }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, samples: &[(Labels, f64)]) {
        self.head(name, help, "gauge");
        for (labels, value) in samples {
            self.sample(name, labels, *value);
        }
    }

    /// `name` without `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str, samples: &[(Labels, u64)]) {
        let total = format!("{name}_total");
        self.head(&total, help, "counter");
        for (labels, value) in samples {
            self.sample(&total, labels, *value as f64);
        }
        self.created(name, help, samples.iter().map(|(labels, _)| labels));
    }

    /// A counter that is not moved by this program and so has no `_created`; `name` with `_total`.
    pub(super) fn plain_counter(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, "counter");
        self.sample(name, &Labels::new(&[]), value);
    }

    pub(super) fn histogram(&mut self, name: &str, help: &str, labels: &Labels, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (bound, n_below) in histogram.cumulative() {
            self.sample(&bucket, &labels.with("le", &float(bound)), n_below as f64);
            count = n_below;
        }
        self.sample(&format!("{name}_count"), labels, count as f64);
        self.sample(&format!("{name}_sum"), labels, histogram.sum());
        self.created(name, help, [labels].into_iter());
    }

    fn created<'a>(&mut self, name: &str, help: &str, labels: impl Iterator<Item = &'a Labels>) {
        let created = format!("{name}_created");
        self.head(&created, help, "gauge");
        for labels in labels {
            self.sample(&created, labels, self.created);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &Labels, value: f64) {
        self.line(format_args!("{name}{labels} {}", float(value)));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a String takes any text");
    }
}

/// Python's `repr` of a float, but an exponent as soon as the whole part has more than six digits.
fn float(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if value.is_nan() {
        return "NaN".to_owned();
    }
    let text = format!("{value:?}");
    let Some(dot) = text.find('.').filter(|dot| value > 0.0 && *dot > 6 && !text.contains('e')) else {
        return text;
    };
    let mantissa = format!("{}.{}{}", &text[..1], &text[1..dot], &text[dot + 1..]);
    format!("{}e+{:02}", mantissa.trim_end_matches(['0', '.']), dot - 1)
}

#[cfg(test)]
mod tests {
    use super::{Labels, float};

    #[test]
    fn floats_are_spelled_as_python_spells_them() {
        let check = |value: f64, expected: &str| assert_eq!(float(value), expected);
        check(0.0, "0.0");
        check(0.001, "0.001");
        check(16_384.0, "16384.0");
        check(1_234_567.0, "1.234567e+06");
        check(1_750_000_000.5, "1.7500000005e+09");
        check(2_000_000.0, "2e+06");
        check(f64::INFINITY, "+Inf");
    }

    #[test]
    fn labels_are_sorted_and_escaped() {
        let labels = Labels::new(&[("model_name", "a\"b\\c"), ("engine", "0")]).with("le", "0.5");
        assert_eq!(labels.to_string(), r#"{engine="0",le="0.5",model_name="a\"b\\c"}"#);
    }
}
