//! Engines' metrics: each engine's names are read, and numbers that are out of date do not count.

use epp::scrape::exposition::parse;
use inference_api::pool::ModelServerRuntime::{self, Sglang, TrtLlm, TrtllmServe, Vllm};
use picking::endpoint::{Adapters, Sample};
use serde_json::Value;

use crate::fixtures::{Pages, Picker, Scenario, get, post, until};

fn gauges(waiting: u32, running: u32, kv_usage: f64) -> Sample {
    Sample { waiting, running, kv_usage, ..Sample::default() }
}

fn check(runtime: ModelServerRuntime, text: &str, expected: Sample) {
    assert_eq!(parse(text.as_bytes(), runtime), Ok(expected), "{text}");
}

/// vLLM's page with these values of the load, and `rest`.
fn vllm([waiting, running, kv_usage]: [&str; 3], rest: &str) -> String {
    format!(
        "vllm:num_requests_waiting {waiting}\nvllm:num_requests_running {running}\n\
         vllm:kv_cache_usage_perc {kv_usage}\n{rest}"
    )
}

/// Asserts that the text does not contain the load, because these metrics are missing.
#[track_caller]
fn check_no_load(text: &str, lacking: &[&str]) {
    let error = parse(text.as_bytes(), Vllm).expect_err(text);
    assert_eq!(error.0, lacking, "{text}");
    lacking.iter().for_each(|metric| assert!(error.to_string().contains(metric), "{error}"));
}

/// Metrics that each engine writes, and no others.
const TEXTS: [(ModelServerRuntime, &str); 5] = [
    (
        Vllm,
        "vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 3.0\n\
         vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 2.0\n\
         vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 9.0\n\
         vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"} 0.5\n",
    ),
    (
        Vllm,
        "vllm:num_requests_waiting{model_name=\"m\"} 3.0\nvllm:num_requests_running{model_name=\"m\"} 2.0\n\
         vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.5\nvllm:cpu_cache_usage_perc{model_name=\"m\"} 0.9\n",
    ),
    (
        Sglang,
        "# TYPE sglang:token_usage gauge\nsglang:token_usage{model_name=\"m\"} 0.5\n\
         sglang:num_running_reqs{model_name=\"m\"} 2.0\nsglang:num_queue_reqs{model_name=\"m\"} 3.0\n\
         sglang:num_grammar_queue_reqs{model_name=\"m\"} 7.0\n",
    ),
    (
        TrtLlm,
        "nv_trt_llm_request_metrics{model=\"m\",request_type=\"waiting\",version=\"1\"} 3\n\
         nv_trt_llm_request_metrics{model=\"m\",request_type=\"scheduled\",version=\"1\"} 2\n\
         nv_trt_llm_request_metrics{model=\"m\",request_type=\"max\",version=\"1\"} 512\n\
         nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"m\",version=\"1\"} 0.5\n\
         nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"max\",model=\"m\",version=\"1\"} 6239\n",
    ),
    (
        TrtllmServe,
        "trtllm_num_requests_waiting{model_name=\"m\"} 3\ntrtllm_num_requests_running{model_name=\"m\"} 2\n\
         trtllm_kv_cache_utilization{model_name=\"m\"} 0.5\n",
    ),
];

#[test]
fn every_engine_is_read_by_its_names() {
    for (runtime, text) in TEXTS {
        check(runtime, text, gauges(3, 2, 0.5));
        for other in [Vllm, Sglang, TrtLlm, TrtllmServe] {
            if other != runtime {
                assert!(parse(text.as_bytes(), other).is_err(), "{other:?}: {text}");
            }
        }
    }
}

