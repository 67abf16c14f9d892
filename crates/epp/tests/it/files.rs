//! The picker's files while requests arrive: rewritten in place, and replaced by files that cannot be read.

use std::process::Stdio;

use tokio::io::AsyncReadExt as _;

use crate::fixtures::{Picker, Scenario, post, until};

async fn complete(picker: &Picker, prompt: &str) -> Result<String, i32> {
    let body = format!(r#"{{"model":"/model/qwen","prompt":"{prompt}"}}"#);
    let answer = picker.proxy().await.full_duplex(&post("/v1/completions"), &[body.as_bytes(), b""]).await;
    match &answer.refused {
        Some((code, _, _)) => Err(*code),
        None => Ok(answer.picked().to_owned()),
    }
}

#[tokio::test]
async fn a_pool_file_that_is_rewritten_in_place_costs_no_request_and_no_prefix() {
    if test_skips::skips_slow() {
        return;
    }
    let picker = Scenario::new(3).start().await;
    let prompt = "x".repeat(400);
    let holder = complete(&picker, &prompt).await.unwrap();
    let text = picker.pools();
    let logged = |what: &str| picker.log.lines().iter().filter(|line| line.contains(what)).count();
    for (n_before, moment) in ["", "# half a comment"].into_iter().enumerate() {
        picker.rewrite_pools(moment);
        until(async || logged("if it stays so") > n_before).await;
        assert_eq!(complete(&picker, &prompt).await.as_ref(), Ok(&holder), "{moment}");
        picker.rewrite_pools(&text);
        until(async || logged("Reading changed file") == 2 * (n_before + 1)).await;
        assert_eq!(complete(&picker, &prompt).await.as_ref(), Ok(&holder), "{moment}");
    }
    let reasons: Vec<_> =
        picker.decisions(1).await.iter().map(|decision| decision["reason"].clone()).collect();
    assert_eq!(reasons, ["prefix"; 4]);
    // Control: if the file stays empty, that counts, and the log says so.
    picker.rewrite_pools("");
    until(async || complete(&picker, &prompt).await == Err(503)).await;
    let lines = picker.log.lines();
    for removed in ["Removing pool", "Removing model", "Removing endpoint"] {
        assert!(lines.iter().any(|line| line.contains(removed)), "{removed}: {lines:?}");
    }
}

#[tokio::test]
async fn a_fifo_instead_of_a_file_holds_nothing_up() {
    let picker = Scenario::new(2).start().await;
    picker.replace_endpoints_by_fifo();
    until(async || picker.log.lines().iter().any(|line| line.contains("is a FIFO"))).await;
    complete(&picker, "p").await.unwrap();
    // The pools are still followed, and the endpoints stay.
    picker.change_strategy("DEFAULT").await;
    complete(&picker, "p").await.unwrap();
}

/// Holds a lease of the file at the path that is its argument: until it ends, opening the file takes forever.
const HOLD: &str = "\
import fcntl, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1], 'r+')
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('held', flush=True)
time.sleep(600)
";

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_file_system_that_does_not_answer_holds_nothing_up() {
    if test_skips::skips_slow() {
        return;
    }
    let mut picker = Scenario::new(2).start().await;
    let mut python = tokio::process::Command::new("python3");
    python.args(["-c", HOLD]).arg(picker.endpoints_file()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut holder = python.spawn().unwrap();
    let mut said = String::new();
    holder.stdout.take().unwrap().take(5).read_to_string(&mut said).await.unwrap();
    if said != "held\n" {
        test_skips::skipped("the file system of temporary files has no leases: set TMPDIR to another");
        return;
    }
    let hangs =
        |line: &String| line.contains("endpoints.yaml: cannot be read: its file system does not answer");
    until(async || {
        complete(&picker, "p").await.unwrap();
        picker.log.lines().iter().any(hangs)
    })
    .await;
    // The pools are followed all the same, and the endpoints stay.
    picker.change_strategy("DEFAULT").await;
    complete(&picker, "p").await.unwrap();
    assert_eq!(picker.log.lines().iter().filter(|line| hangs(line)).count(), 1);
    // The control: when it answers again, so does the picker.
    holder.kill().await.unwrap();
    let stays = picker.pods[1].address;
    picker.keep_pods(|pod| pod.address == stays).await;
    assert_eq!(complete(&picker, "p").await, Ok(stays.to_string()));
}
