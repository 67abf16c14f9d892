//! Exact decimal numbers for the bounds of a JSON Schema. Binary fractions would be wrong: 0.3 is a multiple of 0.1.

use serde_json::Number;

/// Largest exponent and most decimal places of a bound. No sampled number would meet a bound beyond them, and the
/// digits of all others fit an `i128`.
const EXPONENT_MAX: i32 = 18;
const SCALE_MAX: u32 = 15;

/// The number `units` / 10^`scale`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decimal {
    pub(super) units: i128,
    pub(super) scale: u32,
}

// === impl Decimal ===

impl Decimal {
    /// Reads a number; `None` if it is too large or has too many digits to be exact.
    pub(super) fn from_number(number: &Number) -> Option<Self> {
        let text = number.to_string();
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (text.as_str(), 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let fraction = fraction.trim_end_matches('0');
        let mut units: i128 = format!("{whole}{fraction}").parse().ok()?;
        let mut scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
        while scale > 0 && units % 10 == 0 {
            units /= 10;
            scale -= 1;
        }
        if scale < 0 {
            let factor = u32::try_from(-scale).ok().filter(|_| -scale <= EXPONENT_MAX)?;
            units = units.checked_mul(10i128.checked_pow(factor)?)?;
            scale = 0;
        }
        let scale = u32::try_from(scale).ok().filter(|scale| *scale <= SCALE_MAX)?;
        let is_small = units.unsigned_abs() < 10u128.pow(EXPONENT_MAX.unsigned_abs() + scale + 2);
        is_small.then_some(Self { units, scale })
    }

    /// Returns the units at another scale, which must not be smaller.
    pub(super) fn at(self, scale: u32) -> Option<i128> {
        let factor = 10i128.checked_pow(scale.checked_sub(self.scale)?)?;
        self.units.checked_mul(factor)
    }

    pub(super) fn is_whole(self) -> bool {
        self.units % 10i128.pow(self.scale) == 0
    }

    /// Compares two numbers exactly.
    pub(super) fn compare(self, other: Self) -> std::cmp::Ordering {
        let scale = self.scale.max(other.scale);
        match (self.at(scale), other.at(scale)) {
            (Some(left), Some(right)) => left.cmp(&right),
            (None, _) | (_, None) => self.to_f64().total_cmp(&other.to_f64()),
        }
    }

    pub(super) fn is_multiple_of(self, step: Self) -> bool {
        let scale = self.scale.max(step.scale);
        match (self.at(scale), step.at(scale)) {
            (Some(units), Some(step)) => step != 0 && units % step == 0,
            (None, _) | (_, None) => false,
        }
    }

    /// Converts it to a JSON number; a whole number becomes an integer.
    pub(super) fn to_number(self) -> Option<Number> {
        if self.is_whole() {
            return Number::from_i128(self.units / 10i128.pow(self.scale));
        }
        Number::from_f64(self.to_f64())
    }

    fn to_f64(self) -> f64 {
        let Self { units, scale } = self;
        format!("{units}e-{scale}").parse().expect("digits and an exponent are a number")
    }
}

pub(super) fn gcd(left: i128, right: i128) -> i128 {
    let (mut left, mut right) = (left.abs(), right.abs());
    while right != 0 {
        (left, right) = (right, left % right);
    }
    left
}

/// Returns the least common multiple; `None` if it does not fit.
pub(super) fn lcm(left: i128, right: i128) -> Option<i128> {
    (left / gcd(left, right).max(1)).checked_mul(right)
}

#[cfg(test)]
mod tests {
    use super::Decimal;
    use std::cmp::Ordering;

    fn decimal(text: &str) -> Option<Decimal> {
        Decimal::from_number(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn numbers_are_read_exactly() {
        let check = |text: &str, units: i128, scale: u32| {
            let decimal = decimal(text).unwrap();
            assert_eq!((decimal.units, decimal.scale), (units, scale), "{text}");
        };
        check("0.30", 3, 1);
        check("-12", -12, 0);
        check("1e3", 1000, 0);
        check("2.5e-3", 25, 4);
        check("1.0", 1, 0);
        assert!(decimal("1e300").is_none());
        assert!(decimal("1e-300").is_none());
    }

    #[test]
    fn fractions_are_multiples_where_floats_are_not() {
        let is_multiple =
            |value: &str, step: &str| decimal(value).unwrap().is_multiple_of(decimal(step).unwrap());
        assert!(is_multiple("0.3", "0.1"));
        assert!(is_multiple("7", "0.01"));
        assert!(!is_multiple("0.35", "0.1"));
        assert!(!is_multiple("1", "0"));
        assert_eq!(decimal("0.1").unwrap().compare(decimal("0.10").unwrap()), Ordering::Equal);
        assert_eq!(decimal("0.1").unwrap().compare(decimal("0.11").unwrap()), Ordering::Less);
    }
}
