//! The pool that `/debug/cache` shows, and what a prompt would hit according to `/debug/lookup`.

use crate::engine_fixtures;
use crate::server_fixtures::{TestPod, start};
use crate::server_lifecycle::{LONG, open, read_tokens};
use crate::tutorial::{ROUND1, round2_bash};
use http::StatusCode;
use serde_json::{Value, json};

async fn cache(pod: &TestPod, query: &str) -> Value {
    pod.get(&format!("/debug/cache{query}")).await.json()
}

/// Returns cached tokens and blocks, prompt tokens and blocks.
async fn look_up(pod: &TestPod, body: impl Into<String>) -> [u64; 4] {
    let answer = pod.post("/debug/lookup", body.into()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let answer = answer.json();
    let names = ["cached_tokens", "cached_blocks", "prompt_tokens", "prompt_blocks"];
    names.map(|name| answer[name].as_u64().unwrap())
}

fn indexes(value: &Value) -> Vec<u64> {
    value.as_array().unwrap().iter().map(|idx| idx.as_u64().unwrap()).collect()
}

/// Round 1 computes 127 + 24 - 1 = 150 tokens: nine full blocks and six tokens in the tenth.
#[tokio::test]
async fn a_finished_request_leaves_its_full_blocks_tail_first() {
    let pod = start("--pod-name qwen-0 --num-gpu-blocks-override 1025").await;
    let fresh = cache(&pod, "").await;
    assert_eq!(fresh["pool"]["cached"], 0);
    assert_eq!(fresh["blocks"], json!([]));
    assert_eq!(indexes(&fresh["free_queue"])[..3], [1, 2, 3]);
    pod.post("/v1/chat/completions", ROUND1).await;
    let seen = cache(&pod, "?limit=2000").await;
    assert_eq!((&seen["pod"], &seen["block_size"]), (&json!("qwen-0"), &json!(16)));
    assert_eq!(
        seen["pool"],
        json!({"usable": 1024, "held": 0, "free": 1024, "cached": 9, "cached_and_free": 9, "cached_contents": 9, "usage": 0.0})
    );
    assert_eq!(
        seen["blocks"][0],
        json!({
            "block": 1,
            "hash": "c5dab0182bd3e7357b0407b3a0542f9cb345a69acaee483e07e82ca577914eaf",
            "event_hash": 569_754_442_049_605_295_u64,
            "tokens": 16,
            "ref_count": 0,
            "held_by": [],
        })
    );
    assert_eq!(seen["blocks"].as_array().unwrap().len(), 9);
    let free_queue = indexes(&seen["free_queue"]);
    assert_eq!(free_queue[..3], [10, 11, 12], "the unhashed tail goes first, then what was never used");
    assert_eq!(free_queue[1015..], [9, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(seen["counters"]["prefix_cache_queries"], 127);
}

#[tokio::test]
async fn a_running_request_is_seen_with_its_blocks() {
    let pod = start(LONG).await;
    let mut socket = open(&pod, true).await;
    read_tokens(&mut socket, 3).await;
    let seen = cache(&pod, "").await;
    let live = &seen["live"][0];
    assert_eq!((&live["state"], &live["prompt_tokens"]), (&json!("running"), &json!(30)));
    let id = live["request_id"].as_str().unwrap();
    assert_eq!(id.len(), 32, "{id}");
    let n_computed = live["computed_tokens"].as_u64().unwrap();
    assert!(n_computed >= 33, "{n_computed}");
    let held = indexes(&live["blocks"]);
    assert_eq!(held.len() as u64, n_computed.div_ceil(16));
    assert_eq!(seen["pool"]["held"], held.len());
    let blocks = seen["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), held.len());
    assert_eq!(blocks.iter().map(|block| block["tokens"].as_u64().unwrap()).sum::<u64>(), n_computed);
    for block in blocks {
        assert_eq!((&block["ref_count"], &block["held_by"]), (&json!(1), &json!([id])));
        assert_eq!(block["hash"].is_null(), block["tokens"] != 16, "full blocks are in the cache: {block}");
    }
    let free_queue = indexes(&seen["free_queue"]);
    assert!(held.iter().all(|block| !free_queue.contains(block)));
}

#[tokio::test]
async fn lists_are_bounded_and_may_be_left_out() {
    let pod = start("--num-gpu-blocks-override 1025").await;
    pod.post("/v1/chat/completions", ROUND1).await;
    let limited = cache(&pod, "?limit=4").await;
    assert_eq!(limited["left_off"], json!({"live": 0, "blocks": 5, "free_queue": 1020}));
    assert_eq!(limited["blocks"].as_array().unwrap().len(), 4);
    assert_eq!(indexes(&limited["free_queue"]), [10, 11, 12, 13]);
    let summary = cache(&pod, "?summary=true").await;
    assert_eq!(summary["pool"], limited["pool"]);
    let names: Vec<_> = summary.as_object().unwrap().keys().collect();
    assert_eq!(names, ["pod", "block_size", "enable_prefix_caching", "pool", "counters", "requests"]);
    for (query, text) in [("?limit=x", "limit"), ("?summary=2", "summary"), ("?lmit=3", "lmit")] {
        let answer = pod.get(&format!("/debug/cache{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(text), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_lookup_says_what_the_request_then_hits() {
    let pod = start("").await;
    assert_eq!(look_up(&pod, ROUND1).await, [0, 0, 127, 7]);
    pod.post("/v1/chat/completions", ROUND1).await;
    assert_eq!(look_up(&pod, ROUND1).await, [112, 7, 127, 7]);
    assert_eq!(look_up(&pod, round2_bash()).await, [128, 8, 228, 14]);
    let answer = pod.post("/v1/chat/completions", round2_bash()).await;
    let header = "cached_tokens=128, cached_blocks=8, prompt_tokens=228, prompt_blocks=14";
    assert_eq!(answer.headers["x-mock-vllm-cache"].to_str().unwrap(), header);
    assert_eq!(look_up(&pod, round2_bash()).await, [224, 14, 228, 14]);
    let other = start("").await;
    assert_eq!(look_up(&other, round2_bash()).await, [0, 0, 228, 14], "another pod has another cache");
    let uncached = start("--no-enable-prefix-caching").await;
    uncached.post("/v1/chat/completions", ROUND1).await;
    assert_eq!(look_up(&uncached, ROUND1).await, [0, 0, 127, 7]);
}

#[tokio::test]
async fn a_lookup_takes_every_form_of_a_prompt() {
    let pod = start("").await;
    pod.post("/v1/chat/completions", ROUND1).await;
    let ids = serde_json::to_string(&engine_fixtures::ROUND1[..]).unwrap();
    assert_eq!(look_up(&pod, format!(r#"{{"prompt_token_ids":{ids}}}"#)).await, [112, 7, 127, 7]);
    assert_eq!(look_up(&pod, format!(r#"{{"prompt":{ids}}}"#)).await, [112, 7, 127, 7]);
    assert_eq!(
        look_up(&pod, format!(r#"{{"prompt_token_ids":{ids},"cache_salt":"a"}}"#)).await,
        [0, 0, 127, 7]
    );
    assert_eq!(look_up(&pod, r#"{"prompt":"<|im_start|>system\nYou"}"#).await, [0, 0, 4, 0]);
    let check_refused = async |body: &str, status: u16, text: &str| {
        let answer = pod.post("/debug/lookup", body.to_owned()).await;
        assert_eq!(answer.status.as_u16(), status);
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(text), "{}", answer.body);
    };
    check_refused("{}", 400, "Either prompt or prompt_embeds must be provided").await;
    check_refused(r#"{"prompt_token_ids":["x"]}"#, 400, "valid list of token ids").await;
    check_refused(r#"{"prompt_token_ids":[999999]}"#, 400, "out of vocabulary").await;
    check_refused(r#"{"prompt":"x","model":"nope"}"#, 404, "does not exist").await;
}

#[tokio::test]
async fn looking_changes_nothing() {
    let pod = start("").await;
    pod.post("/v1/chat/completions", ROUND1).await;
    let before = cache(&pod, "?limit=10000").await;
    look_up(&pod, round2_bash()).await;
    assert_eq!(cache(&pod, "?limit=10000").await, before);
    assert_eq!(pod.metric("vllm:prefix_cache_queries_total").await, 127.0);
    pod.post("/v1/chat/completions", round2_bash()).await;
    assert_ne!(cache(&pod, "?limit=10000").await, before, "a request does change it");
}
