//! Picks and their reasons through the whole picker, with pods whose load the test sets.

use envoy_proto::service::ext_proc::v3::processing_response::Response;
use serde_json::Value;

use crate::fixtures::{Picker, Pod, Proxy, Scenario, post, until};

fn completion(prompt: &str) -> String {
    format!(r#"{{"model":"/model/qwen","prompt":"{prompt}"}}"#)
}

async fn complete(proxy: &Proxy, prompt: &str) -> String {
    let body = completion(prompt);
    let answer = proxy.full_duplex(&post("/v1/completions"), &[body.as_bytes(), b""]).await;
    answer.picked().to_owned()
}

async fn last_decision(picker: &Picker) -> Value {
    picker.decisions(0).await.pop().expect("a decision")
}

#[tokio::test]
async fn exactly_half_is_not_enough() {
    let picker = Scenario::new(3).start().await;
    let proxy = picker.proxy().await;
    complete(&proxy, &"a".repeat(64)).await;
    complete(&proxy, &("a".repeat(64) + &"b".repeat(64))).await;
    let decision = last_decision(&picker).await;
    assert_eq!(decision["total_bytes"], 128);
    assert_eq!(decision["reason"], "load");
    assert_eq!(picker.log.prefix_lines(), Vec::<String>::new());
    // Control: one block more than half.
    let holder = complete(&proxy, &"c".repeat(72)).await;
    assert_eq!(complete(&proxy, &("c".repeat(72) + &"d".repeat(56))).await, holder);
    assert_eq!(last_decision(&picker).await["reason"], "prefix");
    assert_eq!(picker.log.prefix_lines().len(), 1);
}

#[tokio::test]
async fn a_few_common_words_do_not_bind_to_a_pod() {
    let picker = Scenario::new(3).start().await;
    let proxy = picker.proxy().await;
    for n in 0..6 {
        complete(&proxy, &format!("hello, number {n}")).await;
    }
    assert_eq!(picker.log.prefix_lines(), Vec::<String>::new());
    // Control: prompts whose common words fill a block of the engine's cache.
    for n in 0..6 {
        complete(&proxy, &format!("{} number {n}", "hello, ".repeat(10))).await;
    }
    assert_eq!(picker.log.prefix_lines().len(), 5);
}

#[tokio::test]
async fn load_decides_without_a_prefix() {
    let picker = Scenario::new(3).strategy("DEFAULT").start().await;
    let proxy = picker.proxy().await;
    for idle_idx in 0..3 {
        for (pod_idx, pod) in picker.pods.iter().enumerate() {
            pod.set_load(if pod_idx == idle_idx { 0 } else { 3 }, 2, 0.5);
        }
        picker.wait_for_scrapes().await;
        assert_eq!(complete(&proxy, "hello").await, picker.pods[idle_idx].address.to_string());
    }
    // With equal queues, the pod with the emptiest cache gets the request.
    for (pod, kv_usage) in picker.pods.iter().zip([0.5, 0.2, 0.9]) {
        pod.set_load(0, 2, kv_usage);
    }
    picker.wait_for_scrapes().await;
    assert_eq!(complete(&proxy, "hello").await, picker.pods[1].address.to_string());
    let decision = last_decision(&picker).await;
    assert_eq!((&decision["strategy"], &decision["threshold"]), (&"DEFAULT".into(), &Value::Null));
    assert_eq!(decision["candidates"][2]["kv_usage"], 0.9);
}

#[tokio::test]
async fn a_pod_that_closes_its_connections_is_read_all_the_same() {
    let picker = Scenario::new(2).strategy("DEFAULT").start().await;
    let proxy = picker.proxy().await;
    picker.pods.iter().for_each(Pod::close_connections);
    for idle_idx in [0, 1] {
        picker.pods[idle_idx].set_load(0, 0, 0.0);
        picker.pods[1 - idle_idx].set_load(5, 0, 0.0);
        picker.wait_for_scrapes().await;
        assert_eq!(complete(&proxy, "hello").await, picker.pods[idle_idx].address.to_string());
    }
}

#[tokio::test]
async fn picks_count_before_any_metric_moves() {
    let picker = Scenario::new(4).strategy("DEFAULT").start().await;
    let proxy = picker.proxy().await;
    let mut open = Vec::new();
    let mut picked = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..12 {
        let mut call = proxy.open().await;
        call.send_headers(None, &[(":method", "GET"), (":path", "/v1/models")], None, true).await;
        let (_, metadata) = call.next_with_metadata().await;
        let text = format!("{metadata:?}");
        let pod = picker.pods.iter().find(|pod| text.contains(&pod.address.to_string())).unwrap();
        *picked.entry(pod.name.clone()).or_default() += 1;
        open.push(call);
    }
    assert_eq!(picked.into_values().collect::<Vec<_>>(), [3, 3, 3, 3]);
    let in_flight = async || {
        let metrics = picker.metrics().await;
        let values = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("epp_pod_in_flight_requests{")?.split_once("} "));
        values.map(|(_, value)| value.parse::<u32>().unwrap()).sum::<u32>()
    };
    assert_eq!(in_flight().await, 12);
    // Streams that break off are not in flight any more.
    drop(open);
    until(async || in_flight().await == 0).await;
}

