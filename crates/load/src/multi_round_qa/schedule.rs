//! Schedule of a load: sessions ramp up, join, take turns and end. It reads no clock: callers pass the time and report
//! which requests ended.
//! The rules and their quirks are those of vLLM production-stack's `multi-round-qa.py` (57b30f05).
//!
//! ```text
//! created ──► due ──► outstanding ──► due ──► ... ──► finished (after its last round, or never: a failed session is stuck)
//! ```

use std::time::Duration;

/// Sessions `U`, rounds `M` and request rate `Q`, from which everything else follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plan {
    pub n_users: u32,
    pub n_rounds: u32,
    pub qps: f64,
    pub init_user_id: u32,
    pub rules: ScheduleRules,
}

/// Closeness of the schedule to the original.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleRules {
    /// The original's rules: a round is due one gap after the tick that sent the round before, so rounds drift; a
    /// failure ends a session.
    Original,
    /// A round is due one gap after the round before was due, and a session goes on after a failure.
    Strict,
}

/// One request to send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub user_id: u32,
    /// Index of the question in the session's list, from 0. Sessions of the ramp-up do not start at 0.
    pub question_idx: u32,
}

/// Result of one tick.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tick {
    /// Requests to send now, in the order in which their sessions were created.
    pub turns: Vec<Turn>,
    /// Sessions that are due but still wait for an answer.
    pub late: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Answered,
    Failed,
}

/// All sessions that have not finished, oldest first.
#[derive(Debug)]
pub struct Schedule {
    plan: Plan,
    gap: f64,
    user_gap: f64,
    sessions: Vec<Session>,
    n_created: u32,
    joining: Joining,
}

#[derive(Debug)]
enum Joining {
    /// Before the first tick, which ramps up and lets one more session join.
    RampUp,
    /// Time of the last join, in seconds.
    LastAt(f64),
}

#[derive(Debug)]
struct Session {
    user_id: u32,
    /// Rounds that have begun, including those that the ramp-up skips.
    n_begun: u32,
    due: Due,
    flight: Flight,
}

#[derive(Debug, Clone, Copy)]
enum Due {
    Now,
    /// Time in seconds; the original sends strictly after it.
    At(f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    None,
    Outstanding,
}

impl Plan {
    /// Seconds between two requests of one session.
    pub fn gap(&self) -> f64 {
        f64::from(self.n_users) / self.qps
    }

    /// Seconds between the joins of two sessions.
    pub fn user_gap(&self) -> f64 {
        self.gap() * f64::from(self.n_rounds.saturating_sub(1)) / f64::from(self.n_users)
    }
}

impl Schedule {
    pub fn new(plan: Plan) -> Self {
        let (gap, user_gap) = (plan.gap(), plan.user_gap());
        Self { plan, gap, user_gap, sessions: Vec::new(), n_created: 0, joining: Joining::RampUp }
    }

    /// Returns the requests to send at `now`, counted from the start. Time must not go back between calls.
    pub fn tick(&mut self, now: Duration) -> Tick {
        let now = now.as_secs_f64();
        match self.joining {
            Joining::RampUp => {
                self.ramp_up(now);
                self.create(0, Due::Now);
                self.joining = Joining::LastAt(now);
            }
            Joining::LastAt(last) if is_due(self.plan.rules, now, last + self.user_gap) => {
                self.create(0, Due::Now);
                self.joining = Joining::LastAt(match self.plan.rules {
                    ScheduleRules::Original => now,
                    ScheduleRules::Strict => last + self.user_gap,
                });
            }
            Joining::LastAt(_) => {}
        }
        let mut tick = Tick::default();
        for session in &mut self.sessions {
            session.tick(now, (&self.plan, self.gap), &mut tick);
        }
        self.sessions.retain(|session| !session.is_finished(self.plan.n_rounds));
        tick
    }

