//! The order of modules: siblings are declared top first, and a module uses only siblings that are declared below it.
//!
//! Without circles a reader can take the modules one after the other. Tests are not part of the order, and neither is
//! what a module takes from its own parents or children.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::tree::Source;

/// Path of a module inside of its crate: `["cluster", "local"]`; the crate's root is empty.
type Module = Vec<String>;

/// Modules of one crate.
#[derive(Debug, Default)]
struct Crate {
    /// Children of each module, in the order of their `mod` lines.
    children: BTreeMap<Module, Vec<String>>,
    /// Files with their modules and the paths that each one names.
    files: Vec<(String, Module, Vec<Vec<String>>)>,
}

/// Uses against the order, in all crates among these sources: one line for each pair of modules.
#[must_use]
pub fn complaints(sources: &[Source]) -> Vec<String> {
    let roots = sources.iter().filter_map(|source| source.path.strip_suffix("/src/lib.rs"));
    roots.flat_map(|root| against_order(&read(root, sources))).collect()
}

fn read(root: &str, sources: &[Source]) -> Crate {
    let mut found = Crate::default();
    let folder = format!("{root}/src/");
    for Source { path, text } in sources {
        let Some(name) = path.strip_prefix(&folder).and_then(|name| name.strip_suffix(".rs")) else {
            continue;
        };
        if name == "main" || name.starts_with("bin/") {
            continue;
        }
        let module: Module =
            if name == "lib" { Vec::new() } else { name.split('/').map(str::to_owned).collect() };
        let Ok(tokens) = text.parse::<TokenStream>() else { continue };
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let (mut declared, mut named) = (Vec::new(), Vec::new());
        scan(&tokens, &mut declared, &mut named);
        found.children.insert(module.clone(), declared);
        let paths = named.into_iter().filter_map(|path| absolute(&module, path)).collect();
        found.files.push((path.clone(), module, paths));
    }
    found
}

fn against_order(found: &Crate) -> Vec<String> {
    let mut complaints = BTreeSet::new();
    for (file, module, paths) in &found.files {
        for path in paths {
            let depth = module.iter().zip(path).take_while(|(own, other)| own == other).count();
            let (Some(own), Some(other)) = (module.get(depth), path.get(depth)) else { continue };
            let siblings = found.children.get(&module[..depth]).map_or(&[] as &[String], Vec::as_slice);
            let place = |name: &String| siblings.iter().position(|sibling| sibling == name);
            // A name that is not a module is an item of the parent.
            let (Some(from), Some(to)) = (place(own), place(other)) else { continue };
            if to < from {
                complaints.insert(format!("{file}: {own} uses {other}, which is declared above it"));
            }
        }
    }
    complaints.into_iter().collect()
}

/// Turns a path that begins with `crate`, `self` or `super` into one from the crate's root.
fn absolute(module: &[String], path: Vec<String>) -> Option<Vec<String>> {
    let mut from = module.to_vec();
    let mut segments = path.into_iter().peekable();
    match segments.next()?.as_str() {
        "crate" => from.clear(),
        "super" => {
            from.pop()?;
        }
        _ => {}
    }
    while segments.next_if(|segment| segment == "super").is_some() {
        from.pop()?;
    }
    from.extend(segments);
    Some(from)
}

/// Collects the modules that are declared by `mod name;` and the paths from `crate`, `self` and `super`, but not those of
/// items under `#[cfg(test)]`.
fn scan(tokens: &[TokenTree], declared: &mut Vec<String>, named: &mut Vec<Vec<String>>) {
    let mut idx = 0;
    while idx < tokens.len() {
        if is_test(&tokens[idx..]) {
            idx += 2;
            while idx < tokens.len() && !ends_item(&tokens[idx]) {
                idx += 1;
            }
        } else if let TokenTree::Group(group) = &tokens[idx] {
            scan(&group.stream().into_iter().collect::<Vec<_>>(), declared, named);
        } else if let [TokenTree::Ident(word), rest @ ..] = &tokens[idx..] {
            match (word.to_string().as_str(), rest) {
                ("mod", [TokenTree::Ident(name), TokenTree::Punct(end), ..]) if end.as_char() == ';' => {
                    declared.push(name.to_string());
                }
                ("crate" | "self" | "super", _) if !follows_path(tokens, idx) => {
                    paths(&tokens[idx..], &[], named);
                }
                (_, _) => {}
            }
        }
        idx += 1;
    }
}

/// True for `#[cfg(test)]`.
fn is_test(tokens: &[TokenTree]) -> bool {
    let [TokenTree::Punct(hash), TokenTree::Group(attribute), ..] = tokens else { return false };
    hash.as_char() == '#' && attribute.stream().to_string().replace(' ', "") == "cfg(test)"
}

fn ends_item(token: &TokenTree) -> bool {
    match token {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
    }
}

/// True if the word at `idx` continues a path, as the second one of `super::super` does.
fn follows_path(tokens: &[TokenTree], idx: usize) -> bool {
    idx.checked_sub(1)
        .is_some_and(|before| matches!(&tokens[before], TokenTree::Punct(punct) if punct.as_char() == ':'))
}

/// Collects the paths at the beginning of the tokens: one, or several in braces.
fn paths(tokens: &[TokenTree], prefix: &[String], named: &mut Vec<Vec<String>>) {
    let mut path = prefix.to_vec();
    let mut rest = tokens;
    loop {
        match rest {
            [TokenTree::Ident(word), tail @ ..] => {
                path.push(word.to_string());
                rest = tail;
            }
            [TokenTree::Group(group), ..]
                if group.delimiter() == Delimiter::Brace && path.len() == prefix.len() =>
            {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ',');
                inner.split(is_comma).for_each(|part| paths(part, &path, named));
                return;
            }
            _ => break,
        }
        match rest {
            [TokenTree::Punct(one), TokenTree::Punct(two), TokenTree::Group(_), ..]
                if one.as_char() == ':' && two.as_char() == ':' =>
            {
                return paths(&rest[2..], &path, named);
            }
            [TokenTree::Punct(one), TokenTree::Punct(two), tail @ ..]
                if one.as_char() == ':' && two.as_char() == ':' =>
            {
                rest = tail;
            }
            _ => break,
        }
    }
    named.push(path);
}
