//! Draws numbers between bounds and on steps, in whole units of a common decimal scale, so that nothing is rounded.

use super::gave_up::GaveUp;
use crate::structured::decimal::{Decimal, lcm};
use rand::{Rng, RngExt};
use serde_json::{Map, Number, Value};

/// Span of values from the one bound, if the other side is open.
const OPEN_SPAN: i128 = 100;
/// Value beyond which a bound has no effect.
const BOUND_MAX: f64 = 1e17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Number,
}

#[derive(Clone, Copy)]
struct Bound {
    at: Decimal,
    is_exclusive: bool,
}

/// Bounds and steps of a number, from all schemas.
#[derive(Default)]
struct Limits {
    lower: Vec<Bound>,
    upper: Vec<Bound>,
    steps: Vec<Decimal>,
}

pub(super) fn draw(
    conjuncts: &[&Map<String, Value>],
    kind: Kind,
    rng: &mut dyn Rng,
) -> Result<Number, GaveUp> {
    let limits = Limits::of(conjuncts)?;
    draw_exact(&limits, kind, rng).ok_or(GaveUp::Unsatisfiable)
}

// === impl Limits ===

impl Limits {
    fn of(conjuncts: &[&Map<String, Value>]) -> Result<Self, GaveUp> {
        let mut limits = Self::default();
        for keywords in conjuncts {
            for (keyword, value) in *keywords {
                let Value::Number(number) = value else { continue };
                let is_exclusive = keyword.starts_with("exclusive");
                match keyword.as_str() {
                    "minimum" | "exclusiveMinimum" => {
                        let is_open = number.as_f64().is_some_and(|bound| bound < -BOUND_MAX);
                        limits.lower.extend(Bound::of(number, is_exclusive, is_open)?);
                    }
                    "maximum" | "exclusiveMaximum" => {
                        let is_open = number.as_f64().is_some_and(|bound| bound > BOUND_MAX);
                        limits.upper.extend(Bound::of(number, is_exclusive, is_open)?);
                    }
                    "multipleOf" => {
                        limits.steps.push(Decimal::from_number(number).ok_or(GaveUp::Unsatisfiable)?)
                    }
                    _ => {}
                }
            }
        }
        Ok(limits)
    }
}

impl Bound {
    /// Returns the bound; `None` if it is so large that it has no effect.
    fn of(number: &Number, is_exclusive: bool, is_open: bool) -> Result<Option<Self>, GaveUp> {
        if is_open {
            return Ok(None);
        }
        let at = Decimal::from_number(number).ok_or(GaveUp::Unsatisfiable)?;
        Ok(Some(Self { at, is_exclusive }))
    }
}

/// Draws a number; `None` if none fits, or if its digits are too many.
fn draw_exact(limits: &Limits, kind: Kind, rng: &mut dyn Rng) -> Option<Number> {
    let Limits { lower, upper, steps } = limits;
    let bounds = lower.iter().chain(upper).map(|bound| bound.at.scale);
    let given_scale = bounds.chain(steps.iter().map(|step| step.scale)).max().unwrap_or_default();
    let scale = match kind {
        Kind::Integer => given_scale,
        Kind::Number => given_scale + 2,
    };
    let one = 10i128.checked_pow(scale)?;
    let inset = |bound: &Bound| Some((bound.at.at(scale)?, i128::from(bound.is_exclusive)));
    let mut lowest = None;
    for bound in lower {
        let (units, gap) = inset(bound)?;
        lowest = lowest.max(Some(units + gap));
    }
    let mut highest: Option<i128> = None;
    for bound in upper {
        let (units, gap) = inset(bound)?;
        highest = Some(highest.map_or(units - gap, |highest| highest.min(units - gap)));
    }
    let mut step = (kind == Kind::Integer).then_some(one);
    for given in steps {
        let given = given.at(scale)?;
        step = Some(step.map_or(Some(given), |step| lcm(step, given))?);
    }
    let step = step.unwrap_or_else(|| readable_step(lowest, highest, one));
    let (first, last) = multiples(lowest, highest, step, one)?;
    let units = rng.random_range(first..=last).checked_mul(step)?;
    Decimal { units, scale }.to_number()
}

/// Returns a tenth, or a smaller step if the bounds leave less room than ten tenths.
fn readable_step(lowest: Option<i128>, highest: Option<i128>, one: i128) -> i128 {
    let mut step = one / 10;
    if let (Some(lowest), Some(highest)) = (lowest, highest) {
        while step > 1 && highest.saturating_sub(lowest) / step < 10 {
            step /= 10;
        }
    }
    step.max(1)
}

/// Returns the range of factors of `step` to draw from.
fn multiples(lowest: Option<i128>, highest: Option<i128>, step: i128, one: i128) -> Option<(i128, i128)> {
    let span = (one.checked_mul(OPEN_SPAN)? / step).max(9);
    let first = lowest.map(|lowest| lowest.div_euclid(step) + i128::from(lowest.rem_euclid(step) != 0));
    let last = highest.map(|highest| highest.div_euclid(step));
    let (first, last) = match (first, last) {
        (Some(first), Some(last)) => (first, last),
        (Some(first), None) => (first, first.checked_add(span)?),
        (None, Some(last)) => (last.checked_sub(span)?, last),
        (None, None) => (1, span),
    };
    (first <= last).then_some((first, last))
}
