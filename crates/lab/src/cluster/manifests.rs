//! The files of a cluster's objects, as text that a scenario can edit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::doc;

/// Extensions of the files of a directory that are read.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
/// Name of a file that holds what came on standard input. It is shown without the directory that it was written to.
pub const STANDARD_INPUT: &str = "standard input";
/// Names of the file that lists a kustomization's resources.
pub const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];
/// Fields of a kustomization that change nothing that the lab reads.
const PLAIN: [&str; 11] = [
    "apiVersion",
    "kind",
    "metadata",
    "resources",
    "images",
    "buildMetadata",
    "sortOptions",
    "generatorOptions",
    "commonAnnotations",
    "openapi",
    "crds",
];

/// Texts of manifest files, by file name (such as `inference-pool.yaml`), or by path if there are several sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    pub files: BTreeMap<String, String>,
}

impl Manifests {
    /// Reads files, the `*.yaml`, `*.yml` and `*.json` files of directories, without subdirectories, and kustomizations of
    /// plain resources.
    ///
    /// # Errors
    /// When a source cannot be read or has no such file.
    pub fn read(sources: &[PathBuf]) -> Result<Self> {
        let mut manifests = Self::default();
        for source in sources {
            let n_before = manifests.files.len();
            let shown = match source.file_name() {
                Some(name) if name == STANDARD_INPUT => Path::new(STANDARD_INPUT),
                // The files of a single directory need no longer name.
                Some(_) | None if sources.len() == 1 && source.is_dir() => Path::new(""),
                Some(_) | None => source,
            };
            manifests.add(source, shown)?;
            if manifests.files.len() == n_before {
                bail!("{} holds no .yaml, .yml or .json file that is not read already", source.display());
            }
        }
        Ok(manifests)
    }

    /// The tutorial's manifests.
    #[must_use]
    pub fn tutorial() -> Self {
        Self { files: doc::manifests().collect() }
    }

    /// Adds a source, whose files are called by their path below `shown`.
    fn add(&mut self, source: &Path, shown: &Path) -> Result<()> {
        if !source.is_dir() {
            let text = std::fs::read_to_string(source)
                .with_context(|| format!("read the manifests in {}", source.display()))?;
            self.files.insert(shown.display().to_string(), text);
            return Ok(());
        }
        if let Some(name) = KUSTOMIZATIONS.iter().find(|name| source.join(name).is_file()) {
            return self.add_kustomization(source, shown, name);
        }
        let entries = std::fs::read_dir(source)
            .with_context(|| format!("read the manifests in {}", source.display()))?;
        for entry in entries {
            let path = entry?.path();
            let is_manifest =
                path.extension().is_some_and(|found| EXTENSIONS.iter().any(|known| found == *known));
            if let Some(name) = path.file_name().filter(|_| is_manifest && path.is_file()) {
                self.add(&path, &shown.join(name))?;
            }
        }
        Ok(())
    }

    fn add_kustomization(&mut self, dir: &Path, shown: &Path, name: &str) -> Result<()> {
        let file = dir.join(name);
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let content: Value =
            serde_saphyr::from_str(&text).with_context(|| format!("read {}", file.display()))?;
        let fields = content.as_object().into_iter().flatten().map(|(field, _)| field.as_str());
        if let Some(field) = fields.into_iter().find(|field| !PLAIN.contains(field)) {
            bail!(
                "{}: {field}: only `resources` are read here: build it with `kubectl kustomize {} | cargo e2e up --manifests -`",
                file.display(),
                dir.display()
            );
        }
        let resources = content.get("resources").and_then(Value::as_array).into_iter().flatten();
        for resource in resources.filter_map(Value::as_str) {
            let source = dir.join(resource);
            if !source.exists() {
                bail!("{}: resources: there is no {}", file.display(), source.display());
            }
            self.add(&source, &shown.join(resource))?;
        }
        Ok(())
    }

    /// Replaces `from`, which must occur exactly once in all files, with `to`.
    ///
    /// # Errors
    /// When it does not occur exactly once: after an edit without effect, a test could pass for the wrong reason.
    pub fn replace(&mut self, from: &str, to: &str) -> Result<()> {
        self.replace_any(&[from], to)
    }

