//! Version of vLLM that a pod imitates: it decides metric names, error bodies, fields of chunks, events and the order
//! of blocks.

/// The three generations that differ on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum VllmVersion {
    /// 0.8.5, from the tutorial's time.
    V0_8,
    V0_11,
    #[default]
    V0_33,
}

impl VllmVersion {
    /// All versions in order of age.
    pub const ALL: [Self; 3] = [Self::V0_8, Self::V0_11, Self::V0_33];

    /// Returns its name for `--vllm-version`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V0_8 => "0.8",
            Self::V0_11 => "0.11",
            Self::V0_33 => "0.33",
        }
    }

    /// Returns its spelling in `/version` and `system_fingerprint`.
    pub fn release(self) -> &'static str {
        match self {
            Self::V0_8 => "0.8.5.post1",
            Self::V0_11 => "0.11.0",
            Self::V0_33 => "0.33.0",
        }
    }

    /// Returns the minor version before it, whose hidden metrics `--show-hidden-metrics-for-version` shows.
    pub fn previous_minor(self) -> &'static str {
        match self {
            Self::V0_8 => "0.7",
            Self::V0_11 => "0.10",
            Self::V0_33 => "0.32",
        }
    }
}
