//! Files of the source tree that the program carries with it: it needs no checkout to run.

use std::path::Path;

use anyhow::{Context as _, Result};

macro_rules! files {
    ($($name:literal),* $(,)?) => { [$(($name, include_str!(concat!("../../../", $name)))),*] };
}

/// Manifests of our components, as `kubectl apply -k` takes them.
pub const COMPONENTS: [(&str, &str); 10] = files![
    "manifests/components/controller.yaml",
    "manifests/components/envoy-gateway.yaml",
    "manifests/components/kustomization.yaml",
    "manifests/components/pickers.yaml",
    "manifests/crds/inference.networking.k8s.io_inferencepools.yaml",
    "manifests/crds/inference.networking.x-k8s.io_inferencemodelrewrites.yaml",
    "manifests/crds/inference.networking.x-k8s.io_inferencemodels.yaml",
    "manifests/crds/inference.networking.x-k8s.io_inferenceobjectives.yaml",
    "manifests/crds/inference.networking.x-k8s.io_inferencepools.yaml",
    "manifests/crds/kustomization.yaml",
];

/// Files of images, beside the programs.
pub const IMAGES: [(&str, &str); 3] = files!["kind/Dockerfile", "kind/python3", "kind/vllm"];

/// Conversations for the image of the benchmark.
pub const CONVERSATIONS: &str = include_str!("../../studies/data/sharegpt-like.json");

/// Writes a file, and makes the folders to it.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
