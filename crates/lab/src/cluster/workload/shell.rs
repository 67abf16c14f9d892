//! The simple commands of a shell script, with quotes and variables resolved.
//!
//! It is a reader, not a shell: nothing runs, control words are words, and output that a command would give stays as the
//! text of the substitution.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

use crate::cluster::workload::env::Env;

/// Beginning of a word that holds a command substitution.
const SUBSTITUTION: &str = "$(";

/// The words of each simple command of `script`, without redirections, comments and assignments.
pub(in crate::cluster) fn commands(script: &str, env: &Env) -> Vec<Vec<String>> {
    let mut lexer =
        Lexer { env, assigned: BTreeMap::new(), commands: Vec::new(), words: Vec::new(), word: None };
    let mut chars = script.chars().peekable();
    while let Some(found) = chars.next() {
        lexer.take(found, &mut chars);
    }
    lexer.end_command();
    lexer.commands
}

/// True if the word holds the output of another command, which nothing here knows.
pub(in crate::cluster) fn is_substituted(word: &str) -> bool {
    word.contains(SUBSTITUTION) || word.contains('`')
}

struct Lexer<'a> {
    env: &'a Env,
    /// Variables that the script sets.
    assigned: BTreeMap<String, String>,
    commands: Vec<Vec<String>>,
    words: Vec<String>,
    word: Option<String>,
}

