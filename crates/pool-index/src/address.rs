//! Which addresses an endpoint may have: those of one host, and a port of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use thiserror::Error;

/// Why an address is no endpoint's.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("{0}: port 0 stands for any port, an endpoint has one")]
    AnyPort(SocketAddr),
    #[error(
        "{0}: an unspecified address stands for every interface of a host, an endpoint has one of its own"
    )]
    Unspecified(SocketAddr),
    #[error("{0}: a multicast address stands for many hosts, an endpoint is one")]
    Multicast(SocketAddr),
    #[error("{0}: the broadcast address stands for many hosts, an endpoint is one")]
    Broadcast(SocketAddr),
}

/// The address as everyone spells it, without IPv4 mapped into IPv6.
///
/// # Errors
/// When it is not the address of one host, or has no port.
pub fn check(address: SocketAddr) -> Result<SocketAddr, AddressError> {
    let ip = address.ip().to_canonical();
    let canonical = if ip == address.ip() { address } else { SocketAddr::new(ip, address.port()) };
    match ip {
        _ if address.port() == 0 => Err(AddressError::AnyPort(address)),
        ip if ip.is_unspecified() => Err(AddressError::Unspecified(address)),
        ip if ip.is_multicast() => Err(AddressError::Multicast(address)),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Err(AddressError::Broadcast(address)),
        IpAddr::V4(_) | IpAddr::V6(_) => Ok(canonical),
    }
}

/// Reads `IP:PORT`.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse().map_err(|error: std::net::AddrParseError| error.to_string())?;
    check(address).map_err(|error| error.to_string())
}
