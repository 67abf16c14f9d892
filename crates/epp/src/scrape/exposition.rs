//! The few gauges that the picker needs, out of an engine's Prometheus text.

/// What one answer says. Absent metrics are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// `vllm:num_requests_waiting`, summed over the engines of the process.
    pub waiting: u32,
    /// `vllm:num_requests_running`, summed likewise.
    pub running: u32,
    /// `vllm:kv_cache_usage_perc` (vLLM 0.10 and later) or `vllm:gpu_cache_usage_perc`; the fullest engine's.
    pub kv_usage: f64,
    /// `process_start_time_seconds`.
    pub started: Option<f64>,
}

/// Reads Prometheus or OpenMetrics text; lines that it does not know are skipped at the first letters.
#[must_use]
pub fn parse(body: &[u8]) -> Gauges {
    let mut gauges = Gauges::default();
    for line in body.split(|&byte| byte == b'\n') {
        if line.starts_with(b"vllm:") || line.starts_with(b"process_start_time_seconds") {
            read_line(line, &mut gauges);
        }
    }
    gauges
}

fn read_line(line: &[u8], gauges: &mut Gauges) {
    let name_end = line.iter().position(|byte| matches!(byte, b'{' | b' ')).unwrap_or(line.len());
    let (name, rest) = line.split_at(name_end);
    match name {
        b"vllm:num_requests_waiting" => gauges.waiting = gauges.waiting.saturating_add(count(rest)),
        b"vllm:num_requests_running" => gauges.running = gauges.running.saturating_add(count(rest)),
        b"vllm:kv_cache_usage_perc" | b"vllm:gpu_cache_usage_perc" => {
            gauges.kv_usage = gauges.kv_usage.max(value(rest).unwrap_or(0.0).clamp(0.0, 1.0));
        }
        b"process_start_time_seconds" => gauges.started = value(rest),
        _ => {}
    }
}

/// The value behind the labels; a timestamp may follow it.
fn value(rest: &[u8]) -> Option<f64> {
    let labels_end = rest.iter().rposition(|&byte| byte == b'}').map_or(0, |position| position + 1);
    let text = std::str::from_utf8(&rest[labels_end..]).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().filter(|value: &f64| !value.is_nan())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the range of u32 before"
)]
fn count(rest: &[u8]) -> u32 {
    value(rest).unwrap_or(0.0).clamp(0.0, f64::from(u32::MAX)) as u32
}
