//! The program itself: its signals, its log, and its behaviour if nobody reads the log.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::Duration;

use futures::future::join_all;
use tempfile::TempDir;

use crate::fixtures::Proxy;

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata:
  name: p
  annotations: {inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";
/// Longest wait for something that must happen.
const SOON: Duration = Duration::from_secs(30);

/// A running `epp`, killed when dropped.
struct Program {
    child: Child,
    metrics: SocketAddr,
    grpc: SocketAddr,
    _dir: TempDir,
}

/// A chat that is routed by prefix from its second time on, with a line in the log.
const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"A text that is long enough to be worth a line in the log, again and again."}]}"#;
/// More lines than the log's queue and pipe hold.
const MANY: usize = 2000;
/// Requests at a time.
const AT_A_TIME: usize = 50;

impl Program {
    /// Starts the program and waits until its ports are bound. Nobody reads its stderr until [`Program::end`].
    fn start(arguments: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let (pool, port_file) = (dir.path().join("pool.yaml"), dir.path().join("ports.json"));
        std::fs::write(&pool, POOL).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_epp"))
            .args([
                "--grpc-port",
                "0",
                "--health-port",
                "0",
                "--metrics-port",
                "0",
                "--endpoint",
                "127.0.0.1:9",
            ])
            .arg("--pool-file")
            .arg(&pool)
            .arg("--port-file")
            .arg(&port_file)
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ports = wait_for(|| {
            assert_eq!(child.try_wait().unwrap(), None, "it has ended");
            serde_json::from_slice::<serde_json::Value>(&std::fs::read(&port_file).ok()?).ok()
        });
        let port = |name: &str| ports[name].as_str().unwrap().parse().unwrap();
        Self { metrics: port("metrics"), grpc: port("grpc"), child, _dir: dir }
    }

    /// Sends the chat `n_times`; each time adds a line to the log.
    async fn chat(&self, n_times: usize) {
        let proxy = Proxy::connect(self.grpc).await;
        for _ in 0..n_times / AT_A_TIME {
            let answers = join_all((0..AT_A_TIME).map(|_| proxy.chat(CHAT)));
            let answers = tokio::time::timeout(SOON, answers).await.expect("the picker answers");
            assert!(answers.iter().all(|answer| answer.refused.is_none()));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([format!("-{name}"), pid]).status().unwrap().success());
    }

    /// A page of the metrics port; an error if no answer comes.
    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.metrics)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").unwrap();
        page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap()
    }

    fn ended(&mut self) -> ExitStatus {
        wait_for(|| self.child.try_wait().unwrap())
    }

    /// Ends the program and returns its log.
    fn end(mut self) -> (ExitStatus, String) {
        let mut stderr = self.child.stderr.take().unwrap();
        let reader = std::thread::spawn(move || text(&mut stderr));
        self.signal("TERM");
        (self.ended(), reader.join().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(stderr: &mut ChildStderr) -> String {
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    text
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let pause = Duration::from_millis(5);
    for _ in 0..SOON.as_millis() / pause.as_millis() {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(pause);
    }
    panic!("it never came");
}

#[test]
fn it_serves_and_ends_on_a_signal() {
    let program = Program::start(&["--drain-delay", "0s"]);
    assert!(program.get("/healthz").unwrap().ends_with("ok\n"));
    let (status, log) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("\tINFO\tepp/server.rs:") && log.contains("\tServing\t{\"grpc\": "), "{log}");
    assert!(log.trim_end().ends_with("\tEnded"), "the last line is written: {log}");
}

/// A pager that is left alone, or a log shipper that hangs: a pipe holds 64 KiB and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    if test_skips::skips_slow() {
        return;
    }
    let mut program = Program::start(&["--drain-delay", "0s"]);
    program.chat(MANY).await;
    assert!(program.get("/healthz").unwrap().ends_with("ok\n"));
    let n_dropped = program.metric("epp_log_dropped_lines_total ");
    assert!(n_dropped > 0.0, "the log was full");
    program.signal("TERM");
    assert_eq!(program.ended().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_read_again_says_what_it_lacks() {
    if test_skips::skips_slow() {
        return;
    }
    let program = Program::start(&["--drain-delay", "0s"]);
    program.chat(MANY).await;
    let n_dropped = program.metric("epp_log_dropped_lines_total ");
    let (_, log) = program.end();
    let told = log.lines().filter_map(|line| {
        let (_, fields) = line.split_once("\tDropped lines of the log: nobody read it\t")?;
        serde_json::from_str::<serde_json::Value>(fields).unwrap()["n_lines"].as_f64()
    });
    assert!(n_dropped > 0.0 && told.sum::<f64>() >= n_dropped, "{n_dropped} lines");
}

/// Control: a log that is read loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_read_is_whole() {
    if test_skips::skips_slow() {
        return;
    }
    let mut program = Program::start(&["--drain-delay", "0s"]);
    let mut stderr = program.child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || text(&mut stderr));
    program.chat(MANY).await;
    program.signal("TERM");
    program.ended();
    let log = reader.join().unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("Do prefix-aware routing!")).count(), MANY - 1);
}

#[test]
fn a_hangup_ends_nothing() {
    let mut program = Program::start(&["--drain-delay", "0s"]);
    for _ in 0..3 {
        program.signal("HUP");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(program.child.try_wait().unwrap(), None);
        assert!(program.get("/readyz").is_ok());
    }
    let (status, log) = program.end();
    assert_eq!(status.code(), Some(0));
    assert!(log.contains(r#"{"signal": "SIGHUP"}"#), "{log}");
}
