//! Plot of the times to first token in SVG: one cumulative curve for each path.
//! The page's style sheet sets the colours, so that the plot follows its light and dark schemes.

use std::fmt::Write as _;

use load::stats::{as_f64, median};

use crate::report::Side;

/// Room for the axis labels, in pixels.
const LEFT: f64 = 52.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 16.0;

/// Size of the plot in pixels; it is scaled down to the width of the page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) width: f64,
    pub(super) height: f64,
}

/// Plots the cumulative share of requests over TTFT; `None` without samples.
pub(super) fn cumulative(sides: &[Side], size: Size) -> Option<String> {
    let longest = sides.iter().flat_map(|side| side.ttft_ms.iter().copied()).fold(0.0, f64::max);
    if longest <= 0.0 {
        return None;
    }
    let step = tick_step(longest, if size.width > 500.0 { 8.0 } else { 4.0 });
    let frame = Frame { size, x_max: (longest / step).ceil() * step };
    let Size { width, height } = size;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"Cumulative distribution of the time to first token\">"
    );
    frame.grid(&mut svg, step);
    for (idx, side) in sides.iter().enumerate().rev() {
        frame.curve(&mut svg, idx, side);
    }
    svg.push_str("</svg>");
    Some(svg)
}

struct Frame {
    size: Size,
    x_max: f64,
}

impl Frame {
    fn x(&self, ms: f64) -> f64 {
        LEFT + ms / self.x_max * (self.size.width - LEFT - RIGHT)
    }

    fn y(&self, share: f64) -> f64 {
        TOP + (1.0 - share) * (self.size.height - TOP - BOTTOM)
    }

    fn grid(&self, svg: &mut String, step: f64) {
        let (right, bottom) = (self.x(self.x_max), self.y(0.0));
        for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let y = self.y(share);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
            );
            let _ = write!(
                svg,
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{:.0} %</text>",
                LEFT - 8.0,
                y + 4.0,
                share * 100.0
            );
        }
        let mut ms = 0.0;
        while ms <= self.x_max + step / 2.0 {
            let x = self.x(ms);
            let anchor = if ms > 0.0 && x > right - 1.0 { "end" } else { "middle" };
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom:.1}\" y2=\"{:.1}\"/><text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{ms:.0}</text>",
                bottom + 5.0,
                bottom + 19.0
            );
            ms += step;
        }
        let _ = write!(
            svg,
            "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">time to first token, ms</text>",
            f64::midpoint(LEFT, right),
            self.size.height - 4.0
        );
    }

    fn curve(&self, svg: &mut String, idx: usize, side: &Side) {
        let mut sorted = side.ttft_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let mut path = format!("M{:.1} {:.1}", self.x(0.0), self.y(0.0));
        for (rank, ms) in sorted.iter().enumerate() {
            let _ =
                write!(path, "H{:.1}V{:.1}", self.x(*ms), self.y(as_f64(rank + 1) / as_f64(sorted.len())));
        }
        let _ = write!(path, "H{:.1}", self.x(self.x_max));
        let _ = write!(svg, "<path class=\"curve s{idx}\" d=\"{path}\"/>");
        if let Some(ms) = median(&sorted) {
            let (x, y) = (self.x(ms), self.y(0.5));
            let _ = write!(svg, "<circle class=\"dot s{idx}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>");
        }
    }
}

/// Returns a round number of milliseconds that divides `longest` into about `ticks` steps.
fn tick_step(longest: f64, ticks: f64) -> f64 {
    let raw = longest / ticks;
    let magnitude = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|step| step * magnitude >= raw).unwrap_or(10.0);
    step * magnitude
}

#[cfg(test)]
mod tests {
    use super::{Size, cumulative, tick_step};
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

    #[test]
    fn ticks_are_round() {
        assert_eq!(tick_step(613.0, 8.0), 100.0);
        assert_eq!(tick_step(13.0, 4.0), 5.0);
    }
}
