//! Files of a run: logs, and of a local one also certificates and what Envoy and the pickers read.

use std::path::PathBuf;

/// Paths of a run's files, all in its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFiles {
    pub dir: PathBuf,
}

impl RunFiles {
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// JSON lines, one per request and listener; Envoy flushes them every 100 ms.
    pub fn access_log(&self) -> PathBuf {
        self.logs().join("envoy-access.log")
    }

    pub fn envoy_log(&self) -> PathBuf {
        self.logs().join("envoy.log")
    }

    pub fn envoy_dir(&self) -> PathBuf {
        self.dir.join("envoy")
    }

    /// File from which a picker reads its pools and models.
    pub fn pools(&self, picker: &str) -> PathBuf {
        self.dir.join(format!("pools-{picker}.yaml"))
    }

    /// Upstream's configuration of a picker.
    pub fn picker_config(&self, picker: &str) -> PathBuf {
        self.dir.join(format!("config-{picker}.yaml"))
    }

    /// Directory with the files that a picker of the user's sees, below their paths in its container.
    pub fn picker_mounts(&self, picker: &str) -> PathBuf {
        self.dir.join("mounts").join(picker)
    }

    pub fn endpoints(&self) -> PathBuf {
        self.dir.join("endpoints.yaml")
    }

    /// Certificate authority that Envoy trusts, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("tls/ca.crt")
    }

    /// Directory with `tls.crt` and `tls.key` of a picker.
    pub fn identity(&self, picker: &str) -> PathBuf {
        self.dir.join("tls").join(picker)
    }
}
