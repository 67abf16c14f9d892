//! Flags that name other pickers of the same pools.

use clap::Args;

use crate::director::Peers;

#[derive(Args, Debug)]
#[command(next_help_heading = "Other pickers of the same pools")]
pub(super) struct PeerArgs {
    /// Metrics port of another picker whose picks this one should know. A name with several addresses, such as a headless
    /// Service's, is followed to each. May be given several times, and may be this picker itself
    #[arg(long = "peer", value_name = "HOST:PORT")]
    pub(super) peers: Vec<String>,
    /// Most memory for picks that peers have not read yet, or will read after a restart
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20, hide_short_help = true)]
    peer_journal_bytes: usize,
}

impl PeerArgs {
    /// The director's options for a journal; `None` without peers.
    pub(super) fn options(&self) -> Option<Peers> {
        (!self.peers.is_empty()).then(|| Peers {
            instance: uuid::Uuid::new_v4().to_string(),
            journal_bytes: self.peer_journal_bytes,
        })
    }
}