    /// Records that the answer to a session's turn is complete, or will never come.
    pub fn ended(&mut self, user_id: u32, ended: Ended) {
        let free = ended == Ended::Answered || self.plan.rules == ScheduleRules::Strict;
        if let Some(session) = self.sessions.iter_mut().find(|session| session.user_id == user_id)
            && free
        {
            session.flight = Flight::None;
        }
    }

    /// Time of the next tick that can send something: the earliest due round of a session without a request in flight,
    /// or the next join.
    pub fn next_due(&self) -> Duration {
        let join = match self.joining {
            Joining::RampUp => 0.0,
            Joining::LastAt(last) => last + self.user_gap,
        };
        let rounds =
            self.sessions.iter().filter(|session| session.flight == Flight::None).map(
                |session| match session.due {
                    Due::Now => 0.0,
                    Due::At(due) => due,
                },
            );
        Duration::from_secs_f64(rounds.fold(join, f64::min).max(0.0))
    }

    /// Number of sessions that have not finished; with the original's rules this includes failed ones.
    pub fn n_sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Creates the first sessions as if they had begun before the start, each `user_gap` after the one before.
    fn ramp_up(&mut self, now: f64) {
        let ramp = self.user_gap * f64::from(self.plan.n_users);
        for idx in 0..self.plan.n_users {
            let age = ramp - f64::from(idx) * self.user_gap;
            let n_passed = (age / self.gap).floor() + 1.0;
            let last_sent = now - age + (n_passed - 1.0) * self.gap;
            self.create(count(n_passed), Due::At(last_sent + self.gap));
        }
    }

    fn create(&mut self, n_begun: u32, due: Due) {
        self.n_created += 1;
        let user_id = self.plan.init_user_id + self.n_created;
        self.sessions.push(Session { user_id, n_begun, due, flight: Flight::None });
    }
}

impl Session {
    fn tick(&mut self, now: f64, (plan, gap): (&Plan, f64), tick: &mut Tick) {
        if self.is_finished(plan.n_rounds) {
            return;
        }
        let next = match (self.due, plan.rules) {
            (Due::At(due), _) if !is_due(plan.rules, now, due) => return,
            (Due::At(due), ScheduleRules::Strict) => due + gap,
            (Due::At(_) | Due::Now, _) => now + gap,
        };
        if self.flight == Flight::Outstanding {
            tick.late.push(self.user_id);
            return;
        }
        tick.turns.push(Turn { user_id: self.user_id, question_idx: self.n_begun });
        (self.n_begun, self.due, self.flight) = (self.n_begun + 1, Due::At(next), Flight::Outstanding);
    }

