//! The program as a process of its own: a server, found by the addresses that it prints, or a command that ends.

use assert_cmd::assert::Assert;
use assert_cmd::cargo::cargo_bin_cmd;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Longest time until a server prints its address.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the program to its end; what it returns and prints can be asserted.
pub(crate) fn run(args: &str) -> Assert {
    cargo_bin_cmd!("mock-vllm").args(args.split_whitespace()).assert()
}

/// Text that the program has printed on standard output.
pub(crate) fn stdout(ended: &Assert) -> &str {
    str::from_utf8(&ended.get_output().stdout).unwrap()
}

/// A running program, which is killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// Name and address of each pod, as printed.
    pub(crate) addresses: Vec<(String, String)>,
    stdout: BufReader<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Server {
    /// Starts the program on ports of the system's choice, a thousand times faster unless `flags` say otherwise.
    /// Returns when all `n_pods` addresses are printed.
    pub(crate) fn start(n_pods: usize, flags: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mock-vllm"))
            .args("serve m --host 127.0.0.1 --port 0 --time-scale 1000 --jitter 0".split(' '))
            .args(flags.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (started, starting) = channel::<()>();
        let pid = child.id().to_string();
        std::thread::spawn(move || {
            if starting.recv_timeout(START_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
                let _ended_already = Command::new("kill").args(["-KILL", &pid]).status();
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut addresses = Vec::new();
        for _ in 0..n_pods {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            let Some((name, address)) = line.trim_end().split_once(' ') else {
                let mut log = String::new();
                child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
                panic!("no address of pod {} in {line:?}: {log}", addresses.len());
            };
            addresses.push((name.to_owned(), address.to_owned()));
        }
        drop(started);
        let stderr = child.stderr.take();
        Self { child, addresses, stdout, stderr }
    }

    pub(crate) fn address(&self, pod_idx: usize) -> &str {
        &self.addresses[pod_idx].1
    }

    pub(crate) fn get(&self, pod_idx: usize, path: &str) -> String {
        request(self.address(pod_idx), &format!("GET {path} HTTP/1.1\r\n"), "")
    }

    pub(crate) fn post(&self, pod_idx: usize, path: &str, body: &str) -> String {
        let head = format!("POST {path} HTTP/1.1\r\ncontent-type: application/json\r\n");
        request(self.address(pod_idx), &head, body)
    }

    pub(crate) fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        assert!(kill.args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Returns the log until its end, and what else it printed.
    pub(crate) fn into_output(mut self) -> (String, String) {
        let (mut log, mut printed) = (String::new(), String::new());
        self.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        self.stdout.read_to_string(&mut printed).unwrap();
        (log, printed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Connects with a timeout, so that a server that does not answer cannot block the test for ever.
pub(crate) fn connect(address: &str) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

/// Returns the whole answer to one request on a connection of its own.
pub(crate) fn request(address: &str, head: &str, body: &str) -> String {
    let mut socket = connect(address);
    write!(socket, "{head}host: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}
