//! Free TCP ports on 127.0.0.1.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, bail};

/// Range of the ports for pods and controls. It is below the ephemeral range (Linux: from 32768), so that no connection
/// of the load client takes a port between its choice and its use.
const RANGE: Range<u16> = 20_000..30_000;
/// Distance between the first ports that two processes with successive ids look at.
const STRIDE: u32 = 100;
/// Offsets that are tried for the gateway's ports: 8081, 9081, 10081 …
const OFFSETS: [u16; 12] = [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10_000, 11_000];

/// Number of ports that all clusters of this process have looked at, so that they look at each port once before they
/// start again.
static N_LOOKED_AT: AtomicU32 = AtomicU32::new(0);

/// Returns a port that is free now and that no other cluster of this process gets.
pub(super) fn free() -> Result<SocketAddr> {
    let n_ports = u32::from(RANGE.end - RANGE.start);
    let first = std::process::id() % (n_ports / STRIDE) * STRIDE;
    for _ in RANGE {
        let offset = (first + N_LOOKED_AT.fetch_add(1, Ordering::Relaxed)) % n_ports;
        let port = RANGE.start + u16::try_from(offset)?;
        if is_free(port) {
            return Ok(local(port));
        }
    }
    bail!("no port of {}..{} is free", RANGE.start, RANGE.end)
}

pub(super) fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Returns the least of [`OFFSETS`] at which all `wanted` ports are free.
pub(super) fn gateway_offset(wanted: &[u16]) -> Result<u16> {
    let fits = |offset: &u16| wanted.iter().all(|port| port.checked_add(*offset).is_some_and(is_free));
    match OFFSETS.iter().find(|offset| fits(offset)) {
        Some(offset) => Ok(*offset),
        None => bail!("the gateway's ports {wanted:?} are taken, and so are those 1000 to 11000 above them"),
    }
}

/// Name of a listener and the port that it wants.
pub(super) type NamedPort = (String, u16);

/// Tells the first listener of each port from later ones. On a cluster each Gateway has an address of its own; here they
/// share one, so a later one needs another port. `all` has the ports of these and of earlier listeners.
pub(super) fn first_of_each(
    listeners: Vec<NamedPort>,
    all: impl Iterator<Item = u16>,
) -> (Vec<NamedPort>, Vec<NamedPort>) {
    let mut n_bound: BTreeMap<u16, usize> = BTreeMap::new();
    all.for_each(|port| *n_bound.entry(port).or_default() += 1);
    for (_, port) in &listeners {
        n_bound.entry(*port).and_modify(|n_bound| *n_bound -= 1);
    }
    listeners.into_iter().partition(|(_, port)| {
        let n_bound = n_bound.entry(*port).or_default();
        *n_bound += 1;
        *n_bound == 1
    })
}

/// True if the port is bound neither on 127.0.0.1 nor on all addresses (macOS allows both at the same time).
pub(super) fn is_free(port: u16) -> bool {
    [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED]
        .iter()
        .all(|address| TcpListener::bind((*address, port)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::{first_of_each, free, gateway_offset, is_free};

    #[test]
    fn only_the_first_listener_of_a_port_gets_it() {
        let listeners =
            |ports: &[u16]| ports.iter().map(|port| (port.to_string(), *port)).collect::<Vec<_>>();
        let (first, later) = first_of_each(listeners(&[80, 81, 80]), [80, 81, 80].into_iter());
        assert_eq!((first, later), (listeners(&[80, 81]), listeners(&[80])));
        let (first, later) = first_of_each(listeners(&[80, 81]), [80, 80, 81].into_iter());
        assert_eq!((first, later), (listeners(&[81]), listeners(&[80])), "an earlier one has it already");
    }

    #[test]
    fn a_taken_port_is_not_handed_out() {
        let first = free().unwrap();
        let listener = std::net::TcpListener::bind(first).unwrap();
        assert!(!is_free(first.port()));
        let offset = gateway_offset(&[first.port()]).unwrap();
        assert!(offset != 0 && offset.is_multiple_of(1000));
        drop(listener);
        assert_ne!(free().unwrap(), first);
    }
}
