//! Charts of a comparison in SVG: lines and heat maps, small enough for a phone. The page's style sheet sets their
//! colours.

use std::fmt::Write as _;

use load::plot::{self, Axis, Plot, Size};

/// Size of a chart; a phone shows the width unscaled.
const SIZE: Size = Size { width: 350.0, height: 230.0 };
/// Height of a heat map's row.
const ROW: f64 = 14.0;
const TICKS: f64 = 4.0;

/// One line; `colour` is the number of its policy among all policies.
#[derive(Clone, Debug)]
pub(super) struct ChartLine {
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
pub(super) fn lines(lines: &[ChartLine], axes: Axes<'_>) -> String {
    let most = |part: fn(&(f64, f64)) -> f64| {
        lines.iter().flat_map(|line| line.points.iter().map(part)).fold(f64::MIN_POSITIVE, f64::max)
    };
    let [x, y] = [most(|point| point.0), most(|point| point.1)].map(|most| Axis::up_to(most, TICKS));
    let mut plot = Plot::new(axes.title, SIZE, (x, axes.x), y);
    for ChartLine { colour, points } in lines.iter().rev() {
        let at = |(x, y): &(f64, f64)| format!("{:.1} {:.1}", plot.x(*x), plot.y(*y));
        let path: Vec<String> = points.iter().map(at).collect();
        if !path.is_empty() {
            plot.draw(&format!("<path class=\"line p{colour}\" d=\"M{}\"/>", path.join("L")));
        }
    }
    plot.finish()
}

/// Draws a heat map: a cell for each pod and part of the time, darker for more requests. A cell with `most` is the
/// darkest.
pub(super) fn heat(title: &str, counts: &[Vec<u32>], most: u32) -> String {
    let height = ROW * counts.iter().map(|_| 1.0).sum::<f64>() + 2.0;
    let mut svg = plot::open(title, Size { height, ..SIZE });
    let mut y = 1.0;
    for row in counts {
        let width = (SIZE.width - 2.0) / row.iter().map(|_| 1.0).sum::<f64>().max(1.0);
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

#[cfg(test)]
mod tests {
    use super::{Axes, ChartLine, heat, lines};

    #[test]
    fn every_line_is_inside_the_frame() {
        let all = [
            ChartLine { colour: 0, points: vec![(0.5, 0.2), (1.0, 0.9)] },
            ChartLine { colour: 3, points: vec![(0.5, 13.0), (1.0, 0.0)] },
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
}
