//! Metrics of the web server: which exchanges count, under which handler, with which sizes, and when.

use crate::server_fixtures::{TestPod, start};
use crate::server_lifecycle::{LONG, PATIENCE, open, read_tokens};
use flate2::read::GzDecoder;
use http::Method;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::Duration;

const JSON: (&str, &str) = ("content-type", "application/json");

/// Returns all `http_*` values except those of durations, by series.
async fn counted(pod: &TestPod) -> BTreeMap<String, f64> {
    let page = pod.get("/metrics").await.body;
    let lines = page.lines().filter(|line| line.starts_with("http_"));
    let values = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse().unwrap())
    });
    values
        .filter(|(series, _): &(String, f64)| !series.contains("_created") && !series.contains("_bucket"))
        .collect()
}

async fn counted_when(pod: &TestPod, series: &str) -> BTreeMap<String, f64> {
    let wait = async {
        loop {
            let counted = counted(pod).await;
            if counted.contains_key(series) {
                return counted;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it is counted")
}

#[tokio::test]
async fn exchanges_count_by_handler_method_and_class_of_status_with_their_sizes() {
    let pod = start("--api-key secret").await;
    let key = ("authorization", "Bearer secret");
    let models = pod.send(Method::GET, "/v1/models", &[key], "").await;
    let body = r#"{"prompt":"x","max_tokens":1}"#;
    let answer = pod.send(Method::POST, "/v1/completions", &[key, JSON], body).await;
    let stream_body = r#"{"prompt":"x","max_tokens":1,"stream":true}"#;
    pod.send(Method::POST, "/v1/completions", &[key, JSON], stream_body).await;
    pod.send(Method::POST, "/v1/completions", &[key, JSON], "{").await;
    // vLLM checks keys before its instruments count.
    pod.get("/v1/models").await;
    let unknown = pod.get("/nowhere").await;
    let method = pod.get("/tokenize").await;
    for path in
        ["/health", "/load", "/ping", "/version", "/metrics", "/metrics/", "/v2/health", "/debug/nothing"]
    {
        pod.send(Method::GET, path, &[key], "").await;
    }
    let counted = counted(&pod).await;
    let requests: Vec<_> = counted
        .iter()
        .filter(|(series, _)| series.starts_with("http_requests_total"))
        .map(|(series, n)| (series.as_str(), *n))
        .collect();
    assert_eq!(
        requests,
        [
            (r#"http_requests_total{handler="/v1/completions",method="POST",status="2xx"}"#, 2.0),
            (r#"http_requests_total{handler="/v1/completions",method="POST",status="4xx"}"#, 1.0),
            (r#"http_requests_total{handler="/v1/models",method="GET",status="2xx"}"#, 1.0),
            (r#"http_requests_total{handler="none",method="GET",status="4xx"}"#, 2.0),
        ]
    );
    let sum =
        |what: &str, handler: &str| counted[&format!(r#"http_{what}_size_bytes_sum{{handler="{handler}"}}"#)];
    assert_eq!(sum("request", "/v1/completions"), (body.len() + stream_body.len() + 1) as f64);
    assert_eq!(sum("request", "/v1/models"), 0.0);
    assert_eq!(sum("response", "/v1/models"), models.body.len() as f64);
    assert_eq!(sum("response", "none"), (unknown.body.len() + method.body.len()) as f64);
    // The stream has no length to count, but the rejection has one.
    assert!(sum("response", "/v1/completions") > answer.body.len() as f64);
    assert_eq!(counted[r#"http_response_size_bytes_count{handler="/v1/completions"}"#], 3.0);
    assert_eq!(counted["http_request_duration_highr_seconds_count"], 6.0);
    assert_eq!(counted[r#"http_request_duration_seconds_count{handler="none",method="GET"}"#], 2.0);
}

#[tokio::test]
async fn a_stream_counts_when_it_ends() {
    const SERIES: &str = r#"http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"}"#;
    let pod = start(LONG).await;
    let mut socket = open(&pod, true).await;
    read_tokens(&mut socket, 3).await;
    assert_eq!(counted(&pod).await["http_request_duration_highr_seconds_count"], 0.0);
    drop(socket);
    let counted = counted_when(&pod, SERIES).await;
    assert_eq!(counted[SERIES], 1.0);
    assert_eq!(counted[r#"http_response_size_bytes_sum{handler="/v1/chat/completions"}"#], 0.0);
}

/// If the client has gone, vLLM writes an empty answer, and before 0.33 a `null`.
#[tokio::test]
async fn a_client_that_goes_before_its_answer_counts_as_answered() {
    const SERIES: &str = r#"http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"}"#;
    for (version, n_bytes) in [("0.11", 4.0), ("0.33", 0.0)] {
        let pod = start(&format!("{LONG} --vllm-version {version}")).await;
        let socket = open(&pod, false).await;
        crate::server_lifecycle::wait_for(&pod, |gauges| gauges.running == 1).await;
        drop(socket);
        let counted = counted_when(&pod, SERIES).await;
        assert_eq!(counted[r#"http_response_size_bytes_sum{handler="/v1/chat/completions"}"#], n_bytes);
    }
}

#[tokio::test]
async fn longer_paths_negotiate_filter_and_compress_and_the_path_itself_does_not() {
    let pod = start("").await;
    let accept = ("accept", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5");
    let plain = pod.send(Method::GET, "/metrics", &[accept, ("accept-encoding", "gzip")], "").await;
    assert_eq!(plain.headers["content-type"], "text/plain; version=1.0.0; charset=utf-8");
    assert!(plain.body.contains("# TYPE vllm:num_preemptions_total counter\n"));
    let open = pod.send(Method::GET, "/metrics/", &[accept], "").await;
    assert_eq!(
        open.headers["content-type"],
        "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"
    );
    assert!(open.body.contains("# TYPE vllm:num_preemptions counter\n"));
    assert!(open.body.ends_with("\n# EOF\n"));
    let filter = "?name[]=vllm:num_preemptions_total&name[]=vllm:request_params_n_sum&name[]=nothing";
    let some = pod.get(&format!("/metrics/{filter}")).await;
    assert_eq!(some.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert_eq!(
        some.body,
        "# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.\n\
         # TYPE vllm:num_preemptions_total counter\n\
         vllm:num_preemptions_total{engine=\"0\",model_name=\"/model/qwen\"} 0.0\n\
         # HELP vllm:request_params_n Histogram of the n request parameter.\n\
         # TYPE vllm:request_params_n histogram\n\
         vllm:request_params_n_sum{engine=\"0\",model_name=\"/model/qwen\"} 0.0\n"
    );
    let path = format!("/metrics/{filter}");
    let packed = pod.fetch_bytes(&path, &[("accept-encoding", "deflate, gzip;q=0.9")]).await;
    let mut unpacked = String::new();
    GzDecoder::new(&*packed).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, some.body);
    // The mounted app takes every method.
    assert_eq!(pod.send(Method::POST, &path, &[], "").await.body, some.body);
}

#[tokio::test]
async fn hidden_metrics_come_back_for_the_version_before() {
    let check = async |flags: &str, shown: bool| {
        let page = start(flags).await.get("/metrics").await.body;
        assert_eq!(page.contains("vllm:gpu_cache_usage_perc{"), shown, "{flags}");
        assert_eq!(page.contains("vllm:gpu_prefix_cache_queries_total{"), shown, "{flags}");
    };
    check("--vllm-version 0.11", false).await;
    check("--vllm-version 0.11 --show-hidden-metrics-for-version 0.10", true).await;
    check("--vllm-version 0.11 --show-hidden-metrics-for-version 0.9", false).await;
    check("--show-hidden-metrics-for-version 0.32", false).await;
}

#[tokio::test]
async fn a_pod_may_show_what_it_counts_by_sglangs_names() {
    let pod = start("--model-server-runtime sglang").await;
    pod.post("/v1/completions", r#"{"prompt":"one two three","max_tokens":1}"#).await;
    let page = pod.get("/metrics").await.body;
    let value = |name: &str| -> Option<f64> {
        let line = page.lines().find(|line| line.starts_with(&format!("{name}{{")))?;
        line.rsplit_once(' ')?.1.parse().ok()
    };
    for name in ["num_queue_reqs", "num_running_reqs", "token_usage", "cache_hit_rate"] {
        assert!(value(&format!("sglang:{name}")).is_some(), "{name}: {page}");
    }
    assert_eq!(value("sglang:prompt_tokens_total"), Some(3.0));
    assert_eq!(value("sglang:time_to_first_token_seconds_count"), Some(1.0));
    assert_eq!(value("sglang:num_requests_total"), Some(1.0));
    assert!(!page.contains("vllm:"), "{page}");
    let page = start("").await.get("/metrics").await.body;
    assert!(page.contains("vllm:num_requests_waiting") && !page.contains("sglang:"), "the control");
}

#[tokio::test]
async fn cache_config_info_tells_the_flags_that_were_given() {
    let page = start("--num-gpu-blocks-override 600").await.get("/metrics").await.body;
    for label in
        ["num_gpu_blocks=\"600\"", "num_gpu_blocks_override=\"600\"", "user_specified_block_size=\"False\""]
    {
        assert!(page.contains(label), "{label}");
    }
    let page = start("--block-size 32 --kv-cache-memory-bytes 1G").await.get("/metrics").await.body;
    for label in
        ["kv_cache_memory_bytes=\"1073741824\"", "block_size=\"32\"", "user_specified_block_size=\"True\""]
    {
        assert!(page.contains(label), "{label}");
    }
}
