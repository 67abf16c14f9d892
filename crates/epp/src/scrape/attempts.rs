//! Connections to endpoints, of which only so many are opened at once.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Failure;

/// Most attempts at once, of either kind. Each takes a file descriptor, for as long as the patience if nobody answers.
const MAX_ATTEMPTS: usize = 256;

/// Attempts to connect. Those to endpoints that did not answer before wait for each other alone, so that a network that
/// swallows connections does not hold up the rest.
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
    /// Connects to `address` after `n_failures` scrapes in a row that failed.
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
            // The network's fault, or our own.
            Ok(Err(error)) => return Err(Failure::Unreachable(error)),
            Err(_) => return Err(Failure::Timeout(patience)),
        };
        stream.set_nodelay(true).map_err(Failure::Unreachable)?;
        Ok(stream)
    }
}