    /// Replaces the same in one of several spellings, of which one must occur, and only once.
    ///
    /// # Errors
    /// When none occurs, or there is more than one place.
    pub fn replace_any(&mut self, spellings: &[&str], to: &str) -> Result<()> {
        let count = |from: &str| self.files.values().map(|text| text.matches(from).count()).sum::<usize>();
        let n_found: usize = spellings.iter().map(|from| count(from)).sum();
        if n_found != 1 {
            bail!("{} occurs {n_found} times in the manifests, not once", spellings.join(" or "));
        }
        let found = spellings.iter().filter(|from| count(from) == 1).copied().collect::<String>();
        for text in self.files.values_mut() {
            *text = text.replace(&found, to);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Manifests;

    #[test]
    fn replace_wants_exactly_one_place() {
        let mut manifests = Manifests::default();
        manifests.files.insert("a.yaml".to_owned(), "replicas: 5\nport: 8000\n".to_owned());
        manifests.files.insert("b.yaml".to_owned(), "port: 8000\n".to_owned());
        manifests.replace("replicas: 5", "replicas: 2").unwrap();
        assert_eq!(manifests.files["a.yaml"], "replicas: 2\nport: 8000\n");
        assert!(manifests.replace("port: 8000", "port: 1").is_err());
        assert!(manifests.replace_any(&["replicas: 2", "port: 8000"], "").is_err());
        manifests.replace_any(&["replicas: \"2\"", "replicas: 2"], "replicas: 5").unwrap();
        manifests.replace("replicas: 5", "replicas: 2").unwrap();
        assert!(manifests.replace("replicas: 5", "replicas: 2").is_err());
    }

    /// Writes files into a new directory.
    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    fn names(dir: &tempfile::TempDir, sources: &[&str]) -> Result<Vec<String>, String> {
        let sources: Vec<_> = sources.iter().map(|source| dir.path().join(source)).collect();
        let read = Manifests::read(&sources).map_err(|error| format!("{error:#}"))?;
        let root = format!("{}/", dir.path().display());
        Ok(read.files.keys().map(|name| name.replace(&root, "")).collect())
    }

    #[test]
    fn files_and_directories_are_read() {
        let dir = directory(&[
            ("d/a.yaml", ""),
            ("d/b.yml", ""),
            ("d/c.json", ""),
            ("d/e.txt", ""),
            ("f.yaml", ""),
        ]);
        assert_eq!(names(&dir, &["d"]).unwrap(), ["a.yaml", "b.yml", "c.json"]);
        assert_eq!(names(&dir, &["f.yaml", "d"]).unwrap(), ["d/a.yaml", "d/b.yml", "d/c.json", "f.yaml"]);
        assert!(names(&dir, &["g.yaml"]).unwrap_err().contains("read the manifests in"));
        let empty = directory(&[("d/e.txt", "")]);
        assert!(names(&empty, &["d"]).unwrap_err().contains("holds no .yaml"));
    }

    #[test]
    fn a_kustomization_of_plain_resources_is_its_resources() {
        let plain = "kind: Kustomization\nresources: [base, pod.yaml]\nimages: [{name: a, newTag: b}]\n";
        let base = ("base/kustomization.yaml", "resources: [gateway.yaml]\n");
        let files = [
            ("gateway.yaml", ""),
            ("base/gateway.yaml", ""),
            ("base/other.yaml", ""),
            ("pod.yaml", ""),
            base,
        ];
        let dir = directory(&[&[("kustomization.yaml", plain)], &files[..]].concat());
        assert_eq!(names(&dir, &["."]).unwrap(), ["base/gateway.yaml", "pod.yaml"]);
        let changes = [("kustomization.yaml", "resources: [pod.yaml]\nnamePrefix: a-\n")];
        let dir = directory(&[&changes, &files[..]].concat());
        let error = names(&dir, &["."]).unwrap_err();
        assert!(error.contains("namePrefix") && error.contains("kubectl kustomize"), "{error}");
        let dir = directory(&[("kustomization.yaml", "resources: [none.yaml]\n")]);
        assert!(names(&dir, &["."]).unwrap_err().contains("there is no"));
    }
}
