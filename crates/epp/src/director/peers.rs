//! Adds the picks of other pickers to this picker's index.

use prefix_index::chain::Chain;

use super::{Director, Now};
use crate::datastore::LiveEndpoint;
use crate::peers::{PeerJournal, SentPrompt};

/// Seconds by which two starts of an endpoint differ at least, and two readings of one start never: a number in JSON
/// may lose its last bit.
const SAME_START: f64 = 0.001;

impl Director {
    /// The journal of this picker; `None` without peers.
    #[must_use]
    pub fn journal(&self) -> Option<&PeerJournal> {
        self.journal.as_ref()
    }

    #[must_use]
    pub fn is_instance(&self, instance: &str) -> bool {
        self.journal().is_some_and(|journal| journal.instance() == instance)
    }

    /// Notes that a peer has sent a prompt to an endpoint.
    pub fn believe(&self, event: &SentPrompt) {
        let datastore = self.datastore.load();
        let Some(endpoint) =
            datastore.endpoints.iter().find(|endpoint| endpoint.destination == event.endpoint)
        else {
            return;
        };
        let is_another_process = event
            .started
            .zip(endpoint.state.started())
            .is_some_and(|(theirs, own)| (theirs - own).abs() > SAME_START);
        if is_another_process {
            return;
        }
        self.picker.on_sent_by_peer(&event.hashes, &endpoint.state);
    }

    pub(super) fn tell_peers(&self, chains: &[Chain], endpoint: &LiveEndpoint, now: Now) {
        let Some(journal) = &self.journal else { return };
        for chain in chains {
            journal.note(&endpoint.destination, endpoint.state.started(), chain, now.wall);
        }
    }
}
