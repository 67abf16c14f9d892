//! Build script of the programs: `PROGRAM_VERSION` is the version and the git revision, for `--version`.
//!
//! A release build has the revision of the current commit. A debug build has that of the last change to the program's own
//! sources, and says so, because with the current commit every commit would compile the program again.

#![expect(clippy::disallowed_methods, reason = "cargo and build scripts talk by these")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let package = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let version = env::var("CARGO_PKG_VERSION").expect("set by cargo");
    let is_debug = env::var("PROFILE").is_ok_and(|profile| profile == "debug");
    let described = match (revision(&package), is_debug) {
        (Some(revision), false) => format!("{version} ({revision})"),
        (Some(revision), true) => format!("{version} (debug, {revision} or later)"),
        // The sources are an archive without history.
        (None, _) => version,
    };
    println!("cargo::rustc-env=PROGRAM_VERSION={described}");
    println!("cargo::rerun-if-changed={}", if is_debug { "src" } else { "Cargo.toml" });
    // Git appends a line here with every commit, checkout and rebase.
    let log = git(&package, &["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]);
    if let Some(log) = log.filter(|log| !is_debug && Path::new(log).is_file()) {
        println!("cargo::rerun-if-changed={log}");
    }
}

/// Returns the commit that is checked out, if git has these sources. An archive that was unpacked inside another
/// repository has no revision.
fn revision(package: &Path) -> Option<String> {
    git(package, &["ls-files", "--error-unmatch", "Cargo.toml"])?;
    git(package, &["rev-parse", "--short=10", "HEAD"])
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(folder).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
