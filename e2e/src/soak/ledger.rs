//! Keeps every failed request, and decides if its pod's death excuses it.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use lab::evidence::access_log::AccessEntry;
use load::chat::Usage;
use serde::Serialize;

use crate::soak::chaos::Death;
use crate::soak::users::Length;

/// Time in which Envoy may still write to a dead pod's connection, until it has read the end of that connection.
const UNNOTICED: Duration = Duration::from_millis(100);

/// A request. Times are counted from the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Number in its path: `?soak=17`.
    pub(super) number: u64,
    pub(super) length: Length,
    pub(super) sent_at: Duration,
    pub(super) ended_at: Duration,
}

/// Results of the requests so far.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) n_sent: usize,
    n_answered: usize,
    n_long_answered: usize,
    n_hung_up: usize,
    prompt_tokens: u64,
    cached_tokens: u64,
    failures: Vec<(Sent, String)>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Tally {
    pub(super) sent: usize,
    pub(super) answered: usize,
    /// Long answers among them.
    pub(super) long: usize,
    /// Requests whose user hung up before the answer ended.
    pub(super) hung_up: usize,
    /// Requests that failed because their pod was killed while it computed them.
    pub(super) excused: usize,
    /// Descriptions of the requests that failed for another reason.
    pub(super) lost: Vec<String>,
    /// Lost requests whose answer had begun.
    pub(super) cut: usize,
    /// Cached share of the prompt tokens of answered requests.
    pub(super) cached_share: f64,
}

impl Ledger {
    pub(super) fn note(&mut self, sent: Sent, answer: Result<Usage, String>) {
        match answer {
            Ok(usage) => {
                self.n_answered += 1;
                self.n_long_answered += usize::from(sent.length == Length::Long);
                self.prompt_tokens += u64::from(usage.prompt_tokens);
                self.cached_tokens += u64::from(usage.cached_tokens());
            }
            Err(error) => self.failures.push((sent, error)),
        }
    }

    /// Notes that a user has hung up.
    pub(super) fn note_hung_up(&mut self) {
        self.n_hung_up += 1;
    }

    /// Returns how many requests were sent, answered and failed, in this order.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        (self.n_sent, self.n_answered, self.failures.len())
    }

    /// Returns true if the log has every failed request.
    pub(super) fn failures_are_in(&self, log: &[AccessEntry]) -> bool {
        let numbers: HashSet<u64> = log.iter().filter_map(number).collect();
        self.failures.iter().all(|(sent, _)| numbers.contains(&sent.number))
    }

    /// Judges the failures by Envoy's log and by the times when pods died.
    pub(super) fn judge(&self, log: &[AccessEntry], deaths: &[Death]) -> Tally {
        let entries: HashMap<u64, &AccessEntry> =
            log.iter().filter_map(|entry| Some((number(entry)?, entry))).collect();
        let (mut excused, mut cut) = (0, 0);
        let mut lost = Vec::new();
        for (sent, error) in &self.failures {
            let entry = entries.get(&sent.number);
            let host = entry.and_then(|entry| entry.upstream_host.as_deref());
            let is_excused = host.is_some_and(|host| {
                deaths.iter().any(|death| death.address.to_string() == host && excuses(death, sent))
            });
            if is_excused {
                excused += 1;
                continue;
            }
            cut += usize::from(entry.is_some_and(|entry| entry.code == 200));
            let details = entry.and_then(|entry| entry.details.as_deref()).unwrap_or("not in Envoy's log");
            lost.push(format!(
                "request {} at {:.2} s, after {:.2} s: {error}; pod {}; {details}",
                sent.number,
                sent.sent_at.as_secs_f64(),
                (sent.ended_at - sent.sent_at).as_secs_f64(),
                host.unwrap_or("none"),
            ));
        }
        // Some requests may have neither an answer nor an error, because the task that waited for them is gone.
        let n_unaccounted = self.n_sent - self.n_answered - self.n_hung_up - self.failures.len();
        if n_unaccounted > 0 {
            lost.push(format!("{n_unaccounted} requests were never answered"));
        }
        #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
        let cached_share = self.cached_tokens as f64 / self.prompt_tokens.max(1) as f64;
        Tally {
            sent: self.n_sent,
            answered: self.n_answered,
            long: self.n_long_answered,
            hung_up: self.n_hung_up,
            excused,
            lost,
            cut,
            cached_share,
        }
    }
}

