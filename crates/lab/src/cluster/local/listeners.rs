//! Ports of the Gateways' listeners.

use std::sync::Arc;

use anyhow::Result;

use crate::cluster::local::Local;
use crate::cluster::ports::{self, Claim};

/// Port of a listener in the manifest, and the port to which it is bound.
#[derive(Clone, Debug)]
pub(super) struct BoundPort {
    wanted: u16,
    pub(super) bound: u16,
    /// Keeps other labs away, also while Envoy starts again; a port of [`ports::free`] needs none.
    _claim: Option<Arc<Claim>>,
}

impl Local {
    /// Chooses the listeners' ports: the manifests' own if they are free, otherwise all moved by the same offset.
    pub(super) fn choose_listener_ports(&mut self) -> Result<()> {
        let listeners = &self.desired.plan.listeners;
        self.listener_ports.retain(|name, _| listeners.iter().any(|listener| listener.xds_name() == *name));
        let unbound: Vec<(String, u16)> = listeners
            .iter()
            .map(|listener| (listener.xds_name(), listener.port))
            .filter(|(name, port)| self.listener_ports.get(name).is_none_or(|bound| bound.wanted != *port))
            .collect();
        let (first, later) = ports::first_of_each(unbound, listeners.iter().map(|listener| listener.port));
        let wanted: Vec<u16> = first.iter().map(|(_, port)| *port).collect();
        let (offset, claims) = ports::gateway_ports(&wanted)?;
        for (name, port) in later {
            let bound = ports::free()?.port();
            self.note(format!("listener {name} listens on {bound}: another Gateway has port {port}"));
            self.listener_ports.insert(name, BoundPort { wanted: port, bound, _claim: None });
        }
        for ((name, port), claim) in first.into_iter().zip(claims) {
            if offset != 0 && Claim::port(port)?.is_none() {
                self.note(format!("port {port} is taken"));
            }
            let claim = Some(Arc::new(claim));
            self.listener_ports.insert(name, BoundPort { wanted: port, bound: port + offset, _claim: claim });
        }
        if offset != 0 {
            let used: Vec<String> =
                wanted.iter().map(|port| format!("{} for {port}", port + offset)).collect();
            self.note(format!("the gateway listens on {}", used.join(", ")));
        }
        Ok(())
    }
}
