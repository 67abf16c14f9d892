//! Engine of a cluster's pods: what the lab may ask of it.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Program that the pods run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// mock-vllm, which takes the lab's arguments and keeps a record of each request.
    #[default]
    Mock,
    /// vLLM itself, with the arguments of its manifest. It tells what its answers and metrics tell.
    Vllm,
}

impl Engine {
    /// Parties with a record of every request through the picker.
    #[must_use]
    pub fn witnesses(self) -> &'static str {
        match self {
            Self::Mock => "Envoy, picker and pod",
            Self::Vllm => "Envoy and picker",
        }
    }
}