#[test]
fn engines_of_one_process_add_up_and_values_are_tolerated() {
    check(
        Vllm,
        "vllm:num_requests_waiting{engine=\"0\"} 3.0 1700000000\nvllm:num_requests_waiting{engine=\"1\"} 4\r\n\
         vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 1.5\n\
         vllm:num_requests_running{a=\"}\\\"{\"} 1e3\nprocess_start_time_seconds 1.7e9\n",
        Sample { started: Some(1.7e9), ..gauges(7, 1000, 1.0) },
    );
    check(Vllm, &vllm(["1e300", "0", "0.5"], ""), gauges(u32::MAX, 0, 0.5));
    // Exemplars and timestamps are not values, and an exemplar's labels are not those of the series.
    let text = "vllm:num_requests_waiting{engine=\"0\"} 3 1700000000.5 # {trace_id=\"a}b\"} 1.0 1700000000\n\
        vllm:num_requests_running 2 # {} 9\nvllm:kv_cache_usage_perc\t0.5 # {trace_id=\"c\",engine=\"7\"} 0.9\n# EOF\n";
    check(Vllm, text, gauges(3, 2, 0.5));
}

#[test]
fn what_is_not_a_count_or_a_share_is_no_value() {
    let names = ["vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"];
    for text in
        ["", "vllm:", "\u{fffd}", "<html>", "{\"error\": 1}", "# TYPE vllm:num_requests_waiting gauge\n"]
    {
        check_no_load(text, &names);
    }
    for value in
        ["NaN", "nan", "-1", "-0.5", "+Inf", "-Inf", "inf", "x", "", "{", "# {a=\"b\"} 1.0", "1,5", "0x1"]
    {
        for idx in 0..3 {
            let mut values = ["1", "1", "1"];
            values[idx] = value;
            check_no_load(&vllm(values, ""), &names[idx..=idx]);
            // If one of several engines cannot be read, their sum is unknown.
            check_no_load(&(vllm(["1"; 3], "") + names[idx] + "{engine=\"1\"} " + value), &names[idx..=idx]);
        }
        check(
            Vllm,
            &vllm(["1", "1", "1"], &format!("process_start_time_seconds {value}\n")),
            gauges(1, 1, 1.0),
        );
        let text =
            vllm(["1", "1", "1"], &format!("vllm:prompt_tokens_total 5\nvllm:prompt_tokens_total {value}\n"));
        check(Vllm, &text, gauges(1, 1, 1.0));
        let first_tokens = "vllm:time_to_first_token_seconds_count";
        let text = vllm(["1", "1", "1"], &format!("{first_tokens} 5\n{first_tokens} {value}\n"));
        check(Vllm, &text, gauges(1, 1, 1.0));
    }
    // Control: a valid page.
    let text = vllm(["1", "1", "1"], "process_start_time_seconds 2\nvllm:prompt_tokens_total 5\n");
    check(Vllm, &text, Sample { started: Some(2.0), prompt_tokens: Some(5.0), ..gauges(1, 1, 1.0) });
    let text = "vllm:time_to_first_token_seconds_bucket{le=\"1\"} 7\n\
        vllm:time_to_first_token_seconds_count{engine=\"0\"} 5.0\n\
        vllm:time_to_first_token_seconds_count{engine=\"1\"} 1e300\n\
        vllm:time_to_first_token_seconds_sum 9.5\n";
    let sample = Sample { first_tokens: Some(u64::MAX), ..gauges(1, 1, 1.0) };
    check(Vllm, &vllm(["1", "1", "1"], text), sample.clone());
    let sample = Sample { first_tokens: Some(5), ..sample };
    check(Vllm, &vllm(["1", "1", "1"], &text.replace("1e300", "0")), sample.clone());
    let text = "sglang:token_usage 1\nsglang:num_running_reqs 1\nsglang:num_queue_reqs 1\n\
        sglang:time_to_first_token_seconds_count{model_name=\"m\"} 5.0\n";
    check(Sglang, text, sample);
}

