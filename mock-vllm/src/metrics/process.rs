//! Metrics of the interpreter and of the process behind the pod, as Python's `prometheus_client` reports them. It
//! reports the process on Linux only.

use super::exposition::{Exposition, Labels, MetricHead, Series};
use std::fs;

/// Linux shows CPU time in hundredths of a second, whatever the kernel's tick (`USER_HZ`, proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;
/// Version of the interpreter in vLLM's images.
const PYTHON: [&str; 3] = ["3", "12", "12"];

/// One reading of `/proc/self`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProcessSample {
    pub virtual_memory_bytes: u64,
    pub resident_memory_bytes: u64,
    pub cpu_seconds: f64,
    pub open_fds: u64,
    pub max_fds: u64,
}

impl ProcessSample {
    /// Reads it; `None` on systems without `/proc`.
    #[must_use]
    pub fn read() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        Some(Self {
            virtual_memory_bytes: kib(&status, "VmSize:")? * 1024,
            resident_memory_bytes: kib(&status, "VmRSS:")? * 1024,
            cpu_seconds: cpu_seconds(&stat)?,
            open_fds: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
            max_fds: max_fds(&limits)?,
        })
    }

    /// Writes the metrics. `started` is the pod's start as Unix time in seconds; a router that sees it change knows of
    /// a restart.
    pub(super) fn render(&self, out: &mut Exposition<'_>, started: f64) {
        let Self { virtual_memory_bytes, resident_memory_bytes, cpu_seconds, open_fds, max_fds } = *self;
        gauge(
            out,
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            virtual_memory_bytes as f64,
        );
        let help = "Resident memory size in bytes.";
        gauge(out, "process_resident_memory_bytes", help, resident_memory_bytes as f64);
        let help = "Start time of the process since unix epoch in seconds.";
        gauge(out, "process_start_time_seconds", help, started);
        let help = "Total user and system CPU time spent in seconds.";
        out.counter(
            MetricHead { name: "process_cpu_seconds", help },
            &[read(Labels::default(), cpu_seconds)],
        );
        gauge(out, "process_open_fds", "Number of open file descriptors.", open_fds as f64);
        gauge(out, "process_max_fds", "Maximum number of open file descriptors.", max_fds as f64);
    }
}

/// Writes what dashboards of Python services ask for. There is no garbage collector here, so its counters stay 0.
pub(super) fn render_python(out: &mut Exposition<'_>) {
    let counters = [
        ("python_gc_objects_collected", "Objects collected during gc"),
        ("python_gc_objects_uncollectable", "Uncollectable objects found during GC"),
        ("python_gc_collections", "Number of times this generation was collected"),
    ];
    let generations =
        ["0", "1", "2"].map(|generation| read(Labels::new([("generation", generation.to_owned())]), 0.0));
    for (name, help) in counters {
        out.counter(MetricHead { name, help }, &generations);
    }
    let [major, minor, patchlevel] = PYTHON;
    let labels = Labels::new([
        ("implementation", "CPython".to_owned()),
        ("major", major.to_owned()),
        ("minor", minor.to_owned()),
        ("patchlevel", patchlevel.to_owned()),
        ("version", PYTHON.join(".")),
    ]);
    let help = "Python platform information";
    out.gauge(MetricHead { name: "python_info", help }, &[read(labels, 1.0)]);
}

fn gauge(out: &mut Exposition<'_>, name: &str, help: &str, value: f64) {
    out.gauge(MetricHead { name, help }, &[read(Labels::default(), value)]);
}

fn read(labels: Labels, value: f64) -> Series<f64> {
    Series { labels, value, created: None }
}

fn kib(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Sums up fields 14 and 15. They are counted from the last `)`, because the program's name before it may contain
/// anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{cpu_seconds, kib, max_fds};

    #[test]
    fn fields_are_found_whatever_the_program_is_called() {
        let stat = "42 (a) (b)) S 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 3 0 1000 1 1";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("42 (cut"), None);
        assert_eq!(kib("VmPeak:\t 9 kB\nVmRSS:\t  2048 kB\n", "VmRSS:"), Some(2048));
        assert_eq!(
            max_fds("Max open files            1024                 4096                 files\n"),
            Some(1024)
        );
    }
}
