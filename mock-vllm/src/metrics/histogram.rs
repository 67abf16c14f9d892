//! A histogram with fixed upper bounds.

#[derive(Clone, Debug)]
pub(super) struct Histogram {
    /// Upper bounds in rising order, without `+Inf`.
    bounds: Vec<f64>,
    /// Observations per bucket, not cumulative; one more bucket than `bounds`.
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

    /// Returns each upper bound with the number of observations at or below it; `+Inf` comes last.
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

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn a_value_on_a_bound_counts_below_it() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        [0.5, 1.0, 1.5, 7.0].into_iter().for_each(|value| histogram.observe(value));
        let cumulative: Vec<_> = histogram.cumulative().collect();
        assert_eq!(cumulative, [(1.0, 2), (2.0, 3), (f64::INFINITY, 4)]);
        assert!((histogram.sum() - 10.0).abs() < 1e-9);
    }
}
