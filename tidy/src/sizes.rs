//! Size rules: a file is short enough to keep in mind, and its header says what it is for.

use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};

use crate::tree::Source;

/// Most lines of a file.
pub const MAX_FILE_LINES: usize = 600;
/// Most lines of a function's body that hold code, counted as clippy's `too_many_lines` does.
pub const MAX_FUNCTION_LINES: usize = 70;

/// Files that are too long or lack a `//!` header, and functions that are too long.
#[must_use]
pub fn complaints(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for Source { path, text } in sources {
        let n_lines = text.lines().count();
        if n_lines > MAX_FILE_LINES {
            found.push(format!("{path}: {n_lines} lines, more than {MAX_FILE_LINES}"));
        }
        if !text.starts_with("//!") {
            found.push(format!("{path}: no `//!` header"));
        }
        if path.ends_with("/mod.rs") {
            found.push(format!("{path}: a module lies in `name.rs` beside `name/`, not in `mod.rs`"));
        }
        found.extend(long_functions(path, text));
    }
    found
}

fn long_functions(path: &str, text: &str) -> Vec<String> {
    let tokens: TokenStream = match text.parse() {
        Ok(tokens) => tokens,
        Err(error) => return vec![format!("{path}: does not parse: {error}")],
    };
    let mut functions = Functions { path, lines: text.lines().collect(), found: Vec::new() };
    functions.scan(tokens);
    functions.found
}

struct Functions<'a> {
    path: &'a str,
    lines: Vec<&'a str>,
    found: Vec<String>,
}

impl Functions<'_> {
    /// Checks the functions among these tokens and in their groups. A function's body is the first group in braces after
    /// `fn` and its name, unless a semicolon comes before.
    fn scan(&mut self, tokens: TokenStream) {
        let (mut follows_fn, mut function) = (false, None);
        for token in tokens {
            match &token {
                TokenTree::Ident(name) if follows_fn => function = Some(name.clone()),
                TokenTree::Punct(punct) if punct.as_char() == ';' => function = None,
                TokenTree::Group(group) => {
                    if group.delimiter() == Delimiter::Brace
                        && let Some(name) = function.take()
                    {
                        self.check(&name, group);
                    }
                    self.scan(group.stream());
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            follows_fn = matches!(&token, TokenTree::Ident(word) if word == "fn");
        }
    }

    /// Counts the lines of a body that hold code, as clippy does.
    fn check(&mut self, name: &Ident, body: &Group) {
        let (first, last) = (body.span_open().start().line, body.span_close().end().line);
        let body = &self.lines[first..last.saturating_sub(1).max(first)];
        let is_code = |line: &&&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
        let n_lines = body.iter().filter(is_code).count();
        if n_lines > MAX_FUNCTION_LINES {
            self.found.push(format!(
                "{}: fn {name} has {n_lines} lines, more than {MAX_FUNCTION_LINES}",
                self.path
            ));
        }
    }
}
