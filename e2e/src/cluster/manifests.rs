//! The YAML files of a cluster, as text that a scenario can edit and as checked objects.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// File name (`inference-pool.yaml`) to text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifests {
    pub files: BTreeMap<String, String>,
}

impl Manifests {
    /// Reads the `*.yaml` and `*.yml` files of a directory, not of its subdirectories.
    ///
    /// # Errors
    /// A directory that cannot be read or that holds no such file.
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

    /// Replaces `from`, which must occur exactly once in all the files, by `to`.
    ///
    /// # Errors
    /// When it occurs never or several times: an edit that silently does nothing would make a test pass for nothing.
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
