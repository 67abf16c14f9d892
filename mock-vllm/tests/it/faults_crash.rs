//! Pods that die, and pods of one process with different faults.

use crate::process::{Server, connect, request, run};
use predicates::str::contains;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

const PROMPT: &str = r#"{"prompt":"x","max_tokens":1}"#;

/// Posts a completion that is never answered, with `n_bytes_of_body` bytes of its body.
fn post_in_vain(address: &str, n_bytes_of_body: usize) -> String {
    let mut socket = connect(address);
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let body = &PROMPT[..n_bytes_of_body];
    socket.write_all(format!("{head}content-length: {}\r\n\r\n{body}", PROMPT.len()).as_bytes()).unwrap();
    let mut answer = Vec::new();
    if let Err(error) = socket.read_to_end(&mut answer) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_pod_alone_takes_its_process_with_it() {
    let mut server = Server::start(1, "--fault crash:after=2");
    for _ in 0..2 {
        assert!(server.post(0, "/v1/completions", PROMPT).starts_with("HTTP/1.1 200"));
    }
    assert!(server.get(0, "/health").starts_with("HTTP/1.1 200"), "what is not of the API does not count");
    assert_eq!(post_in_vain(server.address(0), PROMPT.len()), "");
    assert_eq!(server.wait().code(), Some(1));
    let (log, _) = server.into_output();
    assert!(log.contains("the pod crashed, as a fault told it to"), "{log}");
}

#[test]
fn a_pod_among_others_dies_alone() {
    let mut server = Server::start(3, "--pods 3 --pod-name q --fault crash:pod=q-1");
    let mut idle = connect(server.address(1));
    assert_eq!(post_in_vain(server.address(1), PROMPT.len()), "");
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "its idle connections end too");
    // Connections that arrive while its port closes are reset.
    let is_refused = |_attempt: &u32| {
        TcpStream::connect(server.address(1)).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    };
    assert!((0..10_000).find(is_refused).is_some(), "its port stays open");
    for pod_idx in [0, 2] {
        assert!(server.post(pod_idx, "/v1/completions", PROMPT).starts_with("HTTP/1.1 200"));
    }
    server.signal("-TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_crash_ends_a_request_that_has_come_in_part() {
    for n_bytes in [0, 1, PROMPT.len() - 1] {
        let server = Server::start(2, "--pods 2 --pod-name q --fault crash:pod=q-0");
        assert_eq!(post_in_vain(server.address(0), n_bytes), "");
    }
}

#[test]
fn a_fault_is_of_the_pod_that_it_names() {
    let server = Server::start(2, "--pods 2 --pod-name q --fault status:code=500,pod=q-1");
    let status = |pod_idx| server.post(pod_idx, "/v1/completions", PROMPT)[..12].to_owned();
    assert_eq!([status(0), status(1)], ["HTTP/1.1 200", "HTTP/1.1 500"]);
    let live = r#"{"faults":["status:code=502"]}"#;
    let head = "POST /debug/faults HTTP/1.1\r\ncontent-type: application/json\r\n";
    assert!(request(server.address(0), head, live).contains("\"pod\":\"q-0\""));
    assert_eq!([status(0), status(1)], ["HTTP/1.1 502", "HTTP/1.1 500"], "each pod has its own");
    let other = server.post(0, "/debug/faults", r#"{"faults":["refuse:pod=q-1"]}"#);
    assert!(other.contains("this pod is q-0"), "{other}");
    run("serve m --port 0 --pods 2 --pod-name q --fault refuse:pod=q-7")
        .code(2)
        .stderr(contains("--fault refuse:pod=q-7: the pods are q-0, q-1"));
}
