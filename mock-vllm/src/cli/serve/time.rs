//! Flags of `serve` about the clock: the wall's, faster, or none at all.

use crate::driver::clock::TimeScale;
use crate::driver::timeline::Pace;
use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
#[command(next_help_heading = "Time")]
pub(super) struct TimeArgs {
    /// Virtual seconds per second of yours: 10 makes everything ten times faster
    #[arg(long, value_name = "F", default_value_t = TimeScale::default())]
    pub(super) time_scale: TimeScale,
    /// Leave the wall clock: time jumps from event to event, and equal requests, times and seeds give equal bytes
    ///
    /// auto: time jumps to the next event as soon as nothing is to come now. Exact for one client that sends a request
    /// after the other; for N such clients add --clock-clients N.
    ///
    /// stepped: time stands until POST /debug/clock/advance moves it, on any pod for all pods of the process:
    ///   {"to": 12.5}              to that second; {"by": 0.5} by so many
    ///   {"until_idle": true}      until no event is left
    ///   {..., "requests": 17}     but only once 17 completions in all have reached an engine
    ///   {..., "timeout": 10}      and give up after so many seconds of the wall's clock [default: 60]
    /// It answers when all that happens on the way has happened. A load with given arrival times, also through a router:
    /// for request k, at t: advance {"to": t, "requests": k-1}, then send it; at last {"until_idle": true, "requests": n}.
    ///
    /// GET /debug/clock tells the time, the next event, and what holds time up. Dates start at 2026-01-01; requests of one
    /// moment are taken in an order that their contents alone decide; ids derive from contents and --seed.
    #[arg(
        long, value_name = "PACE", value_enum, num_args = 0..=1, require_equals = true,
        default_missing_value = "auto", conflicts_with = "time_scale"
    )]
    virtual_clock: Option<PaceName>,
    /// With --virtual-clock=auto: time moves only while so many requests are open, the closed loop of N clients. A client
    /// that leaves tells it: POST /debug/clock {"clients": N-1}
    #[arg(long, value_name = "N", default_value_t = 0, requires = "virtual_clock")]
    clock_clients: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PaceName {
    Auto,
    Stepped,
}

// === impl TimeArgs ===

impl TimeArgs {
    pub(super) fn pace(&self) -> Option<Pace> {
        self.virtual_clock.map(|name| match name {
            PaceName::Auto => Pace::Auto { clients: self.clock_clients },
            PaceName::Stepped => Pace::Stepped,
        })
    }
}
