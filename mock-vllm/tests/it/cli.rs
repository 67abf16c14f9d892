//! The program as a user starts it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

fn run(args: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mock-vllm"));
    command.args(args.split_whitespace()).output().unwrap()
}

#[track_caller]
fn check_usage_error(args: &str, expected: &str) {
    let output = run(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn wrong_usage_is_named_before_anything_starts() {
    check_usage_error("serve m --nonsense 1", "--nonsense");
    check_usage_error("serve m --max_model_len x", "--max-model-len");
    check_usage_error("serve", "which model?");
    check_usage_error("serve m --time-scale 0", "--time-scale");
    check_usage_error("serve m --latency-preset abacus", "abacus");
    check_usage_error("serve m --tokenizer nowhere/at-all", "nowhere/at-all");
    check_usage_error("serve m --max-model-len 200K", "KV blocks");
    check_usage_error("dance", "dance");
}

#[test]
fn a_file_that_is_missing_is_a_failure() {
    let output = run("serve m --port 0 --scripted-replies nowhere.yaml");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere.yaml"));
}

#[test]
fn help_teaches_flags_dialect_and_exit_codes() {
    let top = String::from_utf8(run("--help").stdout).unwrap();
    assert!(top.contains("check-trace") && top.contains("Exit codes"));
    let serve = String::from_utf8(run("serve --help").stdout).unwrap();
    for text in ["--time-scale", "--request-log", "--enable-prefix-caching", "--no-x"] {
        assert!(serve.contains(text), "{text}");
    }
}

#[test]
fn a_repeated_flag_is_won_by_the_last() {
    let settings = |flags: &str| {
        let line = format!("mock-vllm serve m {flags}");
        mock_vllm::cli::pod_settings(line.split_whitespace().map(Into::into)).unwrap()
    };
    assert!(!settings("--enable-prefix-caching --no-enable-prefix-caching").engine.prefix_caching);
    assert!(settings("--no-enable-prefix-caching --enable_prefix_caching").engine.prefix_caching);
    assert_eq!(settings("--max-num-seqs 1 --max-num-seqs 2").engine.max_num_seqs, 2);
    assert_eq!(settings("--gpu-memory-utilization 0.95").engine.n_blocks, 6_226);
    assert_eq!(settings("--num-gpu-blocks-override 3000").engine.n_blocks, 3_000);
    assert_eq!(settings("").http.served_model_names, ["m"]);
}

#[test]
fn sigterm_ends_it_with_success_though_a_stream_is_open() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_mock-vllm"))
        .args("serve m --host 127.0.0.1 --port 0 --dtype auto --time-scale 1".split(' '))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut seen = Vec::new();
    let address = loop {
        let line = log.next().unwrap_or_else(|| panic!("no address in {seen:?}"));
        seen.push(line.clone());
        if let Some((_, rest)) = line.split_once("address=") {
            break rest.split(' ').next().unwrap().to_owned();
        }
    };
    assert!(seen.iter().any(|line| line.contains("--dtype")), "{seen:?}");
    let body = r#"{"prompt":"hi","max_tokens":20000,"ignore_eos":true,"stream":true}"#;
    let mut socket = TcpStream::connect(&address).unwrap();
    let head =
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length:";
    write!(socket, "{head} {}\r\n\r\n{body}", body.len()).unwrap();
    socket.read_exact(&mut [0; 16]).unwrap();
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert!(child.wait().unwrap().success());
    assert!(TcpStream::connect(&address).is_err());
}
