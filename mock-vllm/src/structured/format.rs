//! Texts of the `format`s that JSON Schema defines. Other formats are only annotations and do not limit a text.

use super::words::word;
use rand::{Rng, RngExt};

/// Makes a text of the format; `None` if JSON Schema does not define the format.
pub(super) fn text(format: &str, rng: &mut dyn Rng) -> Option<String> {
    Some(match format {
        "date" => date(rng),
        "time" => time(rng),
        "date-time" => format!("{}T{}", date(rng), time(rng)),
        "duration" => format!("P{}DT{}H", rng.random_range(1..30), rng.random_range(1..24)),
        "email" | "idn-email" => format!("{}.{}@example.com", word(rng), word(rng)),
        "hostname" | "idn-hostname" => format!("{}.example.com", word(rng)),
        "ipv4" => {
            let [second, third, fourth] = std::array::from_fn(|_| rng.random_range(1..255u8));
            format!("10.{second}.{third}.{fourth}")
        }
        "ipv6" => {
            format!("2001:db8::{:x}:{:x}", rng.random_range(1..0xffffu32), rng.random_range(1..0xffffu32))
        }
        "uri" | "iri" => format!("https://example.com/{}/{}", word(rng), word(rng)),
        "uri-reference" | "iri-reference" => format!("/{}/{}", word(rng), word(rng)),
        "uri-template" => format!("/{}/{{id}}", word(rng)),
        "uuid" => uuid(rng),
        "json-pointer" => format!("/{}/{}", word(rng), rng.random_range(0..10)),
        "relative-json-pointer" => format!("{}/{}", rng.random_range(0..3), word(rng)),
        "regex" => format!("^{}$", word(rng)),
        _ => return None,
    })
}

fn date(rng: &mut dyn Rng) -> String {
    let (year, month, day) =
        (rng.random_range(2020..2027), rng.random_range(1..=12), rng.random_range(1..=28));
    format!("{year}-{month:02}-{day:02}")
}

fn time(rng: &mut dyn Rng) -> String {
    let [minute, second] = std::array::from_fn(|_| rng.random_range(0..60u32));
    format!("{:02}:{minute:02}:{second:02}Z", rng.random_range(0..24))
}

/// Makes a UUID of version 4.
fn uuid(rng: &mut dyn Rng) -> String {
    let bits: u128 = rng.random();
    let version = 0x4 << 76;
    let variant = 0x8 << 60;
    let bits = bits & !(0xf << 76) & !(0xc << 60) | version | variant;
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
