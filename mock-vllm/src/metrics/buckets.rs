//! Upper bounds of vLLM's histograms, from 0.33 `v1/metrics/buckets.py`; earlier versions have the same ones in
//! `loggers.py`.

/// Bounds of seconds to the first token.
pub(super) const TIME_TO_FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Bounds of seconds per output token.
pub(super) const INTER_TOKEN_LATENCY: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Bounds of seconds of a request or of one of its phases.
pub(super) const REQUEST_LATENCY: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Bounds of tokens in one step.
pub(super) const ITERATION_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
pub(super) const REQUEST_PARAMS_N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
pub(super) const REQUEST_NUM_PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// Returns bounds of tokens of a request: 1, 2, 5, 10, 20, 50, … up to `max_model_len`.
pub(super) fn request_tokens(max_model_len: u32) -> Vec<f64> {
    let max = f64::from(max_model_len);
    let decades = (0..10_i32).map(|exponent| 10_f64.powi(exponent));
    decades
        .flat_map(|decade| [decade, 2.0 * decade, 5.0 * decade])
        .take_while(|bound| *bound <= max)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::request_tokens;

    #[test]
    fn token_bounds_stop_at_the_context_length() {
        assert_eq!(request_tokens(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(request_tokens(8_192).last(), Some(&5_000.0));
    }
}
