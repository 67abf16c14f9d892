//! Plot of the times to first token: one cumulative curve for each path.

use std::fmt::Write as _;

use load::plot::{Axis, Plot, Size};
use load::stats::{as_f64, median};

use crate::report::Side;

/// Plots the cumulative share of requests over TTFT; `None` without samples.
pub(super) fn cumulative(sides: &[Side], size: Size) -> Option<String> {
    let longest = sides.iter().flat_map(|side| side.ttft_ms.iter().copied()).fold(0.0, f64::max);
    if longest <= 0.0 {
        return None;
    }
    let x = Axis::up_to(longest, if size.width > 500.0 { 8.0 } else { 4.0 });
    let title = "Cumulative distribution of the time to first token";
    let mut plot = Plot::new(title, size, (x, "time to first token, ms"), Axis::SHARES);
    for (idx, side) in sides.iter().enumerate().rev() {
        draw(&mut plot, idx, side);
    }
    Some(plot.finish())
}

/// Draws a side's curve, and a dot at its median.
fn draw(plot: &mut Plot, idx: usize, side: &Side) {
    let mut sorted = side.ttft_ms.clone();
    sorted.sort_by(f64::total_cmp);
    let mut path = format!("M{:.1} {:.1}", plot.x(0.0), plot.y(0.0));
    for (rank, ms) in sorted.iter().enumerate() {
        let share = as_f64(rank + 1) / as_f64(sorted.len());
        let _ = write!(path, "H{:.1}V{:.1}", plot.x(*ms), plot.y(share));
    }
    let _ = write!(path, "H{:.1}", plot.right());
    plot.draw(&format!("<path class=\"curve s{idx}\" d=\"{path}\"/>"));
    if let Some(ms) = median(&sorted) {
        let (x, y) = (plot.x(ms), plot.y(0.5));
        plot.draw(&format!("<circle class=\"dot s{idx}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>"));
    }
}

#[cfg(test)]
mod tests {
    use load::plot::Size;

    use super::cumulative;
    use crate::report::fixtures::report;

    #[test]
    fn every_side_has_a_curve_inside_the_frame() {
        let sides = report().sides;
        let svg = cumulative(&sides, Size { width: 680.0, height: 320.0 }).unwrap();
        assert_eq!(svg.matches("class=\"curve").count(), sides.len());
        assert_eq!(svg.matches("class=\"dot").count(), sides.len());
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn nothing_to_plot_is_no_plot() {
        assert!(cumulative(&[], Size { width: 680.0, height: 320.0 }).is_none());
    }
}