#[test]
fn a_cache_of_a_size_that_is_none_is_not_known() {
    let engine = |block_size: &str, n_blocks: &str| {
        format!("vllm:cache_config_info{{block_size=\"{block_size}\",num_gpu_blocks=\"{n_blocks}\"}} 1.0\n")
    };
    let check = |engines: &[String], kv_tokens: Option<u64>| {
        check(Vllm, &vllm(["1"; 3], &engines.concat()), Sample { kv_tokens, ..gauges(1, 1, 1.0) });
    };
    check(&[engine("16", "100"), engine("16", "20")], Some(1920));
    let largest = u64::MAX.to_string();
    check(&[engine("1", &largest)], Some(u64::MAX));
    check(&[engine("1", &largest), engine("1", "1")], None);
    check(&[engine("2", &largest)], None);
    for silly in ["None", "", "-1", "1.5", "1e9", "18446744073709551616", "0"] {
        check(&[engine("16", silly)], None);
        check(&[engine(silly, "16"), engine("16", "100")], None);
    }
}

#[test]
fn the_latest_series_of_adapters_counts() {
    let series = |running: &str, waiting: &str, max: u32, at: &str| {
        format!(
            "vllm:lora_requests_info{{max_lora=\"{max}\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"{waiting}\"}} {at}\n"
        )
    };
    let load = vllm(["1"; 3], "");
    let adapters = |names: &[&str], base_models: &[&str]| Sample {
        adapters: Some(Adapters {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            max: 2,
            base_models: base_models.iter().map(|name| (*name).to_owned()).collect(),
        }),
        ..gauges(1, 1, 1.0)
    };
    let text = series("old", "", 2, "1.0")
        + &series("a, b", "c", 2, "3.0")
        + &series("older", "", 2, "2.0")
        + &series("never", "", 2, "NaN");
    check(Vllm, &(text + &load), adapters(&["a", "b", "c"], &[]));
    let text = series("", "", 2, "1.0") + &load.replace("waiting 1", "waiting{model_name=\"base\"} 1");
    check(Vllm, &text, adapters(&[], &["base"]));
    check(Vllm, &(series("", "", 0, "1.0") + &load), gauges(1, 1, 1.0));
}

async fn endpoint(picker: &Picker, pod_idx: usize) -> Value {
    let text = get(picker.ports.metrics, "/debug/pools").await;
    let status: Value = serde_json::from_str(&text).unwrap();
    status["pools"][0]["endpoints"][pod_idx].clone()
}