    fn is_finished(&self, n_rounds: u32) -> bool {
        self.n_begun >= n_rounds && self.flight == Flight::None
    }
}

/// Says if the time has come. The original compares strictly, so a tick exactly at the due time sends nothing.
fn is_due(rules: ScheduleRules, now: f64, due: f64) -> bool {
    match rules {
        ScheduleRules::Original => now > due,
        ScheduleRules::Strict => now >= due,
    }
}

/// Converts a small whole number of rounds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a saturating cast is what is wanted"
)]
fn count(rounds: f64) -> u32 {
    rounds as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{Ended, Plan, Schedule, ScheduleRules};

    fn tutorial(rules: ScheduleRules) -> Plan {
        Plan { n_users: 8, n_rounds: 15, qps: 0.1, init_user_id: 0, rules }
    }

    /// Returns `(seconds, user, question index)` of every request. Each is answered at once, or fails if `fails` says
    /// so.
    fn play(plan: Plan, tick: Duration, fails: impl Fn(u32) -> bool) -> Vec<(f64, u32, u32)> {
        let (mut schedule, mut sent, mut now) = (Schedule::new(plan), Vec::new(), Duration::ZERO);
        while now <= Duration::from_secs(600) {
            for turn in schedule.tick(now).turns {
                sent.push((now.as_secs_f64(), turn.user_id, turn.question_idx));
                let ended = if fails(turn.user_id) { Ended::Failed } else { Ended::Answered };
                schedule.ended(turn.user_id, ended);
            }
            now += tick;
        }
        sent
    }

    /// Returns `(user, requests, index of the first question, second of the first request)`.
    fn by_user(sent: &[(f64, u32, u32)]) -> Vec<(u32, usize, u32, f64)> {
        let mut users: BTreeMap<u32, (usize, u32, f64)> = BTreeMap::new();
        for (at, user, question) in sent {
            users.entry(*user).or_insert((0, *question, at.round())).0 += 1;
        }
        users.into_iter().map(|(user, (n, first, at))| (user, n, first, at)).collect()
    }

    const TUTORIAL: [(u32, usize, u32, f64); 12] = [
        (2, 2, 13, 60.0),
        (3, 4, 11, 40.0),
        (4, 6, 9, 20.0),
        (5, 7, 8, 80.0),
        (6, 7, 6, 60.0),
        (7, 7, 4, 40.0),
        (8, 8, 2, 20.0),
        (9, 8, 0, 0.0),
        (10, 6, 0, 140.0),
        (11, 4, 0, 280.0),
        (12, 3, 0, 420.0),
        (13, 1, 0, 560.0),
    ];

    #[test]
    fn the_tutorials_command_is_63_requests_of_12_sessions() {
        for micros in [100_000, 100_500, 101_000, 102_000] {
            let sent = play(tutorial(ScheduleRules::Original), Duration::from_micros(micros), |_| false);
            assert_eq!(sent.len(), 63, "tick of {micros} us");
            assert_eq!(by_user(&sent), TUTORIAL, "tick of {micros} us");
        }
    }

    #[test]
    fn rounds_drift_in_the_original_and_not_when_strict() {
        let last = |rules| {
            let sent = play(tutorial(rules), Duration::from_millis(101), |_| false);
            sent.iter().rfind(|(_, user, _)| *user == 8).unwrap().0
        };
        assert!(last(ScheduleRules::Original) > 580.2, "{}", last(ScheduleRules::Original));
        assert!(last(ScheduleRules::Strict) < 580.11, "{}", last(ScheduleRules::Strict));
    }

    #[test]
    fn strict_sends_when_due_and_says_when_that_is() {
        let mut schedule = Schedule::new(tutorial(ScheduleRules::Strict));
        let (mut now, mut sends) = (Duration::ZERO, Vec::new());
        while now <= Duration::from_secs(100) {
            for turn in schedule.tick(now).turns {
                sends.push((now.as_secs_f64(), turn.user_id));
                schedule.ended(turn.user_id, Ended::Answered);
            }
            now = schedule.next_due();
        }
        assert_eq!(
            sends,
            [
                (0.0, 9),
                (20.0, 4),
                (20.0, 8),
                (40.0, 3),
                (40.0, 7),
                (60.0, 2),
                (60.0, 6),
                (80.0, 5),
                (80.0, 9),
                (100.0, 4),
                (100.0, 8)
            ]
        );
    }

    #[test]
    fn a_failure_ends_a_session_of_the_original_only() {
        let n_of = |rules| {
            let sent = play(tutorial(rules), Duration::from_millis(100), |user| user == 9);
            sent.iter().filter(|(_, user, _)| *user == 9).count()
        };
        assert_eq!((n_of(ScheduleRules::Original), n_of(ScheduleRules::Strict)), (1, 8));
    }

    #[test]
    fn a_session_has_one_request_in_flight_and_sends_the_next_as_soon_as_it_is_free() {
        let plan =
            Plan { n_users: 1, n_rounds: 3, qps: 1.0, init_user_id: 6, rules: ScheduleRules::Original };
        let mut schedule = Schedule::new(plan);
        let at = Duration::from_secs_f64;
        let user_of = |schedule: &mut Schedule, now| {
            schedule.tick(at(now)).turns.iter().map(|turn| turn.user_id).collect::<Vec<_>>()
        };
        assert_eq!(user_of(&mut schedule, 0.0), [8]);
        assert_eq!(schedule.tick(at(1.5)).late, [8]);
        schedule.ended(8, Ended::Answered);
        assert_eq!(user_of(&mut schedule, 1.6), [8]);
    }
}