#[tokio::test]
async fn a_pod_that_leaves_takes_its_prefixes_along() {
    let mut picker = Scenario::new(3).start().await;
    let proxy = picker.proxy().await;
    let prompt = "x".repeat(200);
    let holder = complete(&proxy, &prompt).await;
    picker.keep_pods(|pod| pod.address.to_string() != holder).await;
    let next = complete(&proxy, &prompt).await;
    assert_ne!(next, holder);
    assert_eq!(last_decision(&picker).await["reason"], "load");
    // Control: the pod that got the prompt keeps it.
    assert_eq!(complete(&proxy, &prompt).await, next);
    assert_eq!(last_decision(&picker).await["reason"], "prefix");
}

#[tokio::test]
async fn a_pod_that_dies_is_not_picked_and_returns_empty() {
    let mut picker = Scenario::new(2).start().await;
    let proxy = picker.proxy().await;
    let prompt = "x".repeat(200);
    let holder = complete(&proxy, &prompt).await;
    // The endpoint stays in the file, so only the scrape can notice.
    let dead = picker.pods.iter().position(|pod| pod.address.to_string() == holder).unwrap();
    drop(picker.pods.remove(dead));
    until(async || complete(&proxy, "short").await != holder && last_candidates(&picker).await == 1).await;
    assert_ne!(complete(&proxy, &prompt).await, holder);
    assert_eq!(last_decision(&picker).await["reason"], "only_endpoint");
}

async fn last_candidates(picker: &Picker) -> usize {
    last_decision(picker).await["candidates"].as_array().unwrap().len()
}

#[tokio::test]
async fn models_are_known_renamed_or_refused() {
    let targets = "{name: adapter-a, weight: 1}, {name: adapter-b, weight: 3}";
    let picker = Scenario::new(1).targets(targets).start().await;
    let proxy = picker.proxy().await;
    let body = " {\"n\":9007199254740993,\"n\":1, \"x\":\"<&>\\u00e9\",\"prompt\":\"p\",\"model\" : \"/model/qwen\" }\n";
    let mut drawn = [0_usize; 2];
    for _ in 0..200 {
        let headers = [post("/v1/completions").as_slice(), &[("content-length", "80")]].concat();
        let answer = proxy.full_duplex(&headers, &[body.as_bytes(), b""]).await;
        let target = ["adapter-a", "adapter-b"]
            .into_iter()
            .position(|target| answer.body == body.replace("/model/qwen", target).into_bytes());
        drawn[target.expect("only the model's bytes change")] += 1;
        assert_eq!(answer.content_length.unwrap(), answer.body.len().to_string());
    }
    assert!((20..90).contains(&drawn[0]), "a quarter is 50, drew {drawn:?}");
    let unknown = proxy.chat(&body.replace("/model/qwen", "other").replace("prompt", "messages")).await;
    let (code, body, details) = unknown.refused.expect("a refusal");
    assert_eq!((code, details.as_str()), (404, "epp_model_not_found"));
    let expected = serde_json::json!({"error": {"message": "The model `other` does not exist.",
        "type": "NotFoundError", "param": "model", "code": 404}});
    assert_eq!(body, expected);
    assert_eq!(last_decision(&picker).await["outcome"], "model_not_found");
}