async fn complete(picker: &Picker, prompt: &str) -> String {
    let body = format!(r#"{{"model":"/model/qwen","prompt":"{prompt}"}}"#);
    let proxy = picker.proxy().await;
    proxy.full_duplex(&post("/v1/completions"), &[body.as_bytes(), b""]).await.picked().to_owned()
}

#[tokio::test]
async fn the_pools_annotation_names_the_engine() {
    let runtime = ", inference.networking.x-k8s.io/model-server-runtime: trtllm-serve";
    let picker = Scenario::new(2).annotations(runtime).strategy("DEFAULT").start().await;
    picker.pods[0].set_metrics(TEXTS[4].1);
    picker.pods[1].set_metrics(&TEXTS[4].1.replace("waiting{model_name=\"m\"} 3", "waiting 9"));
    picker.wait_for_scrapes().await;
    assert_eq!(complete(&picker, "p").await, picker.pods[0].address.to_string());
    assert_eq!(endpoint(&picker, 1).await["waiting"], 9);
    assert_eq!(picker.pods[0].paths(), ["/prometheus/metrics".to_owned()].into());
    // It may change while the picker runs.
    picker.pods[0].set_load(5, 0, 0.0);
    picker.pods[1].set_load(0, 0, 0.0);
    picker.change_strategy("PREFIX_CACHE").await;
    picker.wait_for_scrapes().await;
    assert_eq!(complete(&picker, "p").await, picker.pods[1].address.to_string());
}

#[tokio::test]
async fn what_is_read_is_asked_for_and_else_the_whole_page() {
    let picker = Scenario::new(4).start().await;
    for (pod, pages) in
        picker.pods.iter().zip([Pages::Any, Pages::FilterOnly, Pages::FilterFindsNothing, Pages::WholeOnly])
    {
        pod.set_pages(pages);
    }
    // A pod that closes each connection after its answer is scraped over a new one.
    picker.pods[3].close_connections();
    for (idx, pod) in picker.pods.iter().enumerate() {
        pod.set_load(u32::try_from(idx).unwrap() + 1, 0, 0.0);
    }
    for idx in 0..4 {
        until(async || endpoint(&picker, idx).await["waiting"] == idx + 1).await;
    }
    let asked = |idx: usize| picker.pods[idx].paths();
    let filter = asked(0).into_iter().next().unwrap();
    assert!(filter.starts_with("/metrics/?name%5B%5D=vllm:num_requests_waiting&"), "{filter}");
    assert!(filter.ends_with("&name%5B%5D=process_start_time_seconds"), "{filter}");
    assert_eq!((asked(0).len(), asked(1).len()), (1, 1));
    assert_eq!(asked(2), [filter, "/metrics".to_owned()].into());
    assert_eq!(asked(3), asked(2));
    assert!(picker.metrics().await.contains("epp_scrapes_total{outcome=\"ok\"}"));
}

#[tokio::test]
async fn one_answer_that_is_not_200_does_not_end_the_filter() {
    let picker = Scenario::new(1).start().await;
    let pod = &picker.pods[0];
    pod.set_load(0, 1, 0.1);
    pod.set_pages(Pages::WholeOnly);
    until(async || pod.paths().contains("/metrics")).await;
    pod.set_pages(Pages::Any);
    let is_filtered = |path: &String| path.starts_with("/metrics/?");
    // The whole page is read for a while.
    pod.forget_paths();
    picker.wait_for_scrapes().await;
    assert_eq!(pod.paths(), ["/metrics".to_owned()].into());
    until(async || pod.paths().iter().any(is_filtered)).await;
    pod.forget_paths();
    picker.wait_for_scrapes().await;
    assert!(pod.paths().iter().all(is_filtered), "{:?}", pod.paths());
}

#[tokio::test]
async fn a_page_that_leaves_the_start_out_is_not_a_restart() {
    let picker = Scenario::new(2).start().await;
    let prompt = "x".repeat(200);
    complete(&picker, &prompt).await;
    let reason = async || picker.decisions(0).await.pop().unwrap()["reason"].clone();
    for (started, expected) in
        [(Some(1.5e9), "prefix"), (None, "prefix"), (Some(1.5e9), "prefix"), (Some(1.6e9), "load")]
    {
        for pod in &picker.pods {
            pod.set_load(0, 0, 0.0);
            started.into_iter().for_each(|started| pod.set_started(started));
        }
        picker.wait_for_scrapes().await;
        complete(&picker, &prompt).await;
        assert_eq!(reason().await, expected, "{started:?}");
    }
}

#[tokio::test]
async fn a_pod_that_stops_answering_loses_its_prefixes_at_once() {
    let picker = Scenario::new(2).start().await;
    let prompt = "x".repeat(200);
    let holder = complete(&picker, &prompt).await;
    assert_eq!(complete(&picker, &prompt).await, holder);
    let hung = picker.pods.iter().position(|pod| pod.address.to_string() == holder).unwrap();
    picker.pods[hung].hang();
    // The limit on the metrics' age is a minute in this test: the failed scrape is what counts.
    until(async || endpoint(&picker, hung).await["fresh"] == false).await;
    assert_eq!(endpoint(&picker, hung).await["metrics_age_ms"], Value::Null);
    assert_ne!(complete(&picker, &prompt).await, holder);
    // Control: it still counts as reachable, for a pool without other endpoints.
    assert_eq!(endpoint(&picker, hung).await["reachable"], true);
}

#[tokio::test]
async fn an_idle_pod_is_asked_half_as_often() {
    let picker = Scenario::new(2).start().await;
    picker.pods[0].set_load(0, 1, 0.1);
    picker.wait_for_scrapes().await;
    let [busy, idle] = [0, 1].map(|idx| picker.pods[idx].n_scrapes());
    until(async || picker.pods[0].n_scrapes() >= busy + 60).await;
    let asked = picker.pods[1].n_scrapes() - idle;
    assert!((20..45).contains(&asked), "{asked} scrapes of an idle pod while a busy one had 60");
}

/// The page of an idle vLLM.
const IDLE: &str = "# TYPE vllm:num_requests_running gauge\n\
    vllm:num_requests_running{engine=\"0\",model_name=\"/model/qwen\"} 0.0\n\
    # TYPE vllm:num_requests_waiting gauge\n\
    vllm:num_requests_waiting{engine=\"0\",model_name=\"/model/qwen\"} 0.0\n\
    # TYPE vllm:kv_cache_usage_perc gauge\n\
    vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"/model/qwen\"} 0.0\n";

/// An answer with status 200, these headers and the page.
fn ok(headers: &str, page: &str) -> Vec<u8> {
    let length = page.len();
    format!("HTTP/1.1 200 OK\r\n{headers}content-length: {length}\r\n\r\n{page}").into_bytes()
}

/// The idle page with another value of one metric.
fn idle_with(metric: &str, value: &str) -> Vec<u8> {
    let lines = IDLE.lines().map(|line| match line.strip_suffix(" 0.0") {
        Some(series) if series.contains(metric) => format!("{series} {value}\n"),
        _ => format!("{line}\n"),
    });
    ok("", &lines.collect::<String>())
}

fn idle_without(metric: &str) -> Vec<u8> {
    let lines = IDLE.lines().filter(|line| !line.starts_with(metric));
    ok("", &lines.map(|line| format!("{line}\n")).collect::<String>())
}

/// Answers without the load, and the reason for which the scrape fails.
fn answers_without_load() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let gzip =
        [&ok("content-encoding: gzip\r\n", "")[..], b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"].concat();
    let gzip = String::from_utf8_lossy(&gzip).replace("content-length: 0", "content-length: 10").into_bytes();
    let chunked =
        |body: &str| format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}").into_bytes();
    vec![
        ("an empty page", ok("", ""), "no_load"),
        ("comments alone", ok("", "# TYPE vllm:num_requests_waiting gauge\n# EOF\n"), "no_load"),
        ("HTML", ok("content-type: text/html\r\n", "<html><body>Welcome to nginx!</body></html>"), "no_load"),
        (
            "an error in JSON",
            ok("content-type: application/json\r\n", r#"{"error":"engine is dead"}"#),
            "no_load",
        ),
        ("gzip", gzip, "no_load"),
        ("another engine's", ok("", TEXTS[2].1), "no_load"),
        ("Python's own metrics", ok("", "python_info 1.0\nprocess_start_time_seconds 1.7e9\n"), "no_load"),
        ("no queue", idle_without("vllm:num_requests_waiting"), "no_load"),
        ("no batch", idle_without("vllm:num_requests_running"), "no_load"),
        ("no cache", idle_without("vllm:kv_cache_usage_perc"), "no_load"),
        ("NaN", ok("", &IDLE.replace(" 0.0", " NaN")), "no_load"),
        ("a queue of NaN", idle_with("waiting", "NaN"), "no_load"),
        ("a negative queue", idle_with("waiting", "-1"), "no_load"),
        ("an infinite queue", idle_with("waiting", "+Inf"), "no_load"),
        ("a queue in words", idle_with("waiting", "none"), "no_load"),
        ("a negative cache", idle_with("kv_cache", "-0.5"), "no_load"),
        ("a page that is cut", ok("", &IDLE[..IDLE.len() - 40]), "no_load"),
        (
            "a redirect",
            b"HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n".to_vec(),
            "status",
        ),
        ("an error", b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".to_vec(), "status"),
        ("no content", b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(), "no_load"),
        ("a body that is cut", ok("", IDLE)[..200].to_vec(), "broken"),
        ("chunks that are cut", chunked(&format!("{:x}\r\n{IDLE}\r\n", IDLE.len())), "broken"),
        ("chunks of garbage", chunked("zzz\r\nvllm:num_requests_waiting 0\r\n"), "broken"),
        ("not HTTP", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), "broken"),
        ("a huge page", ok("", &"# a comment\n".repeat(1 << 20)), "too_large"),
        (
            "a last line that the end cuts",
            [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &IDLE.as_bytes()[..IDLE.len() - 2]].concat(),
            "no_load",
        ),
    ]
}

async fn metric(picker: &Picker, series: &str) -> f64 {
    let metrics = picker.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(series));
    value.map_or(0.0, |value| value.trim().parse().unwrap())
}

