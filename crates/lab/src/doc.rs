//! The tutorial's manifests, requests and commands, which the program carries with it: it needs no checkout to run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Directory of a checkout with the same files, which a user may edit.
const CHECKOUT: &str = "manifests/doc";

macro_rules! files {
    ($($name:literal),* $(,)?) => { [$(($name, include_bytes!(concat!("../../../manifests/doc/", $name)))),*] };
}

const FILES: [(&str, &[u8]); 10] = files![
    "inference-gateway.yaml",
    "inference-pool.yaml",
    "vllm-service.yaml",
    "requests/bash/round1.txt",
    "requests/bash/round2.txt",
    "requests/dash/round1.txt",
    "requests/dash/round2.txt",
    "requests/quoted/round1.txt",
    "requests/quoted/round2.txt",
    "tutorial/commands.yaml",
];

/// Returns the directory of the tutorial's manifests: that of the working directory if it is a checkout, otherwise
/// the program's own copy, written to `doc` in `run_dir`.
///
/// # Errors
/// When the copy cannot be written.
pub fn directory(run_dir: &Path) -> Result<PathBuf> {
    let here = PathBuf::from(CHECKOUT);
    if here.is_dir() { Ok(here) } else { write(&run_dir.join("doc")) }
}

/// Texts of the tutorial's manifests by file name, as the program carries them.
pub fn manifests() -> impl Iterator<Item = (String, String)> {
    let is_manifest = |name: &str| name.ends_with(".yaml") && !name.contains('/');
    let own = FILES.into_iter().filter(move |(name, _)| is_manifest(name));
    own.map(|(name, content)| (name.to_owned(), String::from_utf8_lossy(content).into_owned()))
}

fn write(directory: &Path) -> Result<PathBuf> {
    for (name, content) in FILES {
        let path = directory.join(name);
        let parent = path.parent().unwrap_or(directory);
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(directory.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::write;

    /// Files below a directory by their paths, but for what is not sent or applied.
    fn files(root: &Path, below: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(below).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(root, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "txt") {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }

    #[test]
    fn the_program_carries_all_of_the_tutorials_files() {
        let dir = tempfile::tempdir().unwrap();
        let copy = write(&dir.path().join("doc")).unwrap();
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/doc");
        let (mut carried, mut published) = (BTreeMap::new(), BTreeMap::new());
        files(&copy, &copy, &mut carried);
        files(&checkout, &checkout, &mut published);
        assert!(published.len() >= 10);
        assert_eq!(carried, published);
    }
}
