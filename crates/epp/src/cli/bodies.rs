//! Flags that bound request bodies in memory and in time.

use std::time::Duration;

use clap::Args;

use super::values::parse_duration;
use crate::server::grpc::Timeouts;

#[derive(Args, Debug)]
#[command(next_help_heading = "Request bodies")]
pub(super) struct BodyArgs {
    /// Longest request body that is read; a longer one is refused with 413
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20, hide_short_help = true)]
    pub(super) max_body_bytes: usize,
    /// Most memory for the bodies of all requests together; a request without room is refused with 503. A quarter is kept
    /// for bodies of up to 256 KiB
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30, hide_short_help = true)]
    pub(super) max_buffered_bytes: usize,
    /// A request is refused with 408 if nothing of its body arrives for this long
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        value_parser = parse_duration,
        hide_short_help = true
    )]
    body_idle_timeout: Duration,
    /// A request is refused with 408 if its body is not complete after this long. The longest body at 1 Mbit/s takes
    /// 9 minutes
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10m",
        value_parser = parse_duration,
        hide_short_help = true
    )]
    body_timeout: Duration,
}

impl BodyArgs {
    /// The times in which a body must arrive.
    pub(super) fn timeouts(&self) -> Timeouts {
        Timeouts { idle: self.body_idle_timeout, total: self.body_timeout }
    }
}
