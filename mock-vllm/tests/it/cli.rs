//! The program as a user starts it.

use crate::process::{Server, run, stdout};
use predicates::str::{contains, starts_with};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

#[track_caller]
fn check_usage_error(args: &str, expected: &str) {
    run(args).code(2).stdout("").stderr(contains(expected));
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
    check_usage_error(
        "serve m --max-model-len 200K --num-gpu-blocks-override 100 --grow-kv-cache",
        "KV blocks",
    );
    check_usage_error(
        "serve m --runner pooling",
        "--runner pooling: this server has only models that generate",
    );
    check_usage_error("serve m --task embed", "--task embed: this server has only models that generate");
    check_usage_error("serve m --task sing", "[possible values: auto, generate,");
    check_usage_error("dance", "dance");
}

#[test]
fn the_kv_cache_grows_if_that_is_asked_for() {
    let settings = |flags: &str| {
        let line = format!("mock-vllm serve m {flags}");
        mock_vllm::cli::pod_settings(line.split_whitespace().map(Into::into)).unwrap().engine
    };
    assert_eq!(settings("--max-model-len 163840 --grow-kv-cache").n_blocks, 163_840 / 16 + 1);
    let (usual, same) = (settings(""), settings("--grow-kv-cache"));
    assert_eq!(usual.n_blocks, same.n_blocks, "it holds enough already");
}

/// The program ends once it has read its flags, because a file is missing.
#[test]
fn the_log_says_that_the_kv_cache_grows() {
    let log = |flags: &str| {
        let ended = run(&format!("serve m --port 0 --scripted-replies nowhere.yaml {flags}")).code(1);
        String::from_utf8(ended.get_output().stderr.clone()).unwrap()
    };
    let grown = log("--max-model-len 163840 --grow-kv-cache");
    let mut warnings = grown.lines().filter(|line| line.contains("the KV cache grows"));
    let warning = warnings.next().unwrap_or_else(|| panic!("no warning in {grown}"));
    assert!(warning.contains("WARN") && warning.contains("n_needed=10241"), "{warning}");
    assert_eq!(warnings.next(), None, "once");
    let control = log("--grow-kv-cache");
    assert!(control.contains("nowhere.yaml") && !control.contains("grows"), "{control}");
}

#[test]
fn the_longest_request_may_be_what_fits() {
    let engine = |flags: &str| {
        let line = format!("mock-vllm serve m --runner generate --task auto {flags}");
        mock_vllm::cli::pod_settings(line.split_whitespace().map(Into::into)).unwrap().engine
    };
    let usual = engine("").max_model_len;
    for auto in ["--max-model-len auto", "--max_model_len=auto", "--max-model-len -1"] {
        assert_eq!(engine(auto).max_model_len, usual, "{auto}");
        let few = engine(&format!("{auto} --num-gpu-blocks-override 101"));
        assert_eq!(few.max_model_len, 100 * 16, "one block is the pool's own");
        few.validate().unwrap();
    }
}

#[test]
fn a_file_that_is_missing_is_a_failure() {
    run("serve m --port 0 --scripted-replies nowhere.yaml").code(1).stderr(contains("nowhere.yaml"));
}

#[test]
fn help_teaches_flags_dialect_and_exit_codes() {
    run("--help").success().stdout(contains("check-trace")).stdout(contains("Exit codes"));
    let serve = run("serve --help").success();
    for text in ["--time-scale", "--request-log", "--enable-prefix-caching", "--no-x"] {
        assert!(stdout(&serve).contains(text), "{text}");
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
    assert_eq!(settings("--max-num-seq 7").engine.max_num_seqs, 7, "argparse takes the beginning of a flag");
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

/// Flags whose log, a line for each ignored one, is more than a pipe holds before the first port is open.
fn with_much_to_say() -> String {
    " --dtype auto".repeat(2_000)
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let mut server = Server::start(1, &with_much_to_say());
    assert!(server.get(0, "/health").starts_with("HTTP/1.1 200"));
    let body = r#"{"prompt":"hi","max_tokens":2}"#;
    assert!(server.post(0, "/v1/completions", body).starts_with("HTTP/1.1 200"));
    server.signal("-TERM");
    assert!(server.wait().success());
    let (log, _) = server.into_output();
    assert!(log.contains("--dtype") && !log.contains("Stopping"), "it stopped at a full pipe: {log}");
}

#[test]
fn a_log_that_is_read_is_whole() {
    let ended = run(&format!("serve m --port 0 --max-model-len 200K{}", with_much_to_say()));
    let log = String::from_utf8_lossy(&ended.get_output().stderr);
    assert_eq!(log.matches("Ignored flag").count(), 2_000);
    assert!(log.ends_with('\n') && log.contains("error: ") && !log.contains("are lost"), "{log}");
}

#[test]
fn a_reader_that_goes_on_is_told_what_is_lost() {
    let server = Server::start(1, &with_much_to_say().repeat(4));
    server.signal("-TERM");
    let (log, _) = server.into_output();
    let lost = log
        .lines()
        .filter_map(|line| line.strip_suffix(" lines of the log are lost: its reader was too slow"));
    let lost: Vec<usize> = lost.map(|n_lines| n_lines.parse().unwrap()).collect();
    let n_told = log.lines().count() - lost.len();
    assert!(lost.iter().sum::<usize>() > 1_000 && n_told > 4_096, "{lost:?} {n_told}");
    assert_eq!(n_told + lost.iter().sum::<usize>(), 8_002, "the flags, the address and the end");
}

#[test]
fn the_version_is_told_with_the_revision() {
    run("--version")
        .success()
        .stdout(format!("mock-vllm {}\n", env!("PROGRAM_VERSION")))
        .stdout(starts_with(concat!("mock-vllm ", env!("CARGO_PKG_VERSION"))));
}
