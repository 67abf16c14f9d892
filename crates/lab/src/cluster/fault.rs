//! Faults that a scenario can ask a cluster for, and the answer of a cluster that cannot give one.

use std::fmt;

/// A fault. One that lasts stays until [`Cluster::end`](super::Cluster::end) or a restart of the pickers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A pod dies without notice. Its endpoint is removed at once, and after a short back-off a pod with another name
    /// replaces it.
    KillPod(String),
    /// The picker of this name dies without notice, and stays down.
    KillPicker(String),
    /// Every picker dies without notice, and stays down.
    KillPickers,
    /// Every picker accepts connections and answers nothing.
    HangPickers,
    /// Every connection of Envoy to a picker ends by GOAWAY, as if a client's request had made the picker's HTTP/2 library
    /// refuse all of them. Needs [`Fresh::relayed`](super::Fresh::relayed).
    EndConnections,
    /// Holds what pickers send until the fault ends; what Envoy sends arrives. Needs
    /// [`Fresh::relayed`](super::Fresh::relayed).
    HoldAnswers,
    /// Nothing that Envoy and pickers send arrives, and their connections stay. Needs
    /// [`Fresh::relayed`](super::Fresh::relayed).
    LoseMessages,
    /// A picker ends as in a rolling update, with time to drain, and its successor serves.
    ReplacePicker(String),
    /// Every picker has a certificate from an authority that Envoy does not trust.
    ForgeCertificates,
    /// The files with the pickers' pools are empty.
    EmptyPools,
    /// The file with the pickers' endpoints is empty.
    EmptyEndpoints,
    /// The controller of pools dies without notice. Its successor serves.
    KillController,
    /// The gateway's controller is restarted, as by an upgrade.
    RestartGatewayController,
    /// Every pool and model is deleted, and made again.
    RemakePools,
    /// The API server answers nobody.
    HangApiServer,
}

/// Something that the cluster cannot give, and why. The checks that need it are skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl std::error::Error for Unavailable {}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillPod(name) => write!(f, "kill pod {name}"),
            Self::KillPicker(name) => write!(f, "kill picker {name}"),
            Self::KillPickers => f.write_str("kill every picker"),
            Self::HangPickers => f.write_str("hang every picker"),
            Self::EndConnections => f.write_str("end every connection to a picker"),
            Self::HoldAnswers => f.write_str("hold what pickers send"),
            Self::LoseMessages => f.write_str("lose what Envoy and pickers send"),
            Self::ReplacePicker(name) => write!(f, "replace picker {name}"),
            Self::ForgeCertificates => f.write_str("give the pickers forged certificates"),
            Self::EmptyPools => f.write_str("empty the files of pools"),
            Self::EmptyEndpoints => f.write_str("empty the file of endpoints"),
            Self::KillController => f.write_str("kill the controller"),
            Self::RestartGatewayController => f.write_str("restart the gateway's controller"),
            Self::RemakePools => f.write_str("delete the pools and make them again"),
            Self::HangApiServer => f.write_str("hang the API server"),
        }
    }
}
