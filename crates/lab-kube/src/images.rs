//! Container images of our programs: packed by Docker from programs that cargo has built.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use lab::cluster::programs::{ProgramOptions, WITH_KUBERNETES, Wanted, find};
use lab::cluster::{Progress, ProgressEvent};

use crate::files;
use crate::tool::Tool;

/// Prefix of the images that are made here.
pub const PREFIX: &str = "warmpath";
/// Tag of the images, which the manifests of the components name.
pub const TAG: &str = env!("CARGO_PKG_VERSION");

/// The programs in the images, in the order of [`Image::ALL`].
const PROGRAMS: Wanted<'_> =
    Wanted { programs: &["epp", "controller", "mock-vllm", "multi-round-qa"], arguments: WITH_KUBERNETES };

/// An image of one of our programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    Epp,
    Controller,
    MockVllm,
    Benchmark,
}

impl Image {
    pub const ALL: [Self; 4] = [Self::Epp, Self::Controller, Self::MockVllm, Self::Benchmark];

    /// The name of the image, and its target in the Dockerfile.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Epp => "epp",
            Self::Controller => "controller",
            Self::MockVllm => "mock-vllm",
            Self::Benchmark => "llm-qa-benchmark",
        }
    }

    /// The image of the tutorial that a node is given this one for.
    #[must_use]
    pub fn stands_for(self) -> Option<&'static str> {
        match self {
            Self::Epp | Self::Controller => None,
            Self::MockVllm => Some("vllm/vllm-openai:v0.8.5"),
            Self::Benchmark => Some("registry-cn-hangzhou.ack.aliyuncs.com/dev/llm-qa-benchmark:v0.1"),
        }
    }

    /// Returns the image of ours that stands for `used` on nodes that hold images by these names: it has its own name there,
    /// too.
    #[must_use]
    pub fn behind(used: &str, held: &[Vec<String>]) -> Option<Self> {
        let ours = Self::ALL.into_iter().find(|ours| ours.stands_for() == Some(used))?;
        let is_used = |name: &String| name.trim_start_matches("docker.io/") == used;
        let is_own = |name: &String| !is_used(name) && name.contains(&format!("/{}:", ours.name()));
        let stands = |names: &Vec<String>| names.iter().any(is_used) && names.iter().any(is_own);
        held.iter().any(stands).then_some(ours)
    }

    /// Arguments with which a program that fits prints its version. A picker that was built without the feature
    /// `kubernetes` refuses its own.
    fn trial(self) -> &'static [&'static str] {
        match self {
            Self::Epp => &["--watch-picker", "default/picker", "--version"],
            Self::Controller | Self::MockVllm | Self::Benchmark => &["--version"],
        }
    }

    /// The reference of the image, with the prefix of a registry or of this machine's images.
    #[must_use]
    pub fn reference(self, prefix: &str) -> String {
        format!("{prefix}/{}:{TAG}", self.name())
    }
}

/// Builds the programs and packs each into its image, and returns the images' references. `version` is the one of the
/// running program, with its revision in brackets.
///
/// # Errors
/// When a program cannot be built, Docker fails, or a program does not run in its image.
pub async fn build(
    options: &ProgramOptions,
    version: &str,
    context: &Path,
    progress: &Progress,
) -> Result<Vec<String>> {
    Tool::Docker.check().await?;
    let programs = find(PROGRAMS, options, progress).await?;
    progress(ProgressEvent::Step("packing programs into images".to_owned()));
    fill(context, &programs).await?;
    let (version, revision) = version.split_once(" (").unwrap_or((version, "unknown"));
    let (version, revision) =
        (format!("VERSION={version}"), format!("REVISION={}", revision.trim_end_matches(')')));
    let context = context.to_str().context("the folder of the images is not UTF-8")?;
    let mut references = Vec::new();
    for (image, program) in Image::ALL.into_iter().zip(PROGRAMS.programs) {
        let reference = image.reference(PREFIX);
        progress(ProgressEvent::Step(format!("building the image {reference}")));
        let build = ["build", "--quiet", "--target", image.name(), "--tag", &reference];
        let labels = ["--build-arg", &version, "--build-arg", &revision, context];
        Tool::Docker.run(&[&build[..], &labels].concat()).await?;
        let entrypoint = format!("/usr/local/bin/{program}");
        let trial = ["run", "--rm", "--network", "none", "--entrypoint", &entrypoint, &reference];
        Tool::Docker.run(&[&trial[..], image.trial()].concat()).await.with_context(|| {
            format!(
                "{program} does not run in its image: build it on a Linux whose C library is not newer than Debian \
                 13's, with `{}`, or name published images with --images",
                WITH_KUBERNETES.join(" ")
            )
        })?;
        references.push(reference);
    }
    Ok(references)
}

