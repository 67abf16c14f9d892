//! The scenarios. Each sends requests, collects every program's records of them, and checks them.

use anyhow::Result;
use load::clock::Stopwatch;

use crate::check::{Check, Group};
use crate::report::Part;
use crate::scenario::lab::Lab;

pub mod tutorial;

pub mod controls;

pub mod latency;

pub mod requests;

pub mod precise;

pub mod conversations;

pub mod faults;

pub mod outages;

pub mod streams;

pub mod operations;

pub mod objectives;

pub mod limits;

pub mod hostile;

mod texts;

mod answers;

pub mod lab;

/// Runs the groups in order. A scenario that cannot continue is a failed check and does not end the run.
pub async fn run(lab: &Lab<'_>, groups: &[Group]) {
    for group in Group::ALL.into_iter().filter(|group| groups.contains(group)) {
        match group {
            Group::Tutorial => tutorial::run(lab).await,
            Group::Latency => part(lab, group, "warm against cold", latency::run).await,
            Group::Conversations => part(lab, group, "8081 against 8080", conversations::run).await,
            Group::Precise => part(lab, group, "predictions", precise::run).await,
            Group::Requests => part(lab, group, "predictions", requests::run).await,
            Group::Controls => controls::run(lab).await,
            Group::Faults => {
                faults::run(lab).await;
                outages::run(lab).await;
                streams::run(lab).await;
                operations::run(lab).await;
                objectives::run(lab).await;
                part(lab, group, "big and many", limits::run).await;
            }
            Group::Hostile => hostile::run(lab).await,
        }
    }
}

/// Runs one part of a group, times it, and turns its error into a failed check or into skips.
async fn part(lab: &Lab<'_>, group: Group, name: &str, work: impl AsyncFnOnce(&Lab<'_>) -> Result<()>) {
    let lab = &lab.part(group, name);
    let stopwatch = Stopwatch::start();
    let done = work(lab).await;
    let title = format!("The scenario `{name}` runs to its end");
    lab.end_part(done, Check::of(group, format!("{}/runs", name.replace(' ', "-")), title));
    lab.journal.part(Part { name: format!("{group}: {name}"), wall_s: stopwatch.elapsed().as_secs_f64() });
}