impl Lexer<'_> {
    fn take(&mut self, found: char, chars: &mut Peekable<Chars<'_>>) {
        match found {
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(escaped) => self.push(escaped),
            },
            '\'' => {
                let quoted: String = chars.by_ref().take_while(|next| *next != '\'').collect();
                self.push_str(&quoted);
            }
            '"' => self.double_quoted(chars),
            '`' => {
                let inner: String = chars.by_ref().take_while(|next| *next != '`').collect();
                self.push_str(&format!("`{inner}`"));
            }
            '$' => {
                let value = self.variable(chars);
                self.split(&value);
            }
            '#' if self.word.is_none() => while chars.next_if(|next| *next != '\n').is_some() {},
            '>' | '<' => self.redirect(chars),
            '&' if chars.next_if_eq(&'>').is_some() => self.redirect(chars),
            '\n' | ';' | '|' | '&' | '(' | ')' => self.end_command(),
            space if space.is_whitespace() => self.end_word(),
            other => self.push(other),
        }
    }

    fn push(&mut self, found: char) {
        self.word.get_or_insert_default().push(found);
    }

    fn push_str(&mut self, text: &str) {
        self.word.get_or_insert_default().push_str(text);
    }

    /// Adds the value of a variable outside quotes: spaces in it separate words.
    fn split(&mut self, value: &str) {
        if is_substituted(value) {
            return self.push_str(value);
        }
        for (idx, part) in value.split(char::is_whitespace).enumerate() {
            if idx > 0 {
                self.end_word();
            }
            if !part.is_empty() {
                self.push_str(part);
            }
        }
    }

    fn double_quoted(&mut self, chars: &mut Peekable<Chars<'_>>) {
        self.word.get_or_insert_default();
        while let Some(found) = chars.next() {
            match found {
                '"' => return,
                '\\' => match chars.next() {
                    Some('\n') | None => {}
                    Some(escaped @ ('"' | '\\' | '$' | '`')) => self.push(escaped),
                    Some(other) => self.push_str(&format!("\\{other}")),
                },
                '$' => {
                    let value = self.variable(chars);
                    self.push_str(&value);
                }
                other => self.push(other),
            }
        }
    }

    /// Value of the variable that follows a `$`: `NAME`, `{NAME}`, `{NAME:-default}` or `{NAME:+alternative}`. Other
    /// changes of a value are left out.
    fn variable(&self, chars: &mut Peekable<Chars<'_>>) -> String {
        let is_name = |next: &char| next.is_ascii_alphanumeric() || *next == '_';
        match chars.peek() {
            Some('(') => {
                let mut depth = 0;
                let mut text = "$".to_owned();
                for next in chars.by_ref() {
                    text.push(next);
                    depth += i32::from(next == '(') - i32::from(next == ')');
                    if depth == 0 {
                        break;
                    }
                }
                text
            }
            Some('{') => {
                let inner: String = chars.by_ref().skip(1).take_while(|next| *next != '}').collect();
                let n_name = inner.find(|next| !is_name(&next)).unwrap_or(inner.len());
                let (name, rest) = inner.split_at(n_name);
                let rest = rest.strip_prefix(':').unwrap_or(rest);
                let operand = rest.get(1..).unwrap_or_default();
                match (self.value(name), rest.chars().next()) {
                    (found, Some('+')) => found.map_or_else(String::new, |_| operand.to_owned()),
                    (Some(value), _) => value.to_owned(),
                    (None, Some('-' | '=')) => operand.to_owned(),
                    (None, _) => String::new(),
                }
            }
            Some(next) if is_name(next) => {
                let mut name = String::new();
                while let Some(next) = chars.next_if(is_name) {
                    name.push(next);
                }
                self.value(&name).unwrap_or_default().to_owned()
            }
            Some(_) | None => "$".to_owned(),
        }
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.assigned.get(name).map(String::as_str).or_else(|| self.env.get(name))
    }

    /// Passes over a redirection: the number before it and the file after it.
    fn redirect(&mut self, chars: &mut Peekable<Chars<'_>>) {
        if self.word.as_ref().is_some_and(|word| word.bytes().all(|byte| byte.is_ascii_digit())) {
            self.word = None;
        }
        self.end_word();
        while chars.next_if(|next| matches!(next, '>' | '<' | '&' | ' ')).is_some() {}
        while chars.next_if(|next| !next.is_whitespace() && !";|&()".contains(*next)).is_some() {}
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        let assignment = word.split_once('=').filter(|(name, _)| {
            !name.is_empty() && name.chars().all(|next| next.is_ascii_alphanumeric() || next == '_')
        });
        match assignment {
            Some((name, value)) if self.words.iter().all(|word| word == "export") => {
                self.assigned.insert(name.to_owned(), value.to_owned());
            }
            Some(_) | None => self.words.push(word),
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        let words = std::mem::take(&mut self.words);
        if !words.is_empty() {
            self.commands.push(words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Env, commands};

    fn check(script: &str, expected: &[&[&str]]) {
        assert_eq!(commands(script, &Env::default()), expected, "{script}");
    }

    #[test]
    fn commands_are_told_apart() {
        check("a b; c && d | e\nf", &[&["a", "b"], &["c"], &["d"], &["e"], &["f"]]);
        check("a \\\n  --b # no\n# none\n", &[&["a", "--b"]]);
        check(
            "until [ -S /x ]; do\n sleep 1\ndone\nrun",
            &[&["until", "[", "-S", "/x", "]"], &["do"], &["sleep", "1"], &["done"], &["run"]],
        );
        check("a > /log 2>&1 && b >>c", &[&["a"], &["b"]]);
    }

    #[test]
    fn quotes_hold_words_together() {
        check(
            r#"a 'b $c; d' "e f" g\ h '' "{\"x\": 1}""#,
            &[&["a", "b $c; d", "e f", "g h", "", r#"{"x": 1}"#]],
        );
    }

    #[test]
    fn variables_have_the_values_that_the_script_gives_them() {
        check(
            "A='x y'; export B=z\nrun $A \"$A\" ${B} ${C:-d} $C end",
            &[&["export"], &["run", "x", "y", "x y", "z", "d", "end"]],
        );
        check(
            "A=x\nrun ${A:-d} ${B:=d} ${B=e} ${A:+on} ${B:+on} ${A%.*} ${B:?gone} end",
            &[&["run", "x", "d", "e", "on", "x", "end"]],
        );
        check("run $(hostname -i) a", &[&["run", "$(hostname -i)", "a"]]);
    }
}
