//! Flags that say which pools of a Kubernetes cluster there are.

use std::path::PathBuf;

use clap::Args;
use inference_api::object::ObjectKey;
use pool_watch::view::{PoolScope, Pools};

use crate::source::Cluster;

#[derive(Args, Debug)]
#[command(next_help_heading = "Kubernetes")]
pub(super) struct ClusterArgs {
    #[command(flatten)]
    watched: Watched,
    /// File that names the API server [default: $KUBECONFIG or ~/.kube/config, or else the pod's service account]
    #[arg(long, value_name = "FILE", requires = "watched")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[group(id = "watched", multiple = false, conflicts_with_all = ["pool_files", "endpoints_file", "endpoints"])]
struct Watched {
    /// Follow this InferencePool, its InferenceModels and its pods
    #[arg(long, value_name = "NAMESPACE/NAME")]
    watch_pool: Option<ObjectKey>,
    /// Follow the InferencePools of the namespace that name this picker
    #[arg(long, value_name = "NAMESPACE/NAME")]
    watch_picker: Option<ObjectKey>,
}

impl ClusterArgs {
    /// The cluster to follow, if one is asked for.
    pub(super) fn cluster(&self) -> Option<Cluster> {
        let Self { watched: Watched { watch_pool, watch_picker }, kubeconfig } = self;
        let scope = |key: &ObjectKey, pools: fn(String) -> Pools| PoolScope {
            namespace: key.namespace.clone(),
            pools: pools(key.name.clone()),
        };
        let pool = watch_pool.as_ref().map(|key| scope(key, Pools::Named));
        let scope = pool.or_else(|| watch_picker.as_ref().map(|key| scope(key, Pools::OfPicker)))?;
        Some(Cluster { scope, kubeconfig: kubeconfig.clone() })
    }
}
