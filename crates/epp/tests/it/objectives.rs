//! InferenceObjectives, by which a saturated pool sheds, and InferenceModelRewrites, which choose the target model.

use serde_json::Value;

use crate::fixtures::{Answer, Picker, Proxy, Scenario};

/// An object of llm-d's kinds; `group` is the older or the newer one. `meta` is its name, and what else is known of it.
fn object(group: &str, kind: &str, meta: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: {group}/v1alpha2\nkind: {kind}\nmetadata: {{name: {meta}}}\n\
         spec: {{poolRef: {{group: inference.networking.k8s.io, name: vllm-qwen-pool}}, {spec}}}\n"
    )
}

const OLDER: &str = "inference.networking.x-k8s.io";
const NEWER: &str = "llm-d.ai";

async fn complete(proxy: &Proxy, model: &str, headers: &[(&'static str, &'static str)]) -> Answer {
    let body = format!(r#"{{"model":"{model}","prompt":"hello"}}"#);
    let line = [(":method", "POST"), (":path", "/v1/completions"), ("content-type", "application/json")];
    proxy.full_duplex(&[&line, headers].concat(), &[body.as_bytes(), b""]).await
}

async fn criticality(picker: &Picker) -> Value {
    picker.decisions(0).await.pop().expect("a decision")["criticality"].take()
}

fn body(answer: &Answer) -> String {
    String::from_utf8(answer.body.clone()).unwrap()
}

#[tokio::test]
async fn a_saturated_pool_sheds_requests_of_negative_priority() {
    let objects = object(OLDER, "InferenceObjective", "batch", "priority: -1")
        + &object(NEWER, "InferenceObjective", "chat", "priority: 5")
        + &object(NEWER, "InferenceObjective", "unset", "");
    let picker = Scenario::new(1).without_models().objects(&objects).start().await;
    let proxy = picker.proxy().await;
    let [older, newer] = inference_api::keys::OBJECTIVE;
    // A pool with capacity serves them all.
    assert_eq!(complete(&proxy, "m", &[(older, "batch")]).await.refused, None);
    picker.pods[0].set_load(6, 0, 0.0);
    picker.wait_for_scrapes().await;
    for header in [older, newer] {
        let shed = complete(&proxy, "m", &[(header, "batch")]).await;
        assert_eq!((shed.code(), criticality(&picker).await), (429, "Sheddable".into()));
        for served in ["chat", "unset"] {
            assert_eq!(complete(&proxy, "m", &[(header, served)]).await.refused, None, "{served}");
            assert_eq!(criticality(&picker).await, "Critical");
        }
    }
    // Controls: an objective that the pool does not have changes nothing, and neither does a request that names none.
    assert_eq!(complete(&proxy, "m", &[(older, "other")]).await.refused, None);
    assert_eq!(complete(&proxy, "m", &[]).await.refused, None);
    assert_eq!(criticality(&picker).await, Value::Null);
    // A request whose body is not read has an objective, too.
    let mut call = proxy.open().await;
    call.send_headers(None, &[(":method", "GET"), (":path", "/v1/models"), (older, "batch")], None, true)
        .await;
    assert_eq!(call.full_duplex_answer().await.code(), 429);
}

#[tokio::test]
async fn an_objective_overrides_the_model() {
    let objects = object(NEWER, "InferenceObjective", "batch", "priority: -3");
    let picker = Scenario::new(1).objects(&objects).start().await;
    let proxy = picker.proxy().await;
    picker.pods[0].set_load(6, 0, 0.0);
    picker.wait_for_scrapes().await;
    let batch = [(inference_api::keys::OBJECTIVE[0], "batch")];
    assert_eq!(complete(&proxy, "/model/qwen", &batch).await.code(), 429);
    // Control: the model is critical.
    assert_eq!(complete(&proxy, "/model/qwen", &[]).await.refused, None);
}

#[tokio::test]
async fn a_rewrite_chooses_the_target_and_the_answer_has_the_clients_name() {
    let rules = "rules: [{matches: [{model: {type: Exact, value: alias}}, {model: {value: other}}], targets: [{modelRewrite: \
                 target}]}, {matches: [{model: {value: alias}}], targets: [{modelRewrite: late}]}]";
    let objects = object(NEWER, "InferenceModelRewrite", "w", rules);
    let picker = Scenario::new(1).without_models().objects(&objects).start().await;
    let proxy = picker.proxy().await;
    for name in ["alias", "other"] {
        let answer = complete(&proxy, name, &[]).await;
        assert!(body(&answer).contains(r#""model":"target""#), "{}", body(&answer));
    }
    // Control: another model keeps its name.
    assert!(body(&complete(&proxy, "free", &[]).await).contains(r#""model":"free""#));
    let mut call = proxy.open().await;
    call.send_headers(None, &crate::fixtures::post("/v1/completions"), None, false).await;
    call.send_body(br#"{"model":"alias","prompt":"hello"}"#, true).await;
    call.full_duplex_answer().await;
    let response = call
        .respond(&[(":status", "200"), ("content-type", "application/json")], &[br#"{"model":"target"}"#]);
    assert_eq!(response.await, br#"{"model":"alias"}"#);
}

#[tokio::test]
async fn a_generic_rule_takes_what_no_exact_one_takes_and_the_older_object_wins() {
    let rewrite = |name: &str, created: &str, rules: &str| {
        let meta = format!("{name}, creationTimestamp: '{created}'");
        object(OLDER, "InferenceModelRewrite", &meta, &format!("rules: [{rules}]"))
    };
    let generic = |target: &str| format!("{{targets: [{{modelRewrite: {target}}}]}}");
    let exact = |target: &str| {
        format!("{{matches: [{{model: {{value: alias}}}}], targets: [{{modelRewrite: {target}}}]}}")
    };
    let objects = rewrite("a", "2026-01-02T00:00:00Z", &[exact("young"), generic("young")].join(", "))
        + &rewrite("b", "2026-01-01T00:00:00Z", &[generic("base"), exact("old")].join(", "));
    let picker = Scenario::new(1).without_models().objects(&objects).start().await;
    let proxy = picker.proxy().await;
    for (asked, target) in [("alias", "old"), ("unknown", "base")] {
        let answer = complete(&proxy, asked, &[]).await;
        assert!(body(&answer).contains(&format!(r#""model":"{target}""#)), "{}", body(&answer));
    }
}

#[tokio::test]
async fn targets_share_requests_by_weight() {
    let rules = "rules: [{targets: [{modelRewrite: v1, weight: 9}, {modelRewrite: v2, weight: 1}]}]";
    let picker = Scenario::new(1)
        .without_models()
        .objects(&object(NEWER, "InferenceModelRewrite", "w", rules))
        .start()
        .await;
    let proxy = picker.proxy().await;
    let mut n_second = 0;
    for _ in 0..300 {
        n_second += u32::from(body(&complete(&proxy, "m", &[]).await).contains(r#""model":"v2""#));
    }
    // 30 are expected; the standard deviation is 5.2.
    assert!((9..=51).contains(&n_second), "{n_second} of 300");
}

#[tokio::test]
async fn a_rewritten_name_is_looked_up_among_the_models() {
    let rules = "rules: [{targets: [{modelRewrite: /model/qwen}]}]";
    let picker = Scenario::new(1).objects(&object(NEWER, "InferenceModelRewrite", "w", rules)).start().await;
    let answer = complete(&picker.proxy().await, "anything", &[]).await;
    assert!(body(&answer).contains(r#""model":"/model/qwen""#), "{}", body(&answer));
    assert_eq!(criticality(&picker).await, "Critical");
    // Control: without the rewrite the pool does not have the model.
    let picker = Scenario::new(1).start().await;
    assert_eq!(complete(&picker.proxy().await, "anything", &[]).await.code(), 404);
}
