//! Flags that say which pools, models and endpoints there are.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use inference_api::object::ObjectKey;
use pool_index::source::files;

#[derive(Args, Debug)]
#[command(next_help_heading = "Pools and endpoints")]
pub(super) struct PoolArgs {
    /// YAML file with InferencePools, InferenceModels, InferenceObjectives and InferenceModelRewrites; may be given several
    /// times
    #[arg(long = "pool-file", value_name = "FILE")]
    #[cfg_attr(not(feature = "kubernetes"), arg(required = true))]
    #[cfg_attr(feature = "kubernetes", arg(required_unless_present = "watched"))]
    pool_files: Vec<PathBuf>,
    /// YAML file with a list of endpoints, which pools select by label and namespace
    #[arg(long, value_name = "FILE")]
    endpoints_file: Option<PathBuf>,
    /// A model server that belongs to every pool; may be given several times
    #[arg(long = "endpoint", value_name = "IP:PORT", value_parser = pool_index::address::parse)]
    endpoints: Vec<SocketAddr>,
    /// The pool to pick from [default: the pool that the proxy names, the only one, or the one that has the model]
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub(super) pool: Option<ObjectKey>,
}

impl PoolArgs {
    /// The files and endpoints to read.
    pub(super) fn files(&self) -> files::Config {
        files::Config {
            pool_files: self.pool_files.clone(),
            endpoints_file: self.endpoints_file.clone(),
            static_endpoints: self.endpoints.clone(),
        }
    }
}
