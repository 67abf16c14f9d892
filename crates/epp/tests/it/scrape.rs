//! Engines' metrics: read by the names of each, and worth nothing once they are not current.

use epp::candidates::Adapters;
use epp::scrape::exposition::{Gauges, parse};
use inference_api::pool::ModelServerRuntime::{self, Sglang, TrtLlm, TrtllmServe, Vllm};
use serde_json::Value;

use crate::fixtures::{Pages, Picker, Scenario, get, post, until};

fn gauges(waiting: u32, running: u32, kv_usage: f64) -> Gauges {
    Gauges { waiting, running, kv_usage, ..Gauges::default() }
}

fn check(runtime: ModelServerRuntime, text: &str, expected: Gauges) {
    assert_eq!(parse(text.as_bytes(), runtime), expected, "{text}");
}

/// What each engine writes, and nothing that it does not.
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
                check(other, text, Gauges::default());
            }
        }
    }
}

#[test]
fn engines_of_one_process_add_up_and_values_are_tolerated() {
    check(
        Vllm,
        "vllm:num_requests_waiting{engine=\"0\"} 3.0 1700000000\nvllm:num_requests_waiting{engine=\"1\"} 4\n\
         vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 1.5\n\
         vllm:num_requests_running NaN\nvllm:num_requests_running{a=\"}\"} 1e3\nprocess_start_time_seconds 1.7e9\n",
        Gauges { started: Some(1.7e9), ..gauges(7, 1000, 1.0) },
    );
    for text in [
        "",
        "vllm:",
        "vllm:num_requests_waiting",
        "vllm:num_requests_waiting{",
        "vllm:num_requests_waiting{} x",
        "\u{fffd}",
    ] {
        check(Vllm, text, Gauges::default());
    }
}

#[test]
fn the_latest_series_of_adapters_counts() {
    let series = |running: &str, waiting: &str, max: u32, at: f64| {
        format!(
            "vllm:lora_requests_info{{max_lora=\"{max}\",running_lora_adapters=\"{running}\",waiting_lora_adapters=\"{waiting}\"}} {at}\n"
        )
    };
    let adapters = |names: &[&str], base_models: &[&str]| Gauges {
        adapters: Some(Adapters {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            max: 2,
            base_models: base_models.iter().map(|name| (*name).to_owned()).collect(),
        }),
        ..Gauges::default()
    };
    let text = series("old", "", 2, 1.0) + &series("a, b", "c", 2, 3.0) + &series("older", "", 2, 2.0);
    check(Vllm, &text, adapters(&["a", "b", "c"], &[]));
    let text = series("", "", 2, 1.0) + "vllm:num_requests_waiting{model_name=\"base\"} 0\n";
    check(Vllm, &text, adapters(&[], &["base"]));
    check(Vllm, &series("", "", 0, 1.0), Gauges::default());
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
    picker.pods[1].set_metrics("trtllm_num_requests_waiting 9\n");
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
async fn a_pod_that_stops_answering_loses_its_prefixes_at_once() {
    let picker = Scenario::new(2).start().await;
    let prompt = "x".repeat(200);
    let holder = complete(&picker, &prompt).await;
    assert_eq!(complete(&picker, &prompt).await, holder);
    let hung = picker.pods.iter().position(|pod| pod.address.to_string() == holder).unwrap();
    picker.pods[hung].hang();
    // The limit on metrics' age is a minute in this test: the scrape that fails is what counts.
    until(async || endpoint(&picker, hung).await["fresh"] == false).await;
    assert_eq!(endpoint(&picker, hung).await["metrics_age_ms"], Value::Null);
    assert_ne!(complete(&picker, &prompt).await, holder);
    // Control: it still counts as there, for a pool in which no other is.
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
