//! `RUST_LOG`: what the driver logs, where, and what becomes of a value that is wrong.

#![expect(clippy::unwrap_used, reason = "a run that cannot be started fails its test")]

use std::process::{Command, Output};

use crate::stubs::Lab;

/// Words of the log's lines about each kind of event.
const EVENTS: [&[&str]; 7] = [
    &["INFO lab::cluster::process: Started a process", "bin/mock-vllm", "--served-model-name"],
    &["INFO lab::cluster::process: A process has ended", "bin/mock-vllm", "status="],
    &["INFO lab::cluster: Inflicting a fault", "kill pod qwen-"],
    &["DEBUG lab::cluster::probe: A pod passes its probe", "readinessProbe", "status 200"],
    &["DEBUG load::client: Sending a request", "POST", "/v1/chat/completions?soak=0"],
    &["DEBUG load::client: An answer has begun", "GET", "/memory", "status=200"],
    &["DEBUG load::client: A request has failed", "soak=0", "refused"],
];

/// Runs the driver with the stubs; `RUST_LOG` is set if there is a filter.
fn run(lab: &Lab, flags: &str, filter: Option<&str>) -> Output {
    let mut driver = lab.driver(flags);
    driver.envs(filter.map(|filter| ("RUST_LOG", filter)));
    driver.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the kinds of events that a log has.
fn events(log: &str) -> Vec<&'static [&'static str]> {
    let is_there = |words: &&[&str]| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    EVENTS.into_iter().filter(is_there).collect()
}

/// The control: the same run without `RUST_LOG` logs nothing.
#[test]
fn what_the_driver_does_is_logged_if_it_is_asked_for() {
    if test_skips::skips_slow() {
        return;
    }
    const SOAK: &str = "soak --json --seconds 10 --rate 2 --kill-every 4 --replacements 0";
    let [logged, silent] = std::thread::scope(|scope| {
        let soak = |filter| scope.spawn(move || run(&Lab::new(), SOAK, filter));
        [soak(Some("debug")), soak(None)].map(|ran| ran.join().unwrap())
    });
    let log = text(&logged.stderr);
    assert_eq!(events(&log), EVENTS, "{log}");
    let results: serde_json::Value = serde_json::from_slice(&logged.stdout).unwrap();
    assert_eq!(results["pods_killed"], 1, "only results are on standard output: {results}");
    let said = text(&silent.stderr);
    assert_eq!(events(&said), Vec::<&[&str]>::new(), "{said}");
    assert!(said.contains("a pod dies every 4 s") && !said.contains(" INFO "), "{said}");
}

#[test]
fn a_filter_chooses_crates_and_levels() {
    let ran = run(&Lab::new(), "run --only latency --replicas 2 --report-dir report", Some("off,lab=info"));
    let log = text(&ran.stderr);
    assert!(log.contains(" INFO lab::") && !log.contains(" DEBUG ") && !log.contains("load::"), "{log}");
}

#[test]
fn a_wrong_filter_is_not_passed_over() {
    let lab = Lab::new();
    let down = |filter| {
        let mut driver = Command::new(env!("CARGO_BIN_EXE_e2e"));
        driver.arg("down").env("WARMPATH_STATE_DIR", lab.dir.path().join("state")).env("RUST_LOG", filter);
        let ended = driver.output().unwrap();
        (ended.status.code(), text(&ended.stderr))
    };
    let (code, said) = down("lab=loud");
    assert!(code == Some(2) && said.contains("error: RUST_LOG=lab=loud: "), "{code:?}: {said}");
    let (code, said) = down("debgu");
    assert!(code == Some(0) && said.contains("warning: RUST_LOG: `debgu` is neither"), "{code:?}: {said}");
    assert_eq!(down("debug"), (Some(0), String::new()), "the control");
    assert_eq!(down(""), (Some(0), String::new()));
}

/// On a terminal the progress is erased before each line of the log, which so begins at the left edge.
#[test]
fn the_log_does_not_disturb_the_progress() {
    if test_skips::skips_slow() {
        return;
    }
    const ERASE: &str = "\u{1b}[2K";
    let lab = Lab::new();
    let driver = lab.driver("run --only latency --replicas 1 --report-dir report");
    let mut terminal = Command::new("python3");
    terminal.args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])"]);
    terminal
        .arg(driver.get_program())
        .args(driver.get_args())
        .envs(driver.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal.current_dir(lab.dir.path()).env("RUST_LOG", "info").env("TERM", "xterm");
    let shown = text(&terminal.output().unwrap().stdout);
    assert!(shown.contains("starting pods, picker and Envoy"), "the progress is shown: {shown}");
    let lines: Vec<&str> = shown.lines().filter(|line| line.contains(" INFO lab::")).collect();
    assert!(lines.len() > 3, "{shown}");
    for line in lines {
        let visible = line.rsplit(ERASE).next().unwrap_or(line).trim_start_matches('\r');
        assert!(visible.starts_with("20"), "{line:?} does not begin with its time");
    }
}
