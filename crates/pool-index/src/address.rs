//! The addresses that an endpoint may have: one host, and a port on it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use thiserror::Error;

/// Why an address cannot be an endpoint's.
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

/// Checks the address and returns its usual form: IPv4 that is mapped into IPv6 becomes IPv4.
///
/// # Errors
/// If it is not the address of one host, or has no port.
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

/// Parses `IP:PORT`.
///
/// # Errors
/// A message that says what is wrong with the text.
pub fn parse(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse().map_err(|error: std::net::AddrParseError| error.to_string())?;
    check(address).map_err(|error| error.to_string())
}