#[tokio::test]
async fn a_pod_that_says_nothing_of_its_load_does_not_count_as_idle() {
    let picker = Scenario::new(2).strategy("DEFAULT").start().await;
    let [silent, busy] = [0, 1].map(|idx| &picker.pods[idx]);
    busy.set_load(3, 4, 0.5);
    picker.wait_for_scrapes().await;
    for (kind, answer, reason) in answers_without_load() {
        let failures = format!("epp_scrape_failures_total{{reason=\"{reason}\"}}");
        let before = metric(&picker, &failures).await;
        silent.set_answer(&answer);
        until(async || metric(&picker, &failures).await > before).await;
        for _ in 0..4 {
            assert_eq!(complete(&picker, "p").await, busy.address.to_string(), "{kind}");
        }
        // Control: a page with an idle load.
        silent.set_answer(&ok("", IDLE));
        until(async || endpoint(&picker, 0).await["fresh"] == true).await;
        assert_eq!(complete(&picker, "p").await, silent.address.to_string(), "{kind}");
    }
    // Each reason is logged once for the pod, however often it occurs.
    let said = |reason: &str| {
        let lines = picker.log.lines();
        lines.iter().filter(|line| line.contains("Scrape failed") && line.contains(reason)).count()
    };
    assert_eq!(["no_load", "status", "broken", "too_large"].map(said), [1; 4], "{:?}", picker.log.lines());
}

