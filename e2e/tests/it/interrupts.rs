//! SIGTERM and Ctrl-C at any moment: the driver ends all that it has started, and reports that it was interrupted.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::io::Read as _;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use lab::cluster::supervisor::{self, Phase};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::stubs::{Lab, until};

/// Exit code of an interrupted command.
const INTERRUPTED: i32 = 130;

/// The moment of the signal.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// The command has written what its supervisor must start; the supervisor may not run yet.
    Ordered,
    /// This many stubs of this role run.
    Started(&'static str, usize),
}

async fn interrupt(lab: &Lab, driver: &mut Child, moment: Moment, signal: Signal) {
    let order = lab.dir.path().join("state/order.json");
    until(&format!("{moment:?}"), || match moment {
        Moment::Ordered => order.exists(),
        Moment::Started(role, n) => lab.n_alive(role) >= n,
    })
    .await;
    kill(Pid::from_raw(driver.id().try_into().unwrap()), signal).unwrap();
}

/// Interrupts a command at this moment. When it has ended, nothing may be left.
async fn check(flags: &str, moment: Moment, signal: Signal) {
    let lab = Lab::new();
    let mut driver = lab.driver(flags).spawn().unwrap();
    interrupt(&lab, &mut driver, moment, signal).await;
    let ended = driver.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(INTERRUPTED), "{flags} at {moment:?}: {said}");
    assert_eq!(lab.alive(), Vec::<String>::new(), "{flags} at {moment:?}");
    assert_eq!(supervisor::status(&lab.dir.path().join("state")).unwrap(), None, "{flags} at {moment:?}");
}

const SOON: [Moment; 4] = [
    Moment::Started("engine", 1),
    Moment::Started("engine", 2),
    Moment::Started("picker", 1),
    Moment::Started("envoy", 1),
];

#[tokio::test]
async fn up_leaves_nothing_behind_when_it_has_just_begun() {
    check("up", Moment::Ordered, Signal::SIGTERM).await;
    check("up", Moment::Ordered, Signal::SIGINT).await;
}

#[tokio::test]
async fn up_leaves_nothing_behind() {
    if test_skips::skips_slow() {
        return;
    }
    for moment in SOON {
        check("up", moment, Signal::SIGTERM).await;
    }
}

/// The control: an `up` that is not interrupted leaves its cluster for `down`.
#[tokio::test]
async fn up_leaves_the_cluster_when_it_has_ended() {
    let lab = Lab::new();
    let state_dir = lab.dir.path().join("state");
    let ended = lab.driver("up").spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    let state = supervisor::status(&state_dir).unwrap().unwrap();
    assert!(matches!(state.phase, Phase::Running { .. }) && lab.alive().len() == 4, "{state:?}");
    assert!(supervisor::down(&state_dir).await.unwrap());
    assert_eq!(lab.alive(), Vec::<String>::new());
}

/// The server accepts requests and never answers, which keeps the tool in its warm-up.
#[tokio::test]
async fn a_silent_server_does_not_hold_the_tool() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", server.local_addr().unwrap());
    let flags = "--num-users 1 --num-rounds 2 --qps 1 --shared-system-prompt 1 --user-history-prompt 1 --answer-len 1 \
        --model m --time 600";
    let dir = tempfile::tempdir().unwrap();
    let mut tool = Command::new(env!("CARGO_BIN_EXE_e2e"));
    tool.arg("multi-round-qa").args(flags.split_whitespace()).args(["--base-url", &url]);
    let mut tool = tool.current_dir(dir.path()).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    // Wait until the tool has sent something.
    let (mut connection, _) = server.accept().unwrap();
    connection.read_exact(&mut [0]).unwrap();
    kill(Pid::from_raw(tool.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(tool.wait().unwrap().code(), Some(INTERRUPTED));
}

#[tokio::test]
async fn runs_leave_nothing_behind() {
    if test_skips::skips_slow() {
        return;
    }
    for (idx, moment) in SOON.into_iter().enumerate() {
        let signal = if idx % 2 == 0 { Signal::SIGINT } else { Signal::SIGTERM };
        check("run --report-dir report", moment, signal).await;
        check("soak --replacements 0", moment, signal).await;
    }
    check("overhead", Moment::Started("engine", 1), Signal::SIGTERM).await;
}
