//! Flags that choose a Kubernetes cluster in place of processes of this machine.

use clap::{Args, ValueEnum};

use crate::engine::Engine;

/// A provider of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    /// A cluster of kind on this machine, made if it is not there
    Kind,
    /// A cluster of the kubeconfig
    Cluster,
}

/// The cluster to use.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct OnArgs {
    /// Use a Kubernetes cluster in place of processes of this machine: one of `kind`, or a `cluster` that is there
    #[arg(long, value_enum, value_name = "kind|cluster", hide_possible_values = true)]
    pub on: Option<Provider>,
    /// Context of the cluster in the kubeconfig [default: the current one]
    #[arg(long, value_name = "NAME", requires = "on")]
    pub context: Option<String>,
    /// Name of the cluster of kind
    #[arg(long, value_name = "NAME", default_value = "warmpath")]
    pub kind_name: String,
}

/// Components to install there.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct InstallArgs {
    /// Prefix of published images of this project [default: images of this machine's programs are made]
    #[arg(long, value_name = "PREFIX")]
    pub images: Option<String>,
    /// File or URL of Envoy Gateway's install.yaml, for a cluster without it [default: that of the release 1.9.1]
    #[arg(long, value_name = "FILE|URL", env = "ENVOY_GATEWAY_INSTALL")]
    pub envoy_gateway: Option<String>,
    /// Program that the pods run: `mock`, which stands for vLLM on kind; or `vllm` as the manifests have it, on GPUs, of
    /// which is skipped what only the mock tells
    #[arg(
        long,
        value_enum,
        value_name = "mock|vllm",
        hide_possible_values = true,
        default_value = "mock",
        requires = "on"
    )]
    pub engine: Engine,
}
