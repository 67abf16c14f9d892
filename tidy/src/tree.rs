//! The workspace's Rust sources, read once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

/// Folders without hand-written Rust of ours.
const SKIPPED: [&str; 4] = ["target", ".git", "generated", "fixtures"];

/// A source file; `path` is relative to the workspace, with `/` as separator.
#[derive(Clone, Debug)]
pub struct Source {
    pub path: String,
    pub text: String,
}

/// The workspace's folder, seen from this crate.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_path_buf()
}

/// Every `.rs` file below `root`, without generated code and build output, in order of path.
///
/// # Errors
/// The error of the first folder or file that cannot be read.
pub fn sources(root: &Path) -> io::Result<Vec<Source>> {
    let mut found = Vec::new();
    collect(root, root, &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                collect(root, &path, found)?;
            }
        } else if name.ends_with(".rs") {
            let relative =
                path.strip_prefix(root).expect("found below root").to_string_lossy().replace('\\', "/");
            found.push(Source { path: relative, text: fs::read_to_string(&path)? });
        }
    }
    Ok(())
}

/// Files that no `mod` reaches from a root of a crate: `lib.rs`, `main.rs`, `bin/*.rs`, `tests/it/main.rs`,
/// `benches/*.rs`.
#[must_use]
pub fn unreachable(sources: &[Source]) -> Vec<String> {
    let is_root = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        path.ends_with("src/lib.rs")
            || path.ends_with("src/main.rs")
            || path.ends_with("tests/it/main.rs")
            || path.ends_with("build.rs")
            || path.ends_with(&format!("src/bin/{file}"))
            || path.ends_with(&format!("benches/{file}"))
            || path.ends_with(&format!("fuzz_targets/{file}"))
    };
    let mut reached: Vec<String> = sources.iter().map(|s| s.path.clone()).filter(|p| is_root(p)).collect();
    let mut next = 0;
    while next < reached.len() {
        let path = reached[next].clone();
        next += 1;
        let Some(source) = sources.iter().find(|source| source.path == path) else { continue };
        for module in modules(&source.text) {
            for candidate in module_files(&path, &module, is_root(&path)) {
                if sources.iter().any(|s| s.path == candidate) && !reached.contains(&candidate) {
                    reached.push(candidate);
                }
            }
        }
    }
    sources.iter().map(|s| &s.path).filter(|path| !reached.contains(path)).cloned().collect()
}

/// Names declared by `mod name;`, without those in inline modules.
fn modules(text: &str) -> Vec<String> {
    let Ok(tokens) = text.parse::<TokenStream>() else { return Vec::new() };
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    tokens
        .windows(3)
        .filter_map(|three| match three {
            [TokenTree::Ident(keyword), TokenTree::Ident(name), TokenTree::Punct(end)]
                if keyword == "mod" && end.as_char() == ';' =>
            {
                Some(name.to_string())
            }
            _ => None,
        })
        .collect()
}

fn module_files(path: &str, module: &str, root: bool) -> [String; 2] {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let base = if root { folder.to_owned() } else { path.trim_end_matches(".rs").to_owned() };
    [format!("{base}/{module}.rs"), format!("{base}/{module}/mod.rs")]
}
