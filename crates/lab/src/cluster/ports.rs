//! Free TCP ports on 127.0.0.1.
//!
//! A port is chosen some time before a child binds it, and a look whether it is free binds it for a moment. Labs of one
//! user therefore claim ports before they look: a lock on a file, which the kernel releases with its process.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};
use nix::unistd::getuid;
use socket2::{Domain, Socket, Type};

/// Range of the ports for pods and controls. It is below the ephemeral range (Linux: from 32768), so that no connection
/// of the load client takes a port between its choice and its use.
const RANGE: Range<u16> = 20_000..30_000;
/// Number of ports that a process claims at once.
const BLOCK: u16 = 100;
/// Most blocks of a process. Once it has used them all up, it looks through them again, from the first.
const MAX_BLOCKS: usize = 20;
/// Offsets that are tried for the gateway's ports: 8081, 9081, 10081 …
const OFFSETS: [u16; 12] = [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10_000, 11_000];

/// Blocks of all clusters of this process.
static BLOCKS: Mutex<Blocks> = Mutex::new(Blocks { claimed: Vec::new(), n_looked_at: 0 });

/// A hold on a port, or on a block of them. No other claim of this user succeeds while it lives.
#[derive(Debug)]
pub(super) struct Claim {
    _lock: File,
}

impl Claim {
    /// Claims the port if it is free.
    ///
    /// # Errors
    /// When the file of the claim cannot be made.
    pub(super) fn port(port: u16) -> Result<Option<Self>> {
        if RANGE.contains(&port) && !blocks(|blocks| blocks.has(port))? {
            return Ok(None);
        }
        Ok(Self::named(&port.to_string())?.filter(|_| is_free(port)))
    }

    fn named(name: &str) -> Result<Option<Self>> {
        let dir = std::env::temp_dir().join(format!("warmpath-ports-{}", getuid()));
        let path = dir.join(name);
        let open = || -> std::io::Result<File> {
            std::fs::create_dir_all(&dir)?;
            File::options().create(true).truncate(false).write(true).open(&path)
        };
        let lock = open().with_context(|| format!("claim ports with {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).context(format!("lock {}", path.display())),
        }
    }
}

#[derive(Debug)]
struct Blocks {
    /// First port of each, with its claim.
    claimed: Vec<(u16, Claim)>,
    /// Number of ports that were looked at, so that a port is looked at again as late as possible.
    n_looked_at: usize,
}

impl Blocks {
    /// The next port, free or not; `None` if no block is left.
    fn next(&mut self) -> Result<Option<u16>> {
        let (mut block, offset) =
            (self.n_looked_at / usize::from(BLOCK), self.n_looked_at % usize::from(BLOCK));
        if block == self.claimed.len() && (block == MAX_BLOCKS || !self.claim_any()?) {
            (block, self.n_looked_at) = (0, 0);
        }
        self.n_looked_at += 1;
        let Some((first, _)) = self.claimed.get(block) else { return Ok(None) };
        Ok(Some(first + u16::try_from(offset)?))
    }

