//! Ports of pods, as Services and probes name them.

use serde::Deserialize;

/// A port of the pod, by number or by the name of a container's port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}
