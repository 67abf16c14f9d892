//! Size rules: a file is short enough to keep in mind, and its header says what it is for.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

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
    let file = match syn::parse_file(text) {
        Ok(file) => file,
        Err(error) => return vec![format!("{path}: does not parse: {error}")],
    };
    let mut functions = Functions { path, lines: text.lines().collect(), found: Vec::new() };
    functions.visit_file(&file);
    functions.found
}

struct Functions<'a> {
    path: &'a str,
    lines: Vec<&'a str>,
    found: Vec<String>,
}

impl Functions<'_> {
    /// Counts the lines of a body that hold code, as clippy does.
    fn check(&mut self, name: &syn::Ident, block: &syn::Block) {
        let span = block.span();
        let body = &self.lines[span.start().line..span.end().line.saturating_sub(1).max(span.start().line)];
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

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.check(&function.sig.ident, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.check(&function.sig.ident, &function.block);
        visit::visit_impl_item_fn(self, function);
    }
}