/// True if the pod had the request when it died.
fn excuses(death: &Death, sent: &Sent) -> bool {
    sent.sent_at <= death.until + UNNOTICED && sent.ended_at >= death.from
}

fn number(entry: &AccessEntry) -> Option<u64> {
    entry.path.as_deref()?.rsplit_once("?soak=")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Ledger, Sent};
    use crate::soak::chaos::Death;
    use crate::soak::users::Length;
    use lab::evidence::access_log::{AccessEntry, parse};

    fn ledger(failures: &[(u64, u64, u64)]) -> Ledger {
        let mut ledger = Ledger { n_sent: failures.len(), ..Ledger::default() };
        for (number, sent_at, ended_at) in failures {
            let [sent_at, ended_at] = [sent_at, ended_at].map(|millis| Duration::from_millis(*millis));
            let sent = Sent { number: *number, length: Length::Short, sent_at, ended_at };
            ledger.note(sent, Err("503".to_owned()));
        }
        ledger
    }

    fn log(hosts: &[(u64, &str)]) -> Vec<AccessEntry> {
        let line = |(number, host): &(u64, &str)| {
            format!("{{\"path\":\"/v1?soak={number}\",\"code\":503,\"upstream_host\":\"{host}\"}}\n")
        };
        parse(&hosts.iter().map(line).collect::<String>()).unwrap()
    }

    const DEATH: Death = Death {
        address: std::net::SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 1)),
        from: Duration::from_millis(1000),
        until: Duration::from_millis(1010),
    };

    #[test]
    fn only_the_death_of_the_own_pod_meanwhile_excuses() {
        let failures = [(1, 900, 1005), (2, 900, 1005), (3, 100, 990), (4, 1200, 1300)];
        let log = log(&[(1, "127.0.0.1:1"), (2, "127.0.0.1:2"), (3, "127.0.0.1:1"), (4, "127.0.0.1:1")]);
        let tally = ledger(&failures).judge(&log, &[DEATH]);
        assert_eq!((tally.sent, tally.excused, tally.lost.len()), (4, 1, 3), "{tally:?}");
    }

    #[test]
    fn a_lost_answer_that_had_begun_was_cut() {
        let mut log = log(&[(1, "127.0.0.1:2"), (2, "127.0.0.1:2"), (3, "127.0.0.1:1")]);
        (log[0].code, log[2].code) = (200, 200);
        let tally = ledger(&[(1, 900, 1005), (2, 900, 1005), (3, 900, 1005)]).judge(&log, &[DEATH]);
        assert_eq!((tally.excused, tally.lost.len(), tally.cut), (1, 2, 1), "{tally:?}");
    }

    #[test]
    fn a_user_who_hangs_up_has_lost_nothing() {
        let mut ledger = ledger(&[]);
        ledger.n_sent = 2;
        ledger.note_hung_up();
        let tally = ledger.judge(&[], &[]);
        assert_eq!((tally.hung_up, tally.lost.len()), (1, 1), "the other one is lost: {tally:?}");
    }

    #[test]
    fn a_log_that_lacks_a_failure_is_not_complete() {
        let ledger = ledger(&[(1, 900, 1005), (2, 900, 1005)]);
        let [first, second, third] = [1, 2, 3].map(|number| (number, "127.0.0.1:1"));
        assert!(!ledger.failures_are_in(&log(&[first, third])));
        assert!(ledger.failures_are_in(&log(&[third, second, first])));
    }

    #[test]
    fn what_never_ended_is_lost_and_so_is_what_the_proxy_does_not_know() {
        let mut ledger = ledger(&[(1, 900, 1005)]);
        ledger.n_sent += 2;
        let tally = ledger.judge(&[], &[DEATH]);
        assert_eq!((tally.excused, tally.lost.len()), (0, 2), "{tally:?}");
        assert!(tally.lost[1].contains("2 requests were never answered"));
    }
}
