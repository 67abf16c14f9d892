//! Results of the latency flags: presets by GPU, several GPUs, constants, calibration files, and the tables that show
//! them.

use crate::process::{run, stdout};
use assert_cmd::assert::Assert;
use mock_vllm::cli;
use mock_vllm::server::PodSettings;
use predicates::str::contains;
use serde_json::Value;
use std::time::Duration;
use vllm_engine::latency::calibration::step;

fn settings(flags: &str) -> Result<PodSettings, String> {
    let line = format!("mock-vllm serve {flags}");
    cli::pod_settings(line.split_whitespace().map(Into::into))
}

#[track_caller]
fn refused(flags: &str, part: &str) {
    let error = settings(flags).expect_err("the flags are wrong");
    assert!(error.contains(part), "{error}");
}

/// Returns the milliseconds of a prefill of 2,048 tokens and of a decode of 16 requests, and the KV blocks.
fn figures(flags: &str) -> (f64, f64, u32) {
    let PodSettings { latency, engine, .. } = settings(flags).unwrap();
    let ms = |plan| latency.step_time(&plan).as_secs_f64() * 1e3;
    let decode = step(std::iter::repeat_n((2_400, 1, false), 16));
    (ms(step([(0, 2_048, true)])), ms(decode), engine.n_blocks)
}

#[test]
fn a_gpu_takes_the_figures_of_the_served_model() {
    let by_gpu = figures("Qwen/Qwen2.5-14B-Instruct-AWQ --gpu h100");
    assert_eq!(by_gpu, figures("m --latency-preset h100/qwen2.5-14b"));
    assert_ne!(by_gpu, figures("Qwen/Qwen3-8B --gpu h100"));
    refused("mistral-large --gpu h100", "no figures for the model mistral-large");
    refused("m --gpu b200", "h20");
    refused("Qwen3-8B --gpu h100 --latency-preset a10-doc", "cannot be used with");
    refused("m --latency-preset h100", "no such preset: h100; there are a10-doc");
}

#[test]
fn gpus_share_work_and_kv_and_pay_for_it() {
    let of = |size| figures(&format!("m --latency-preset a100-80/qwen2.5-14b --tensor-parallel-size {size}"));
    let (one, two, eight) = (of(1), of(2), of(8));
    assert_eq!(one, figures("m --latency-preset a100-80/qwen2.5-14b"));
    // Half the GEMM of 275 ms, and the exchange of 2,048 tokens x 983,040 bytes at 230 GB/s.
    assert!((two.0 - (one.0 / 2.0 + 8.8 + 1.5 + 2.0)).abs() < 5.0, "{one:?} {two:?}");
    assert!(two.1 < one.1 && eight.1 < two.1, "{one:?} {two:?} {eight:?}");
    // Weights take 27.5 of 72.9 GiB on one card, and half of that on each of two, where a block is half as large.
    let expected = f64::from(one.2) * 2.0 * (72.864 - 13.75 - 1.5) / (72.864 - 27.5 - 1.5);
    assert!((f64::from(two.2) / expected - 1.0).abs() < 0.001, "{} and {expected}", two.2);
    refused("m --tensor-parallel-size 3", "Total number of attention heads (28) must be divisible");
    refused("Qwen/Qwen2.5-7B-Instruct --tensor-parallel-size 8", "attention heads (28) must be divisible");
    assert!(settings("m --tensor-parallel-size 8").is_ok(), "the heads of this model are not known");
    // With four KV heads on seven GPUs, each GPU has one whole head.
    let seven = settings("m --tensor-parallel-size 7").unwrap().latency;
    assert_eq!(seven.model.kv_bytes, 57_344.0 / 4.0);
}

#[test]
fn kv_memory_can_be_given_in_bytes() {
    assert_eq!(figures("m --kv-cache-memory-bytes 7G").2, 8_192, "16 tokens are 0.875 MiB");
    assert_eq!(figures("m --kv-cache-memory-bytes 7G -tp 2").2, 16_384, "half of each on each");
    assert_eq!(figures("m --kv-cache-memory-bytes 7G --num-gpu-blocks-override 3000").2, 3_000);
    refused("m --kv-cache-memory-bytes seven", "not a number of bytes");
}

