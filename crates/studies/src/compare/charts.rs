//! Charts of a comparison in SVG: lines and heat maps, small enough for a phone. The page's style sheet sets their
//! colours.

use std::fmt::Write as _;

/// Width in pixels that a phone shows unscaled.
const WIDTH: f64 = 350.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 36.0;
/// Height of a heat map's row.
const ROW: f64 = 14.0;
const TICKS: f64 = 4.0;

/// One line; `colour` is the number of its policy among all policies.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) colour: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// Title of a chart and name of its x axis. Both axes begin at 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axes<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
}

/// Draws lines in one frame.
pub(super) fn lines(lines: &[Line], axes: Axes<'_>) -> String {
    let most = |part: fn(&(f64, f64)) -> f64| {
        lines.iter().flat_map(|line| line.points.iter().map(part)).fold(f64::MIN_POSITIVE, f64::max)
    };
    let (x_step, y_step) = (tick_step(most(|point| point.0)), tick_step(most(|point| point.1)));
    let x_max = (most(|point| point.0) / x_step).ceil() * x_step;
    let y_max = (most(|point| point.1) / y_step).ceil() * y_step;
    let x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / y_max * (HEIGHT - TOP - BOTTOM);
    let mut svg = open(axes.title, HEIGHT);
    for value in ticks(y_step, y_max) {
        let at = y(value);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/><text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            x(x_max),
            LEFT - 6.0,
            at + 4.0,
            number(value)
        );
    }
    for value in ticks(x_step, x_max) {
        let anchor = if value >= x_max { "end" } else { "middle" };
        let _ = write!(
            svg,
            "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            x(value),
            HEIGHT - BOTTOM + 16.0,
            number(value)
        );
    }
    let _ = write!(
        svg,
        "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(LEFT, WIDTH - RIGHT),
        HEIGHT - 4.0,
        axes.x
    );
    for Line { colour, points } in lines.iter().rev() {
        let path: Vec<String> =
            points.iter().map(|(at, value)| format!("{:.1} {:.1}", x(*at), y(*value))).collect();
        if !path.is_empty() {
            let _ = write!(svg, "<path class=\"line p{colour}\" d=\"M{}\"/>", path.join("L"));
        }
    }
    svg + "</svg>"
}

/// Draws a heat map: a cell for each pod and part of the time, darker for more requests. A cell with `most` is the
/// darkest.
pub(super) fn heat(title: &str, counts: &[Vec<u32>], most: u32) -> String {
    let height = ROW * counts.iter().map(|_| 1.0).sum::<f64>() + 2.0;
    let mut svg = open(title, height);
    let mut y = 1.0;
    for row in counts {
        let width = (WIDTH - 2.0) / row.iter().map(|_| 1.0).sum::<f64>().max(1.0);
        let mut x = 1.0;
        for count in row {
            let share = f64::from(*count) / f64::from(most.max(1));
            let _ = write!(
                svg,
                "<rect class=\"heat\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill-opacity=\"{share:.3}\"/>",
                width - 1.0,
                ROW - 1.0
            );
            x += width;
        }
        y += ROW;
    }
    svg + "</svg>"
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH:.0} {height:.0}\" width=\"{WIDTH:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{title}\">"
    )
}

fn ticks(step: f64, max: f64) -> impl Iterator<Item = f64> {
    (0_u32..).map(move |idx| f64::from(idx) * step).take_while(move |value| *value <= max + step / 2.0)
}

/// Returns a round number that divides `longest` into about [`TICKS`] steps.
fn tick_step(longest: f64) -> f64 {
    let raw = longest / TICKS;
    let magnitude = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|step| step * magnitude >= raw).unwrap_or(10.0);
    step * magnitude
}

/// Formats a number without the trailing digits of binary fractions.
fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Axes, Line, heat, lines, number};

    #[test]
    fn every_line_is_inside_the_frame() {
        let all = [
            Line { colour: 0, points: vec![(0.5, 0.2), (1.0, 0.9)] },
            Line { colour: 3, points: vec![(0.5, 13.0), (1.0, 0.0)] },
        ];
        let svg = lines(&all, Axes { title: "t", x: "load" });
        assert_eq!(svg.matches("class=\"line").count(), 2);
        assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("\"-"), "{svg}");
    }

    #[test]
    fn a_heat_map_has_a_cell_for_each_count() {
        let svg = heat("t", &[vec![0, 1, 4], vec![2, 2, 2]], 4);
        assert_eq!(svg.matches("<rect").count(), 6);
        assert!(svg.contains("fill-opacity=\"1.000\"") && svg.contains("fill-opacity=\"0.250\""));
    }

    #[test]
    fn numbers_have_no_tails() {
        assert_eq!([0.1 + 0.2, 2.0, 0.0].map(number), ["0.3", "2", "0"]);
    }
}