    fn claim_any(&mut self) -> Result<bool> {
        for first in RANGE.step_by(usize::from(BLOCK)) {
            if self.claim(first)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Claims a block. False if it is claimed already, here or elsewhere.
    fn claim(&mut self, first: u16) -> Result<bool> {
        let claim = Claim::named(&format!("{first}-{}", first + BLOCK - 1))?;
        let is_new = claim.is_some();
        self.claimed.extend(claim.map(|claim| (first, claim)));
        Ok(is_new)
    }

    /// True if the port's block is, or now becomes, one of these.
    fn has(&mut self, port: u16) -> Result<bool> {
        let first = port - (port - RANGE.start) % BLOCK;
        Ok(self.claimed.iter().any(|(claimed, _)| *claimed == first) || self.claim(first)?)
    }
}

fn blocks<T>(with: impl FnOnce(&mut Blocks) -> T) -> T {
    with(&mut BLOCKS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Returns a port that is free now and that no other cluster gets, of this process or of another lab of this user.
pub(super) fn free() -> Result<SocketAddr> {
    for _ in 0..=MAX_BLOCKS * usize::from(BLOCK) {
        match blocks(Blocks::next)? {
            Some(port) if is_free(port) => return Ok(local(port)),
            Some(_) => {}
            None => break,
        }
    }
    bail!("no port of {}..{} is free: end some of the labs that run", RANGE.start, RANGE.end)
}

pub(super) fn local(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Returns the least of [`OFFSETS`] at which all `wanted` ports are free, and claims on the ports there.
pub(super) fn gateway_ports(wanted: &[u16]) -> Result<(u16, Vec<Claim>)> {
    'offsets: for offset in OFFSETS {
        let mut claims = Vec::with_capacity(wanted.len());
        for port in wanted {
            let claim = port.checked_add(offset).map(Claim::port).transpose()?.flatten();
            let Some(claim) = claim else { continue 'offsets };
            claims.push(claim);
        }
        return Ok((offset, claims));
    }
    bail!("the gateway's ports {wanted:?} are taken, and so are those 1000 to 11000 above them")
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
fn is_free(port: u16) -> bool {
    [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED].iter().all(|address| look((*address, port).into()).is_ok())
}

/// Binds a socket to the address, and does not listen. A child that another thread starts at the moment holds the socket for
/// as long as it takes to become its program, which is long on a busy machine. Linux lets a server bind meanwhile what a
/// socket holds that does not listen.
///
/// # Errors
/// When the address is taken.
fn look(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Blocks, Claim, MAX_BLOCKS, RANGE, first_of_each, free, gateway_ports, is_free, look};
    use std::net::TcpListener;

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
        let listener = TcpListener::bind(first).unwrap();
        assert!(!is_free(first.port()));
        let (offset, _claims) = gateway_ports(&[first.port()]).unwrap();
        assert!(offset != 0 && offset.is_multiple_of(1000));
        drop(listener);
        assert_ne!(free().unwrap(), first);
    }

    /// A child that was started during a look holds the socket of the look.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_look_that_lasts_keeps_no_server_from_the_port() {
        let address = free().unwrap();
        let _held = look(address).unwrap();
        let server = TcpListener::bind(address).expect("only a look is in the way");
        assert!(look(address).is_err(), "the control: a server listens");
        drop(server);
        assert!(is_free(address.port()));
    }

    /// Nothing listens yet, as between a lab's choice of a port and the start of its Envoy.
    #[test]
    fn a_claimed_port_is_left_alone_until_the_claim_ends() {
        let port = free().unwrap().port();
        let (offset, claims) = gateway_ports(&[port]).unwrap();
        assert_eq!(offset, 0);
        assert!(is_free(port), "the control: only the claim is in the way");
        assert_ne!(gateway_ports(&[port]).unwrap().0, 0);
        drop(claims);
        assert_eq!(gateway_ports(&[port]).unwrap().0, 0);
    }

    #[test]
    fn labs_share_no_block_and_look_at_each_port_of_theirs_once() {
        let mut labs = [(); 2].map(|()| Blocks { claimed: Vec::new(), n_looked_at: 0 });
        let n_ports = usize::from(BLOCK) * 2;
        let mut looked_at: Vec<u16> = Vec::new();
        for lab in &mut labs {
            looked_at.extend((0..n_ports).map(|_| lab.next().unwrap().unwrap()));
        }
        assert!(looked_at.iter().all(|port| RANGE.contains(port)));
        looked_at.sort_unstable();
        looked_at.dedup();
        assert_eq!(looked_at.len(), n_ports * 2);
        let [first, second] = &mut labs;
        let of_first = first.claimed[0].0;
        assert!(first.has(of_first).unwrap() && !second.has(of_first).unwrap());
        assert!(Claim::port(of_first).unwrap().is_none(), "its block is another lab's");
    }

    #[test]
    fn a_lab_that_has_used_its_blocks_up_begins_again() {
        let mut lab = Blocks { claimed: Vec::new(), n_looked_at: 0 };
        let first = lab.next().unwrap();
        while lab.claimed.len() < MAX_BLOCKS {
            assert!(lab.claim_any().unwrap(), "other labs have all blocks");
        }
        lab.n_looked_at = usize::from(BLOCK) * lab.claimed.len();
        assert_eq!(lab.next().unwrap(), first);
    }
}
