//! The YAML files of a cluster, as text that a scenario can edit.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Texts of manifest files, by file name (such as `inference-pool.yaml`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    pub files: BTreeMap<String, String>,
}

impl Manifests {
    /// Reads the `*.yaml` and `*.yml` files of a directory, without subdirectories.
    ///
    /// # Errors
    /// When the directory cannot be read or has no such file.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let entries =
            std::fs::read_dir(dir).with_context(|| format!("read the manifests in {}", dir.display()))?;
        for entry in entries {
            let path = entry?.path();
            let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
            if let Some(name) =
                path.file_name().and_then(|name| name.to_str()).filter(|_| is_yaml && path.is_file())
            {
                let text =
                    std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
                files.insert(name.to_owned(), text);
            }
        }
        if files.is_empty() {
            bail!("{} holds no .yaml file", dir.display());
        }
        Ok(Self { files })
    }

    /// Replaces `from`, which must occur exactly once in all files, with `to`.
    ///
    /// # Errors
    /// When it does not occur exactly once: after an edit without effect, a test could pass for the wrong reason.
    pub fn replace(&mut self, from: &str, to: &str) -> Result<()> {
        let n_found: usize = self.files.values().map(|text| text.matches(from).count()).sum();
        if n_found != 1 {
            bail!("{from:?} occurs {n_found} times in the manifests, not once");
        }
        for text in self.files.values_mut() {
            *text = text.replace(from, to);
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
        assert!(manifests.replace("replicas: 5", "replicas: 2").is_err());
    }
}
