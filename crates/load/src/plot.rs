//! Plots in SVG: a frame with round ticks, in which the caller draws. Both axes begin at 0.
//! The page's style sheet sets the colours, so that a plot follows its light and dark schemes.

use std::fmt::Write as _;

/// Room for the ticks' numbers and the name of the x axis, in pixels.
const LEFT: f64 = 52.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 12.0;
const RIGHT: f64 = 16.0;

/// Size of a picture in pixels; it is scaled down to the width of the page.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub width: f64,
    pub height: f64,
}

/// An axis with a tick at each multiple of `step`.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    step: f64,
    max: f64,
    /// Text of the tick at a value.
    text: fn(f64) -> String,
}

/// A plot with its frame drawn.
#[derive(Debug, Clone)]
pub struct Plot {
    size: Size,
    x_max: f64,
    y_max: f64,
    svg: String,
}

/// Begins a picture; `</svg>` ends it.
pub fn open(title: &str, size: Size) -> String {
    let Size { width, height } = size;
    format!(
        "<svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{title}\">"
    )
}

impl Axis {
    /// The axis for shares of a whole, in per cent.
    pub const SHARES: Self =
        Self { step: 0.25, max: 1.0, text: |share| format!("{} %", number(share * 100.0)) };

    /// Makes an axis with about `n_ticks` steps for values up to `longest`, which is above 0.
    pub fn up_to(longest: f64, n_ticks: f64) -> Self {
        let step = tick_step(longest, n_ticks);
        Self { step, max: (longest / step).ceil() * step, text: number }
    }

    fn ticks(self) -> impl Iterator<Item = f64> {
        let Self { step, max, text: _ } = self;
        (0_u32..).map(move |idx| f64::from(idx) * step).take_while(move |value| *value <= max + step / 2.0)
    }
}

impl Plot {
    /// Draws the frame. The x axis has a name below it.
    pub fn new(title: &str, size: Size, (x, x_name): (Axis, &str), y: Axis) -> Self {
        let mut plot = Self { size, x_max: x.max, y_max: y.max, svg: open(title, size) };
        plot.draw_y(y);
        plot.draw_x(x, x_name);
        plot
    }

    /// Returns the pixel of a value on the x axis.
    pub fn x(&self, value: f64) -> f64 {
        LEFT + value / self.x_max * (self.size.width - LEFT - RIGHT)
    }

    /// Returns the pixel of a value on the y axis.
    pub fn y(&self, value: f64) -> f64 {
        TOP + (1.0 - value / self.y_max) * (self.size.height - TOP - BOTTOM)
    }

    /// Returns the pixel at which the x axis ends.
    pub fn right(&self) -> f64 {
        self.x(self.x_max)
    }

    /// Adds an element above all others so far.
    pub fn draw(&mut self, element: &str) {
        self.svg.push_str(element);
    }

    pub fn finish(self) -> String {
        self.svg + "</svg>"
    }

    fn draw_y(&mut self, axis: Axis) {
        let right = self.right();
        for value in axis.ticks() {
            let y = self.y(value);
            let _ = write!(
                self.svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
            );
            self.text((LEFT - 8.0, y + 4.0), "end", &(axis.text)(value));
        }
    }

    fn draw_x(&mut self, axis: Axis, name: &str) {
        let (right, bottom) = (self.right(), self.y(0.0));
        for value in axis.ticks() {
            let x = self.x(value);
            let anchor = if value > 0.0 && x > right - 1.0 { "end" } else { "middle" };
            let end = bottom + 5.0;
            let _ = write!(
                self.svg,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom:.1}\" y2=\"{end:.1}\"/>"
            );
            self.text((x, bottom + 19.0), anchor, &(axis.text)(value));
        }
        self.text((f64::midpoint(LEFT, right), self.size.height - 4.0), "middle", name);
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, text: &str) {
        let _ = write!(
            self.svg,
            "<text class=\"tick\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }
}

/// Returns a round number that divides `longest` into about `n_ticks` steps.
fn tick_step(longest: f64, n_ticks: f64) -> f64 {
    let raw = longest / n_ticks;
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
    use super::{Axis, Plot, Size, number, tick_step};

    #[test]
    fn ticks_are_round_and_inside_the_frame() {
        let size = Size { width: 340.0, height: 260.0 };
        let plot = Plot::new("t", size, (Axis::up_to(613.0, 4.0), "ms"), Axis::SHARES);
        assert_eq!((plot.x(0.0), plot.right(), plot.y(1.0), plot.y(0.0)), (52.0, 324.0, 12.0, 220.0));
        let svg = plot.finish();
        let ticks =
            svg.split("<text").skip(1).filter_map(|text| Some(text.split_once('>')?.1.split_once('<')?.0));
        let expected = ["0 %", "25 %", "50 %", "75 %", "100 %", "0", "200", "400", "600", "800", "ms"];
        assert_eq!(ticks.collect::<Vec<_>>(), expected);
        assert!(svg.starts_with("<svg viewBox=\"0 0 340 260\"") && svg.ends_with("</svg>"), "{svg}");
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(tick_step(613.0, 8.0), 100.0);
        assert_eq!(tick_step(13.0, 4.0), 5.0);
    }

    #[test]
    fn numbers_have_no_tails() {
        assert_eq!([0.1 + 0.2, 2.0, 0.0, 2.5].map(number), ["0.3", "2", "0", "2.5"]);
    }
}
