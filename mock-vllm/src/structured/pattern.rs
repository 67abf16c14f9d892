//! Texts that match a regular expression.
//!
//! The syntax is that of the `regex` crate. It has everything of JSON Schema's (ECMA-262) except look-around,
//! backreferences and `\c`, which are rejected. A text is made from the syntax tree, with ASCII characters if a class
//! has some, so that it matches whether `\d` and `\w` mean Unicode or ASCII. Then the expression checks it.

use rand::{Rng, RngExt};
use regex::{Regex, RegexBuilder};
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Class, ClassUnicode, Hir, HirKind, Repetition};

/// Most groups within groups.
const NEST_LIMIT: u32 = 100;
/// Largest compiled expression, in bytes.
const COMPILED_LIMIT: usize = 1 << 20;
/// Longest allowed shortest match, in bytes.
const MATCH_LIMIT: usize = 10_000;
const N_ATTEMPTS: usize = 64;
/// Most repetitions, in all, beyond those that an expression requires.
const SLACK: usize = 8;

#[derive(Clone, Debug)]
pub struct Pattern {
    hir: Hir,
    regex: Regex,
}

/// Place where a text must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchoring {
    /// The whole text, as for a guided regex.
    Whole,
    /// Any part of the text, as for JSON Schema's `pattern`.
    Anywhere,
}

/// Reason why an expression cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct PatternError {
    reason: String,
}

/// Least and most characters of a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    pub(super) min: usize,
    pub(super) max: usize,
}

/// Writer of one text, which uses up the allowed repetitions.
struct Writer<'a> {
    text: String,
    slack: usize,
    spending: Spending,
    rng: &'a mut dyn Rng,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Spending {
    Random,
    /// All at the first repetition that takes them, for texts that must be long.
    Full,
}

// === impl Pattern ===

impl Pattern {
    /// Parses an expression.
    ///
    /// # Errors
    /// Fails if the expression is invalid, uses something that the syntax lacks, or has only very long matches.
    pub fn parse(source: &str, anchoring: Anchoring) -> Result<Self, PatternError> {
        let source = match anchoring {
            Anchoring::Whole => format!("^(?:{source})$"),
            Anchoring::Anywhere => source.to_owned(),
        };
        let parsed = ParserBuilder::new().nest_limit(NEST_LIMIT).build().parse(&source);
        let hir = parsed.map_err(|error| PatternError { reason: syntax_reason(&error) })?;
        let shortest = hir.properties().minimum_len();
        match shortest {
            None => return Err(PatternError { reason: "nothing matches it".to_owned() }),
            Some(n_bytes) if n_bytes > MATCH_LIMIT => {
                return Err(PatternError { reason: format!("its shortest match has {n_bytes} bytes") });
            }
            Some(_) => {}
        }
        let regex = RegexBuilder::new(&source).size_limit(COMPILED_LIMIT).nest_limit(NEST_LIMIT).build();
        let regex = regex.map_err(|_too_large| PatternError { reason: "it is too large".to_owned() })?;
        Ok(Self { hir, regex })
    }

    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// Makes a short text that matches; `None` if none was found, as for contradictory assertions.
    pub fn generate(&self, rng: &mut dyn Rng) -> Option<String> {
        self.generate_within(Lengths { min: 0, max: usize::MAX }, |_text| true, rng)
    }

    /// Makes a text of such a length that matches and that `accepts` takes.
    pub(super) fn generate_within(
        &self,
        lengths: Lengths,
        accepts: impl Fn(&str) -> bool,
        rng: &mut dyn Rng,
    ) -> Option<String> {
        let Lengths { min, max } = lengths;
        let shortest = self.hir.properties().minimum_len().unwrap_or_default();
        let room = max.saturating_sub(shortest);
        for attempt in 0..N_ATTEMPTS {
            let needed = min.saturating_sub(shortest);
            let spending = if needed > 0 && attempt % 2 == 0 { Spending::Full } else { Spending::Random };
            let extra = rng.random_range(0..=SLACK);
            let slack = needed.saturating_add(extra).min(room);
            let mut writer = Writer { text: String::new(), slack, spending, rng: &mut *rng };
            writer.write(&self.hir);
            let text = writer.text;
            let n_chars = text.chars().count();
            if (min..=max).contains(&n_chars) && self.matches(&text) && accepts(&text) {
                return Some(text);
            }
        }
        None
    }
}

// === impl Writer ===

impl Writer<'_> {
    fn write(&mut self, hir: &Hir) {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => {}
            HirKind::Literal(literal) => self.text.push_str(&String::from_utf8_lossy(&literal.0)),
            HirKind::Class(class) => {
                let character = self.character(class);
                self.text.extend(character);
            }
            HirKind::Repetition(repetition) => self.repeat(repetition),
            HirKind::Capture(capture) => self.write(&capture.sub),
            HirKind::Concat(parts) => parts.iter().for_each(|part| self.write(part)),
            HirKind::Alternation(branches) => {
                let branch_idx = self.rng.random_range(0..branches.len());
                self.write(&branches[branch_idx]);
            }
        }
    }

    fn repeat(&mut self, repetition: &Repetition) {
        let Repetition { min, max, greedy: _, sub } = repetition;
        let n_chars = sub.properties().minimum_len().unwrap_or_default().max(1);
        let n_allowed = max.map_or(usize::MAX, |max| max.saturating_sub(*min) as usize);
        let n_affordable = (self.slack / n_chars).min(n_allowed);
        let n_extra = match self.spending {
            Spending::Random => self.rng.random_range(0..=n_affordable),
            Spending::Full => n_affordable,
        };
        self.slack -= n_extra * n_chars;
        for _ in 0..(*min as usize).saturating_add(n_extra) {
            if self.text.len() > 2 * MATCH_LIMIT {
                break;
            }
            self.write(sub);
        }
    }

    fn character(&mut self, class: &Class) -> Option<char> {
        let class = match class {
            Class::Unicode(class) => class.clone(),
            Class::Bytes(class) => class.to_unicode_class()?,
        };
        let of_class = |candidates: &mut dyn Iterator<Item = char>| -> Vec<char> {
            candidates.filter(|character| contains(&class, *character)).collect()
        };
        let mut characters = of_class(&mut ('a'..='z').chain('A'..='Z').chain('0'..='9'));
        if characters.is_empty() {
            characters = of_class(&mut (' '..='~'));
        }
        if characters.is_empty() {
            return class.iter().next().map(regex_syntax::hir::ClassUnicodeRange::start);
        }
        // Small letters are the most readable of a wide class.
        let small = characters.iter().take_while(|character| character.is_ascii_lowercase()).count();
        let n_choices = if small == 26 && self.rng.random_range(0..8) > 0 { small } else { characters.len() };
        Some(characters[self.rng.random_range(0..n_choices)])
    }
}

fn contains(class: &ClassUnicode, character: char) -> bool {
    class.iter().any(|range| (range.start()..=range.end()).contains(&character))
}

/// Returns the reason without the source text and its markers, which take several lines.
fn syntax_reason(error: &regex_syntax::Error) -> String {
    match error {
        regex_syntax::Error::Parse(error) => error.kind().to_string(),
        regex_syntax::Error::Translate(error) => error.kind().to_string(),
        _ => error.to_string(),
    }
}