#[test]
fn constants_do_not_depend_on_the_batch() {
    let flags = "m --constant-ttft 50ms --constant-itl 10ms";
    assert_eq!(figures(flags), (10.0, 10.0, figures("m").2));
    let latency = settings(flags).unwrap().latency;
    assert_eq!((latency.c_pre.as_millis(), latency.c_post.as_millis()), (40, 0), "the rest of the 50 ms");
    let (prefill, decode, _) = figures(&format!("{flags} --constant-prefill-per-token 100us"));
    assert!((prefill - 214.8).abs() < 1e-6 && decode == 10.0, "{prefill} {decode}");
    let fast = settings("m --constant-itl 10ms --constant-ttft 4ms").unwrap().latency;
    assert_eq!(fast.c_pre.as_millis(), 0);
    assert_eq!(fast.step_time(&step([(0, 100, true)])).as_millis(), 4);
    for time in ["10", "-1ms", "ms", "soon"] {
        refused(&format!("m --constant-itl={time}"), "expected a time, as in 50ms");
    }
    let finer = |time: &str| {
        settings(&format!("m --constant-itl {time}")).unwrap().latency.step_time(&step([(0, 1, true)]))
    };
    assert_eq!(
        ["0", "0.2ms", "250us", "1.5s"].map(finer),
        [0, 200, 250, 1_500_000].map(Duration::from_micros)
    );
    refused("m --constant-itl 10ms --latency-calibration x.yaml", "cannot be used with");
}

fn calibrated(yaml: &str) -> Assert {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), yaml).unwrap();
    run(&format!("latency --json --latency-calibration {}", file.path().display()))
}

#[test]
fn constants_of_a_file_replace_those_of_its_base() {
    let yaml =
        r#"{"base":"l40s/qwen2.5-7b","gpu":{"gemm_tflops":100,"memory_gib":40},"host":{"before_ms":1}}"#;
    let table = |yaml| serde_json::from_str(stdout(&calibrated(yaml).success())).unwrap();
    let given: Value = table(yaml);
    assert_eq!(given["model"]["gpu"]["gemm_rate"], 100e12);
    assert_eq!(given["before_ms"], 1.0);
    // A file without them leaves the base's.
    let plain: Value = table("base: l40s/qwen2.5-7b");
    assert_eq!(plain["model"]["gpu"]["gemm_rate"], 230e12);
    for key in ["after_ms", "prefill"] {
        assert_eq!(given[key] == plain[key], key == "after_ms", "{key}");
    }
    assert_ne!((&given["before_ms"], &given["kv_blocks"]), (&plain["before_ms"], &plain["kv_blocks"]));
}

#[test]
fn a_bad_calibration_names_the_key_and_shows_the_schema() {
    let check = |yaml: &str, part: &str| {
        let schema = "weight_gb_per_s: 485";
        calibrated(yaml).code(2).stderr(contains(part)).stderr(contains(schema));
    };
    check("gpu: {gemm_tflop: 3}", "gemm_tflop");
    check("gpu: {gemm_tflops: -3}", "gpu.gemm_tflops must be a number above 0, got -3");
    check("host: {step_ms: -1}", "host.step_ms must not be negative, got -1");
    check("base: b200/gpt", "base: no such preset: b200/gpt");
    check("points: [{decode: 1, ms: 3}]", "unknown field `points`");
    check("points: [{decode: 1, ms: 3}]", "`cargo e2e calibrate` writes such a file from measured steps");
    check("[]", "line 1");
    run("serve m --latency-calibration nowhere.yaml").code(2).stderr(contains("nowhere.yaml"));
}

#[test]
fn the_tables_show_the_published_values() {
    let printed = run("latency").success();
    let rows: Vec<Vec<&str>> =
        stdout(&printed).lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [["16384", "0", "5668.9"], ["2165", "0", "587.9"], ["16", "2400", "46.9"]] {
        assert!(rows.contains(&row.to_vec()), "{row:?}: {printed}");
    }
    let list = run("latency --list").success();
    for name in ["a10-doc", "a10g", "a100-80", "h20", "qwen2.5-14b", "qwen3-8b", "llama-3.1-8b"] {
        assert!(stdout(&list).contains(name), "{name}: {list}");
    }
    // The schema is an example of itself.
    let schema = run("latency --schema").success();
    calibrated(stdout(&schema).split_once(":\n").unwrap().1).success();
}
