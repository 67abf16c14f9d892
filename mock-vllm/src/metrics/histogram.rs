//! A histogram with fixed upper bounds.

#[derive(Clone, Debug)]
pub(super) struct Histogram {
    /// Upper bounds, rising, `+Inf` not included.
    bounds: Vec<f64>,
    /// Observations per bucket, not cumulative; one more than `bounds`.
    counts: Vec<u64>,
    sum: f64,
}

// === impl Histogram ===

impl Histogram {
    pub(super) fn new(bounds: &[f64]) -> Self {
        Self { bounds: bounds.to_vec(), counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    pub(super) fn observe(&mut self, value: f64) {
        let bucket_idx = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket_idx] += 1;
        self.sum += value;
    }

    /// Upper bound and observations at or below it, `+Inf` last.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        bounds.zip(&self.counts).scan(0, |n_below, (bound, count)| {
            *n_below += count;
            Some((bound, *n_below))
        })
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum
    }
}

/// 1, 2, 5, 10, 20, 50, … up to `max`.
pub(super) fn one_two_five(max: u32) -> Vec<f64> {
    let max = f64::from(max);
    let decades = (0..10_i32).map(|exponent| 10_f64.powi(exponent));
    decades
        .flat_map(|decade| [decade, 2.0 * decade, 5.0 * decade])
        .take_while(|bound| *bound <= max)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Histogram, one_two_five};

    #[test]
    fn a_value_on_a_bound_counts_below_it() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        [0.5, 1.0, 1.5, 7.0].into_iter().for_each(|value| histogram.observe(value));
        let cumulative: Vec<_> = histogram.cumulative().collect();
        assert_eq!(cumulative, [(1.0, 2), (2.0, 3), (f64::INFINITY, 4)]);
        assert!((histogram.sum() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn token_bounds_stop_at_the_context_length() {
        assert_eq!(one_two_five(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(one_two_five(8_192).last(), Some(&5_000.0));
    }
}
