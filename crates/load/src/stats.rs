//! Statistics of small samples. Samples need not be sorted; an empty sample has no statistics.

/// Returns the value below which a share `q` (0..=1) of the sample lies, by Hyndman and Fan's definition 7: numpy, pandas
/// and so vLLM's benchmarks have it, and statrs has only definition 8, with other percentiles for small samples.
pub fn quantile(sample: &[f64], q: f64) -> Option<f64> {
    let mut sorted = sample.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let position = q.clamp(0.0, 1.0) * as_f64(last);
    let below = position.floor();
    let fraction = position - below;
    let mut around =
        sorted.iter().enumerate().filter(|(idx, _)| as_f64(*idx) >= below).map(|(_, value)| *value);
    let low = around.next()?;
    let high = around.next().unwrap_or(low);
    Some(low + (high - low) * fraction)
}

pub fn median(sample: &[f64]) -> Option<f64> {
    quantile(sample, 0.5)
}

pub fn mean(sample: &[f64]) -> Option<f64> {
    (!sample.is_empty()).then(|| sample.iter().sum::<f64>() / as_f64(sample.len()))
}

/// Converts to the nearest float, which is exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "the nearest float is what is wanted")]
pub fn as_f64(count: usize) -> f64 {
    count as f64
}

/// Converts to milliseconds, for reports.
pub fn millis(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::{as_f64, mean, median, quantile};

    #[test]
    fn quantiles_interpolate_and_ignore_order() {
        let sample = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&sample), Some(2.5));
        assert_eq!(quantile(&sample, 0.0), Some(1.0));
        assert_eq!(quantile(&sample, 1.0), Some(4.0));
        assert_eq!(quantile(&sample, 1.0 / 3.0), Some(2.0));
        assert_eq!(mean(&sample), Some(2.5));
    }

    #[test]
    fn counts_beyond_32_bits_are_themselves() {
        assert!((as_f64(3 << 32) - 12_884_901_888.0).abs() < f64::EPSILON);
    }

    #[test]
    fn an_empty_sample_has_no_statistics() {
        assert_eq!((median(&[]), mean(&[])), (None, None));
    }
}
