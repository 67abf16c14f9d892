//! Made-up values that change over time.

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Serialize, Serializer};
use std::f64::consts::TAU;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A value over time: `5`, or `<form>:<start>:<end>:<period>`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wave {
    Constant(f64),
    Moving { form: Form, start: f64, end: f64, period: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Goes from start to end in one period, then stays there.
    Ramp,
    /// Goes from start to end in each period.
    RampReset,
    /// Goes smoothly from start to end and back in each period.
    Oscillate,
    /// Stays at start for half a period, at end for the other half.
    SquareWave,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no value: a number, or ramp, rampreset, oscillate or squarewave as form:start:end:period, like \
     ramp:0:10:30s"
)]
pub struct InvalidWave(String);

const FORMS: [(&str, Form); 4] = [
    ("ramp", Form::Ramp),
    ("rampreset", Form::RampReset),
    ("oscillate", Form::Oscillate),
    ("squarewave", Form::SquareWave),
];

// === impl Wave ===

impl Wave {
    /// Returns the value at this time after its start.
    pub fn at(&self, elapsed: Duration) -> f64 {
        match *self {
            Self::Constant(value) => value,
            Self::Moving { form, start, end, period } => {
                let phase = elapsed.as_secs_f64() / period.as_secs_f64();
                let share = match form {
                    Form::Ramp => phase.min(1.0),
                    Form::RampReset => phase.fract(),
                    Form::Oscillate => (1.0 - (phase * TAU).cos()) / 2.0,
                    Form::SquareWave => f64::from(u8::from(phase.fract() >= 0.5)),
                };
                start + (end - start) * share
            }
        }
    }
}

impl FromStr for Wave {
    type Err = InvalidWave;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidWave(text.to_owned());
        let number =
            |text: &str| text.parse::<f64>().ok().filter(|value| value.is_finite()).ok_or_else(invalid);
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            [value] => Ok(Self::Constant(number(value)?)),
            [form, start, end, period] => {
                let form = FORMS.iter().find(|(name, _)| name == form).ok_or_else(invalid)?.1;
                let period = humantime::parse_duration(period).map_err(|_| invalid())?;
                let period = Some(period).filter(|period| !period.is_zero()).ok_or_else(invalid)?;
                Ok(Self::Moving { form, start: number(start)?, end: number(end)?, period })
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Wave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Constant(value) => write!(f, "{value}"),
            Self::Moving { form, start, end, period } => {
                let (name, _) = FORMS.iter().find(|(_, other)| other == form).expect("every form has a name");
                write!(f, "{name}:{start}:{end}:{}", humantime::format_duration(*period))
            }
        }
    }
}

impl Serialize for Wave {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Constant(value) => serializer.serialize_f64(*value),
            Self::Moving { .. } => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Wave {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => text.parse().map_err(D::Error::custom),
            other => other.to_string().parse().map_err(D::Error::custom),
        }
    }
}
