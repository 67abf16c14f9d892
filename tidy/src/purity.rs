//! Purity rules: decision code reads no clock, does no I/O and spawns nothing; no code is unfinished or silenced; no
//! program knows the folder that it was built in.

use crate::tree::Source;

/// Prefixes of the paths of decision code.
pub const PURE: [&str; 6] = [
    "crates/picking/src/",
    "crates/scheduling/src/",
    "crates/prefix-index/src/",
    "crates/ext-proc/src/",
    "crates/gateway-config/src/",
    "crates/vllm-engine/src/",
];

/// Words that decision code must not contain, and why.
const IMPURE: [(&str, &str); 13] = [
    ("tokio", "async runtime"),
    ("async fn", "async"),
    (".await", "async"),
    ("std::fs", "I/O"),
    ("TcpListener", "network"),
    ("TcpStream", "network"),
    ("std::process", "processes"),
    ("std::thread", "threads"),
    ("Instant::now", "clock"),
    ("SystemTime", "clock"),
    ("rand::rng()", "randomness that is not passed in"),
    ("thread_rng", "randomness that is not passed in"),
    ("env::var", "environment"),
];

/// Marks of unfinished or silenced code, written with `+` here so that this file does not contain them.
fn unfinished() -> [String; 6] {
    ["TO+DO", "FIX+ME", "todo+!(", "unimplemented+!(", "#[ig+nore", "#[all+ow("]
        .map(|mark| mark.replace('+', ""))
}

/// Lines of decision code that name a clock, I/O or a runtime.
#[must_use]
pub fn impurities(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for Source { path, text } in
        sources.iter().filter(|s| PURE.iter().any(|prefix| s.path.starts_with(prefix)))
    {
        for (idx, line) in code_lines(text) {
            if let Some((name, why)) = IMPURE.iter().find(|(name, _)| line.contains(name)) {
                found.push(format!("{path}:{}: {name} ({why}) in decision code", idx + 1));
            }
        }
    }
    found
}

/// Lines with a mark of unfinished or silenced code, in any file.
#[must_use]
pub fn left_undone(sources: &[Source]) -> Vec<String> {
    let marks = unfinished();
    let mut found = Vec::new();
    for Source { path, text } in sources {
        for (idx, line) in text.lines().enumerate() {
            if let Some(mark) = marks.iter().find(|mark| line.contains(mark.as_str())) {
                found.push(format!("{path}:{}: {mark}", idx + 1));
            }
        }
    }
    found
}

/// Lines of programs that take a path of the machine that compiles them: the binary would name a folder of its author,
/// and look there for files. Tests, examples in a file's `mod tests` and this crate read the checkout.
#[must_use]
pub fn baked_paths(sources: &[Source]) -> Vec<String> {
    let is_program = |path: &str| {
        path.split_once("src/").is_some_and(|(before, _)| !before.contains("tests/"))
            && !path.starts_with("tidy/")
    };
    let mut found = Vec::new();
    for Source { path, text } in sources.iter().filter(|source| is_program(&source.path)) {
        let program = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (idx, line) in code_lines(program) {
            let variables = ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "OUT_DIR"];
            if variables.iter().any(|name| line.contains(&format!("env!(\"{name}\")"))) {
                found.push(format!("{path}:{}: a path of the source tree in a program", idx + 1));
            }
        }
    }
    found
}

/// Lines that are not comments, with their numbers from 0.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
}