#[tokio::test]
async fn where_no_pod_tells_its_load_requests_are_spread_all_the_same() {
    let picker = Scenario::new(3).strategy("DEFAULT").start().await;
    picker.pods.iter().for_each(|pod| pod.set_answer(&ok("", "")));
    for idx in 0..3 {
        until(async || endpoint(&picker, idx).await["fresh"] == false).await;
    }
    let mut picked = std::collections::BTreeSet::new();
    until(async || {
        picked.insert(complete(&picker, "p").await);
        picked.len() == 3
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_whose_task_panics_is_scraped_again() {
    let picker = Scenario::new(2).start().await;
    let n_panics = async || {
        let metrics = picker.metrics().await;
        let count = metrics.lines().find_map(|line| line.strip_prefix("epp_endpoint_task_panics_total "));
        count.unwrap().parse::<u32>().unwrap()
    };
    let n_said = || picker.log.lines().iter().filter(|line| line.contains("has died")).count();
    // The control: a page without the load is a failed scrape, and no panic.
    picker.pods[0].set_metrics("# nothing\n");
    until(async || picker.log.lines().iter().any(|line| line.contains("Scrape failed"))).await;
    assert_eq!((n_panics().await, n_said()), (0, 0));
    picker.log.set_fatal(Some("Scrape failed"));
    picker.pods[1].set_metrics("# nothing\n");
    until(async || n_panics().await > 0).await;
    let line = picker.log.lines().into_iter().find(|line| line.contains("has died")).unwrap();
    assert!(line.contains("a line that is fatal") && line.contains("qwen-1"), "{line}");
    picker.log.set_fatal(None);
    picker.pods.iter().for_each(|pod| pod.set_load(3, 1, 0.5));
    let waiting = r#"inference_pool_per_pod_queue_size{name="vllm-qwen-pool",namespace="default",model_server_pod="qwen-1"} 3"#;
    until(async || picker.metrics().await.lines().any(|line| line == waiting)).await;
    assert_eq!(n_panics().await, u32::try_from(n_said()).unwrap());
}
