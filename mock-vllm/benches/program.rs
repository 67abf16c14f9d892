//! The program for a bench: started on a free port, asked over real sockets, killed when dropped.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

/// Text in every frame that carries a token.
const TOKEN_FRAME: &[u8] = b"\"delta\":{\"content\"";
const LAST_FRAME: &[u8] = b"data: [DONE]";

/// A running program, which is killed when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts the program, reads its address from the log, and polls `/health` until it answers 200.
    pub(crate) fn start(flags: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mock-vllm"))
            .args(["serve", "Qwen/Qwen2.5-7B-Instruct", "--host", "127.0.0.1", "--port", "0"])
            .args(flags.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut log = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).expect("the log is text") > 0, "the server ended");
            if let Some((_, rest)) = line.split_once("127.0.0.1:") {
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break format!("127.0.0.1:{port}").parse().expect("the log names the address");
            }
        };
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let server = Self { child, address };
        while !server.is_healthy() {}
        server
    }

    /// Returns an answer with its head; `None` if there is none.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let mut socket = TcpStream::connect(self.address).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn is_healthy(&self) -> bool {
        self.get("/health").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Returns a file of the process in /proc; empty if there is none.
    pub(crate) fn proc_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default()
    }

    /// Returns a line of /proc/PID/status in MiB.
    pub(crate) fn memory_mib(&self, field: &str) -> f64 {
        let status = self.proc_file("status");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
        kib.map_or(f64::NAN, |kib| kib / 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Makes a request for a streamed conversation, with its head; each client's prompt is different.
pub(crate) fn chat_request(client_idx: usize, n_tokens: usize) -> String {
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"I am client {client_idx}."}}],"max_tokens":{n_tokens},"ignore_eos":true,"stream":true}}"#
    );
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Returns whether the last frame is among the `n_new` last bytes.
pub(crate) fn is_complete(received: &[u8], n_new: usize) -> bool {
    let tail = &received[received.len().saturating_sub(n_new + LAST_FRAME.len())..];
    count(tail, LAST_FRAME) > 0
}

/// Counts the tokens in a stream so far.
pub(crate) fn count_tokens(received: &[u8]) -> usize {
    count(received, TOKEN_FRAME)
}

fn count(text: &[u8], word: &[u8]) -> usize {
    text.windows(word.len()).filter(|window| *window == word).count()
}
