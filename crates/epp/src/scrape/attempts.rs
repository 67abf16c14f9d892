//! Connection attempts to endpoints, with a bound on how many are open at once.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Failure;

/// Most attempts of each kind at a time. Each takes a file descriptor, and without an answer keeps it for the whole
/// patience.
const MAX_ATTEMPTS: usize = 256;

/// Connects to endpoints. Those that did not answer before have their own queue, so that a network that drops
/// connections does not delay the others.
#[derive(Debug)]
pub struct Attempts {
    first: Semaphore,
    again: Semaphore,
}

impl Default for Attempts {
    fn default() -> Self {
        Self { first: Semaphore::new(MAX_ATTEMPTS), again: Semaphore::new(MAX_ATTEMPTS) }
    }
}

impl Attempts {
    /// Connects to `address` after `n_failures` failed scrapes in a row.
    pub(super) async fn connect(
        &self,
        address: SocketAddr,
        n_failures: u32,
        patience: Duration,
    ) -> Result<TcpStream, Failure> {
        let kind = if n_failures == 0 { &self.first } else { &self.again };
        let _permit = kind.acquire().await.expect("the semaphore is never closed");
        let stream = match timeout(patience, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Err(Failure::Refused),
            // The network is at fault, or this machine.
            Ok(Err(error)) => return Err(Failure::Unreachable(error)),
            Err(_) => return Err(Failure::Timeout(patience)),
        };
        stream.set_nodelay(true).map_err(Failure::Unreachable)?;
        Ok(stream)
    }
}
