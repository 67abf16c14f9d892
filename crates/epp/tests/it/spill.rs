//! `PREFIX_CACHE` under load, through the whole picker: work counts from the pick to the first token.

use serde_json::Value;

use crate::fixtures::{Call, Picker, Proxy, Scenario, post};

/// Sends a completion that is not answered yet.
async fn ask(proxy: &Proxy, prompt: &str) -> (Call, String) {
    let body = format!(r#"{{"model":"/model/qwen","prompt":"{prompt}"}}"#);
    let mut call = proxy.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(body.as_bytes(), true).await;
    let picked = call.full_duplex_answer().await.picked().to_owned();
    (call, picked)
}

async fn last_decision(picker: &Picker) -> Value {
    picker.decisions(0).await.pop().expect("a decision")
}

#[tokio::test]
async fn a_holder_that_still_computes_a_long_prompt_lets_go() {
    let picker = Scenario::new(2).start().await;
    let proxy = picker.proxy().await;
    // One pod gets everything while the other reports a long queue.
    let (holder, other) = (picker.pods[0].address.to_string(), &picker.pods[1]);
    other.set_load(1000, 0, 0.0);
    picker.wait_for_scrapes().await;
    let prefixes = ["a", "b"].map(|letter| letter.repeat(2048));
    for prefix in &prefixes {
        let (warm, at) = ask(&proxy, prefix).await;
        assert_eq!(at, holder);
        warm.finish_response().await;
    }
    let (mut long, at) = ask(&proxy, &"c".repeat(16384)).await;
    assert_eq!(at, holder);
    other.set_load(0, 0, 0.0);
    picker.wait_for_scrapes().await;

    let (spilled, at) = ask(&proxy, &prefixes[0]).await;
    let decision = last_decision(&picker).await;
    assert_eq!((&decision["reason"], at == holder), (&"spill".into(), false), "{decision}");
    let candidate = |decision: &Value, endpoint: &str| {
        let candidates = decision["candidates"].as_array().unwrap();
        candidates.iter().find(|candidate| candidate["endpoint"] == endpoint).unwrap().clone()
    };
    assert_eq!(candidate(&decision, &holder)["uncached_bytes"], 16384);
    assert!(candidate(&decision, &holder)["work"].as_f64() > candidate(&decision, &at)["work"].as_f64());
    drop(spilled);

    // Its first token shows that the prompt is computed, although the answer goes on.
    long.start_response().await;
    let (_call, at) = ask(&proxy, &prefixes[1]).await;
    let decision = last_decision(&picker).await;
    assert_eq!(candidate(&decision, &holder)["uncached_bytes"], 0);
    assert_eq!((&decision["reason"], at == holder), (&"prefix".into(), true), "{decision}");
}