/// Fills the folder that Docker gets: the Dockerfile, what is beside it, and the programs without debug information.
async fn fill(context: &Path, programs: &[PathBuf]) -> Result<()> {
    if context.exists() {
        std::fs::remove_dir_all(context).with_context(|| format!("remove {}", context.display()))?;
    }
    for (name, text) in files::IMAGES {
        let file = context.join(name.rsplit('/').next().unwrap_or(name));
        files::write(&file, text)?;
        let mode = if name.ends_with("Dockerfile") { 0o644 } else { 0o755 };
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode))?;
    }
    files::write(&context.join("ShareGPT.json"), files::CONVERSATIONS)?;
    for program in programs {
        if !is_for_linux(program)? {
            bail!("{} is not a program for Linux: name published images with --images", program.display());
        }
        let packed = context.join(program.file_name().context("a program has a name")?);
        std::fs::copy(program, &packed).with_context(|| format!("copy {}", program.display()))?;
        strip(&packed).await;
    }
    Ok(())
}

/// True for an ELF file.
fn is_for_linux(program: &Path) -> Result<bool> {
    use std::io::Read as _;
    let mut magic = [0; 4];
    let read = std::fs::File::open(program).and_then(|mut file| file.read_exact(&mut magic));
    read.with_context(|| format!("read {}", program.display()))?;
    Ok(magic == *b"\x7fELF")
}

/// Removes symbols and debug information. Without the program `strip` the image is only larger.
async fn strip(program: &Path) {
    let _ = tokio::process::Command::new("strip").arg(program).kill_on_drop(true).output().await;
}

#[cfg(test)]
mod tests {
    use super::Image;

    const VLLM: &str = "vllm/vllm-openai:v0.8.5";

    fn held(images: &[&[&str]]) -> Vec<Vec<String>> {
        images.iter().map(|names| names.iter().map(|name| (*name).to_owned()).collect()).collect()
    }

    /// The control is a node with vLLM itself, beside our image.
    #[test]
    fn an_image_stands_for_another_only_if_it_has_both_names() {
        let own = Image::MockVllm.reference("docker.io/warmpath");
        let mock = held(&[&["docker.io/vllm/vllm-openai:v0.8.5", &own]]);
        assert_eq!(Image::behind(VLLM, &mock), Some(Image::MockVllm));
        assert_eq!(Image::behind("vllm/vllm-openai:v0.9", &mock), None);
        let vllm =
            held(&[&["docker.io/vllm/vllm-openai:v0.8.5", "docker.io/vllm/vllm-openai@sha256:0"], &[&own]]);
        assert_eq!(Image::behind(VLLM, &vllm), None);
        assert_eq!(Image::behind(VLLM, &[]), None);
    }

    #[test]
    fn an_image_that_is_called_like_its_original_is_told_by_its_prefix() {
        let original = Image::Benchmark.stands_for().unwrap();
        assert_eq!(Image::behind(original, &held(&[&[original]])), None);
        let ours = Image::Benchmark.reference("docker.io/warmpath");
        assert_eq!(Image::behind(original, &held(&[&[original, &ours]])), Some(Image::Benchmark));
    }
}
