//! Which vLLM a pod passes for: one value decides metric names, error bodies, fields of chunks, events and block order.

/// The three generations that differ on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum VllmVersion {
    /// 0.8.5, of the tutorial's time.
    V0_8,
    V0_11,
    #[default]
    V0_33,
}

impl VllmVersion {
    /// In order of age.
    pub const ALL: [Self; 3] = [Self::V0_8, Self::V0_11, Self::V0_33];

    /// As `--vllm-version` names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::V0_8 => "0.8",
            Self::V0_11 => "0.11",
            Self::V0_33 => "0.33",
        }
    }

    /// As `/version` and `system_fingerprint` spell it.
    pub fn release(self) -> &'static str {
        match self {
            Self::V0_8 => "0.8.5.post1",
            Self::V0_11 => "0.11.0",
            Self::V0_33 => "0.33.0",
        }
    }

    /// The minor version before it, whose hidden metrics `--show-hidden-metrics-for-version` brings back.
    pub fn previous_minor(self) -> &'static str {
        match self {
            Self::V0_8 => "0.7",
            Self::V0_11 => "0.10",
            Self::V0_33 => "0.32",
        }
    }
}