#[tokio::test]
async fn a_pool_without_models_takes_any() {
    let picker = Scenario::new(1).without_models().start().await;
    let answer =
        picker.proxy().await.chat(r#"{"model":"any","messages":[{"role":"user","content":"hi"}]}"#).await;
    assert_eq!(answer.picked(), picker.pods[0].address.to_string());
}

#[tokio::test]
async fn no_endpoints_is_503() {
    let mut picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    assert_eq!(complete(&proxy, "p").await, picker.pods[0].address.to_string());
    picker.keep_pods(|_| false).await;
    let answer = proxy.full_duplex(&post("/v1/completions"), &[completion("p").as_bytes(), b""]).await;
    assert_eq!(answer.code(), 503);
    assert_eq!(last_decision(&picker).await["outcome"], "no_endpoints");
}

#[tokio::test]
async fn the_proxys_report_of_who_served_is_counted() {
    let picker = Scenario::new(2).start().await;
    let proxy = picker.proxy().await;
    let counted = async |count: u32| {
        let line = format!("epp_served_elsewhere_total {count}");
        until(async || picker.metrics().await.lines().any(|seen| seen == line)).await;
    };
    let serve = async |served: &dyn Fn(&str) -> String| {
        let mut call = proxy.open().await;
        call.send_headers(None, &post("/v1/completions"), None, false).await;
        call.send_body(completion("p").as_bytes(), true).await;
        let answer = call.full_duplex_answer().await;
        call.send_served(&served(answer.picked())).await;
        assert!(matches!(call.next().await, Response::ResponseHeaders(_)));
    };
    serve(&|picked| picked.to_owned()).await;
    counted(0).await;
    serve(&|_| "10.9.9.9:1".to_owned()).await;
    counted(1).await;
}

#[tokio::test]
async fn fallbacks_follow_the_pick_in_order() {
    let picker = Scenario::new(3).strategy("DEFAULT").endpoints_per_pick(2).start().await;
    let proxy = picker.proxy().await;
    for (pod, waiting) in picker.pods.iter().zip([5, 0, 3]) {
        pod.set_load(waiting, 0, 0.0);
    }
    picker.wait_for_scrapes().await;
    let [second, first] = [2, 1].map(|pod_idx: usize| picker.pods[pod_idx].address.to_string());
    assert_eq!(complete(&proxy, "p").await, format!("{first},{second}"));
    let decision = last_decision(&picker).await;
    assert_eq!((&decision["endpoint"], &decision["fallbacks"][0]), (&first.into(), &second.into()));
    assert_eq!(decision["fallbacks"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn who_served_instead_has_the_prefix_and_the_load() {
    let picker = Scenario::new(2).endpoints_per_pick(2).start().await;
    let proxy = picker.proxy().await;
    let prompt = "x".repeat(200);
    let mut call = proxy.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(completion(&prompt).as_bytes(), true).await;
    let answer = call.full_duplex_answer().await;
    let (picked, fallback) = answer.picked().split_once(',').unwrap();
    call.send_served(fallback).await;
    assert!(matches!(call.next().await, Response::ResponseHeaders(_)));
    assert_eq!(last_decision(&picker).await["served"], fallback);
    let metrics = picker.metrics().await;
    let in_flight = |address: &str| {
        let pod = picker.pods.iter().find(|pod| pod.address.to_string() == address).unwrap();
        let key = format!("model_server_pod=\"{}\"}} ", pod.name);
        let line = metrics.lines().find(|line| line.starts_with("epp_pod_in_flight") && line.contains(&key));
        line.unwrap().rsplit_once(' ').unwrap().1.to_owned()
    };
    assert_eq!((in_flight(picked).as_str(), in_flight(fallback).as_str()), ("0", "1"));
    drop(call);
    // Both pods hold the prefix now, as far as the picker knows. If the picked one is busy, the other gets it.
    let busy = picker.pods.iter().find(|pod| pod.address.to_string() == picked).unwrap();
    busy.set_load(9, 0, 0.0);
    picker.wait_for_scrapes().await;
    assert_eq!(complete(&proxy, &prompt).await.split(',').next(), Some(fallback));
    assert_eq!(last_decision(&picker).await["reason"], "prefix");
}

#[tokio::test]
async fn the_subset_hint_is_kept_to() {
    let picker = Scenario::new(3).start().await;
    let proxy = picker.proxy().await;
    let addresses: Vec<String> = picker.pods.iter().map(|pod| pod.address.to_string()).collect();
    let ask = async |subset: &[&str]| {
        let mut call = proxy.open().await;
        call.send_headers(None, &post("/v1/completions"), Some(subset), false).await;
        call.send_body(completion("p").as_bytes(), true).await;
        call.full_duplex_answer().await
    };
    for address in &addresses {
        assert_eq!(ask(&[address, "10.9.9.9:1"]).await.picked(), address);
    }
    let any_port = ask(&["127.0.0.1"]).await;
    assert!(addresses.iter().any(|address| address == any_port.picked()));
    assert_eq!(ask(&["10.9.9.9:1"]).await.code(), 503);
    assert_eq!(ask(&[]).await.code(), 503);
    assert_eq!(last_decision(&picker).await["outcome"], "subset_empty");
}

#[tokio::test]
async fn a_forged_destination_counts_for_nothing() {
    let picker = Scenario::new(2).strategy("DEFAULT").start().await;
    let proxy = picker.proxy().await;
    picker.pods[0].set_load(9, 9, 0.9);
    picker.wait_for_scrapes().await;
    let forged = picker.pods[0].address.to_string();
    let headers =
        [post("/v1/completions").as_slice(), &[("x-gateway-destination-endpoint", &forged)]].concat();
    let answer = proxy.full_duplex(&headers, &[completion("p").as_bytes(), b""]).await;
    assert_eq!(answer.picked(), picker.pods[1].address.to_string());
}
