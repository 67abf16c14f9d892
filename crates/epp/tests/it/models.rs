//! InferenceModels: criticality and shedding, adapters, conflicts, and pools that share a picker.

use serde_json::Value;
use tonic::Code;

use crate::fixtures::{Picker, Proxy, Scenario, get, post};

/// A model of the tutorial's pool.
fn model(object: &str, name: &str, criticality: &str) -> String {
    format!(
        "---\napiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata: {{name: {object}}}\n\
         spec: {{modelName: {name}, {criticality}poolRef: {{name: vllm-qwen-pool}}}}\n"
    )
}

async fn complete(proxy: &Proxy, model: &str) -> crate::fixtures::Answer {
    let body = format!(r#"{{"model":"{model}","prompt":"hello"}}"#);
    proxy.full_duplex(&post("/v1/completions"), &[body.as_bytes(), b""]).await
}

async fn last_decision(picker: &Picker) -> Value {
    picker.decisions(0).await.pop().expect("a decision")
}

#[tokio::test]
async fn a_saturated_pool_serves_what_is_critical() {
    let objects = model("standard", "standard", "")
        + &model("named", "named", "criticality: Standard, ")
        + &model("sheddable", "sheddable", "criticality: Sheddable, ");
    let picker = Scenario::new(2).objects(&objects).start().await;
    let proxy = picker.proxy().await;
    let names = ["/model/qwen", "standard", "named", "sheddable"];
    // One pod with capacity is enough.
    picker.pods[0].set_load(6, 0, 0.0);
    picker.wait_for_scrapes().await;
    for name in names {
        assert_eq!(complete(&proxy, name).await.picked(), picker.pods[1].address.to_string());
    }
    picker.pods[1].set_load(0, 0, 0.81);
    picker.wait_for_scrapes().await;
    assert_eq!(complete(&proxy, "/model/qwen").await.refused, None);
    for (name, criticality) in [("standard", "Standard"), ("named", "Standard"), ("sheddable", "Sheddable")] {
        let answer = complete(&proxy, name).await;
        assert_eq!(answer.retry_after.as_deref(), Some("1"));
        let (code, body, details) = answer.refused.expect("a refusal");
        assert_eq!((code, details.as_str()), (429, "epp_saturated"));
        let message = format!(
            "the pool default/vllm-qwen-pool is saturated, and {criticality} requests wait for capacity: try again later"
        );
        let expected = serde_json::json!({"error": {"message": message,
            "type": "TooManyRequestsError", "param": null, "code": 429}});
        assert_eq!(body, expected);
        assert_eq!(last_decision(&picker).await["criticality"], criticality);
    }
    // Requests without a model are never shed.
    let get = [(":method", "GET"), (":path", "/v1/models")];
    let mut call = proxy.open().await;
    call.send_headers(None, &get, None, true).await;
    assert!(call.next_with_metadata().await.1.is_some());
}

#[tokio::test]
async fn a_pool_without_models_sheds_nothing() {
    let picker = Scenario::new(1).without_models().start().await;
    picker.pods[0].set_load(50, 0, 1.0);
    picker.wait_for_scrapes().await;
    assert_eq!(complete(&picker.proxy().await, "any").await.refused, None);
}

#[tokio::test]
async fn capacity_is_asked_of_the_subset() {
    let picker = Scenario::new(2).objects(&model("s", "sheddable", "criticality: Sheddable, ")).start().await;
    let proxy = picker.proxy().await;
    picker.pods[0].set_load(6, 0, 0.0);
    picker.wait_for_scrapes().await;
    let [full, free] = [0, 1].map(|pod_idx: usize| picker.pods[pod_idx].address.to_string());
    for (subset, code) in [(&full, Some(429)), (&free, None)] {
        let mut call = proxy.open().await;
        call.send_headers(None, &post("/v1/completions"), Some(&[subset]), false).await;
        call.send_body(br#"{"model":"sheddable","prompt":"p"}"#, true).await;
        assert_eq!(call.full_duplex_answer().await.refused.map(|(code, ..)| code), code);
    }
}

#[tokio::test]
async fn a_pod_with_the_adapter_goes_before_an_idle_one() {
    let picker = Scenario::new(3).strategy("DEFAULT").objects(&model("a", "adapter", "")).start().await;
    let proxy = picker.proxy().await;
    for (pod, (waiting, running_adapters)) in picker.pods.iter().zip([(0, "x,y"), (4, "x,adapter"), (1, "y")])
    {
        pod.set_load(waiting, 0, 0.1);
        pod.set_adapters(running_adapters, "");
    }
    picker.wait_for_scrapes().await;
    assert_eq!(complete(&proxy, "adapter").await.picked(), picker.pods[1].address.to_string());
    assert_eq!(last_decision(&picker).await["reason"], "lora");
    // Loaded on no pod: the pod with room gets it.
    picker.pods[1].set_load(4, 0, 0.1);
    picker.pods[1].set_adapters("x", "y");
    picker.wait_for_scrapes().await;
    assert_eq!(complete(&proxy, "adapter").await.picked(), picker.pods[2].address.to_string());
    // An adapter that requests wait for counts as loaded.
    picker.pods[1].set_load(4, 0, 0.1);
    picker.pods[1].set_adapters("x", "adapter");
    picker.wait_for_scrapes().await;
    assert_eq!(complete(&proxy, "adapter").await.picked(), picker.pods[1].address.to_string());
    // The base model is not an adapter.
    assert_eq!(complete(&proxy, "/model/qwen").await.picked(), picker.pods[0].address.to_string());
    assert_eq!(last_decision(&picker).await["reason"], "load");
}

#[tokio::test]
async fn conflicts_and_waiting_models_are_reported() {
    let created = |object: &str, at: &str, pool: &str| {
        model(object, "twice", "")
            .replace("metadata: {", &format!("metadata: {{creationTimestamp: '{at}', "))
            .replace("vllm-qwen-pool", pool)
    };
    let objects = created("younger", "2025-05-02T00:00:00Z", "vllm-qwen-pool")
        + &created("older", "2025-05-01T00:00:00Z", "vllm-qwen-pool")
        + &created("lost", "2025-05-01T00:00:00Z", "nowhere");
    let picker = Scenario::new(1).objects(&objects).start().await;
    let status: Value = serde_json::from_str(&get(picker.ports.metrics, "/debug/pools").await).unwrap();
    let condition = |object: &str| {
        let models = status["models"].as_array().unwrap();
        let model = models.iter().find(|model| model["object"] == format!("default/{object}")).unwrap();
        let condition = &model["conditions"][0];
        assert_eq!(condition["type"], "Accepted");
        format!("{} {}", condition["status"].as_str().unwrap(), condition["reason"].as_str().unwrap())
    };
    assert_eq!(condition("older"), "True Accepted");
    assert_eq!(condition("younger"), "False ModelNameInUse");
    assert_eq!(condition("lost"), "Unknown Pending");
    let served = &status["pools"][0]["models"][1];
    assert_eq!((&served["model_name"], &served["object"]), (&"twice".into(), &"default/older".into()));
    assert!(
        picker
            .log
            .lines()
            .iter()
            .any(|line| line.contains("Model is not served") && line.contains("default/younger"))
    );
}

/// A v1 pool that selects the tutorial's pods.
const V1_POOL: &str = "---\napiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {name: v1}\n\
    spec:\n  selector: {matchLabels: {app: qwen}}\n  targetPorts: [{number: 8000}]\n  endpointPickerRef: {name: e}\n";

#[tokio::test]
async fn pools_of_both_versions_share_a_picker() {
    let picker = Scenario::new(1).objects(V1_POOL).start().await;
    let proxy = picker.proxy().await;
    let pool = async |proxy: &Proxy, model: &str| {
        let answer = complete(proxy, model).await;
        (answer.refused.map(|(code, ..)| code), last_decision(&picker).await["pool"].clone())
    };
    // The model decides between them: the tutorial's pool has it, the other one takes any.
    assert_eq!(pool(&proxy, "/model/qwen").await, (None, "default/vllm-qwen-pool".into()));
    assert_eq!(pool(&proxy, "other").await, (None, "default/v1".into()));
    // A pool that the proxy names comes first.
    let v1 = proxy.for_pool("default/v1");
    assert_eq!(pool(&v1, "/model/qwen").await, (None, "default/v1".into()));
    let v1alpha2 = proxy.for_pool("default/vllm-qwen-pool");
    assert_eq!(pool(&v1alpha2, "other").await.0, Some(404));
    assert_eq!(pool(&proxy.for_pool("default/none"), "other").await, (Some(503), Value::Null));
    assert_eq!(
        proxy.for_pool("none").try_open().await.err().map(|status| status.code()),
        Some(Code::InvalidArgument)
    );
}

/// Paths of the engine whose bodies are JSON with a model.
const PATHS: [&str; 22] = [
    "/v1/chat/completions",
    "/v1/chat/completions/",
    "/v1/chat/completions?beta=true",
    "/v1/completions/?x=1",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/v1/score",
    "/score",
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/pooling",
    "/classify",
    "/tokenize",
    "/invocations",
    "/invocations/",
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/inference/v1/generate",
    "/some/new/api",
];

/// A body that is valid for each of them.
fn body_for_all(model: &str) -> String {
    format!(
        r#"{{"messages":[{{"role":"user","content":"hi"}}],"prompt":"p","input":"i","token_ids":[1],"query":"q",
        "documents":["d"],"model":{model},"max_tokens":3}}"#
    )
}

#[tokio::test]
async fn a_model_is_mapped_wherever_it_is_named() {
    let alias = model("alias", "team/chat:latest", "criticality: Sheddable, ")
        .replace("}}\n", "}, targetModels: [{name: /model/qwen, weight: 1}]}\n");
    let picker = Scenario::new(1).objects(&alias).start().await;
    let proxy = picker.proxy().await;
    let (named, mapped) = (body_for_all("\"team/chat:latest\""), body_for_all("\"/model/qwen\""));
    for path in PATHS {
        let answer = proxy.full_duplex(&post(path), &[named.as_bytes(), b""]).await;
        assert_eq!(answer.body, mapped.as_bytes(), "{path}");
        let decision = last_decision(&picker).await;
        assert_eq!(decision["criticality"], "Sheddable", "{path}");
        let unknown = body_for_all("\"unknown\"");
        let answer = proxy.full_duplex(&post(path), &[unknown.as_bytes(), b""]).await;
        assert_eq!(answer.code(), 404, "{path}");
    }
    // Controls: the picker does not look for a model in a body that is not JSON, or for another method.
    for headers in [
        [(":method", "POST"), (":path", "/some/new/api"), ("content-type", "text/plain")],
        [(":method", "PUT"), (":path", "/v1/chat/completions"), ("content-type", "application/json")],
        [(":method", "POST"), (":path", "/v1/audio/transcriptions"), ("content-type", "multipart/form-data")],
    ] {
        let answer = proxy.full_duplex(&headers, &[named.as_bytes(), b""]).await;
        assert_eq!(answer.body, named.as_bytes());
    }
    // Without capacity, requests are shed on all of these paths.
    picker.pods[0].set_load(6, 0, 0.0);
    picker.wait_for_scrapes().await;
    for path in PATHS {
        assert_eq!(proxy.full_duplex(&post(path), &[named.as_bytes(), b""]).await.code(), 429, "{path}");
    }
}

#[tokio::test]
async fn a_prompt_that_is_not_computed_is_not_believed_to_be_cached() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let body = format!(r#"{{"model":"/model/qwen","prompt":"{}"}}"#, "p".repeat(500));
    let matched = async || {
        let answer = proxy.full_duplex(&post("/v1/completions"), &[body.as_bytes(), b""]).await;
        assert_eq!(answer.refused, None);
        last_decision(&picker).await["matched_bytes"].clone()
    };
    for path in ["/tokenize", "/v1/completions/render", "/v1/messages/count_tokens", "/some/new/api"] {
        let answer = proxy.full_duplex(&post(path), &[body.as_bytes(), b""]).await;
        assert_eq!(answer.refused, None);
    }
    assert_eq!(matched().await, 0);
    // Control: after it is computed, it matches.
    assert_eq!(matched().await, 496);
}

#[tokio::test]
async fn what_engines_can_do_without_is_theirs_to_ask_for() {
    let bodies = [
        r#"{"messages":[{"role":"user","content":"hi"}]}"#.to_owned(),
        body_for_all("null"),
        body_for_all("\"\""),
        body_for_all("7"),
        r#"{"model":"/model/qwen","prompt":null,"prompt_embeds":"AAAA"}"#.to_owned(),
        r#"{"model":"/model/qwen"}"#.to_owned(),
        "\u{feff}{\"model\":\"/model/qwen\",\"prompt\":\"p\"}".to_owned(),
    ];
    let without = Scenario::new(1).without_models().start().await;
    let with = Scenario::new(1).start().await;
    let (without, with) = (without.proxy().await, with.proxy().await);
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/score"] {
        for body in &bodies {
            let chunks: [&[u8]; 2] = [body.as_bytes(), b""];
            let answer = without.full_duplex(&post(path), &chunks).await;
            assert_eq!((answer.refused, answer.body.as_slice()), (None, body.as_bytes()), "{path} {body}");
            // Control: a pool that maps models needs the name.
            let answer = with.full_duplex(&post(path), &chunks).await;
            let names_it = body.contains("/model/qwen");
            assert_eq!(answer.refused.map(|(code, ..)| code), (!names_it).then_some(400), "{path} {body}");
        }
    }
    // If the path does not imply a model, none is required.
    for path in ["/tokenize", "/v1/load_lora_adapter", "/invocations", "/some/new/api"] {
        for body in [r#"{"lora_name":"l"}"#, "[1]", "not JSON", "{\"model\"", ""] {
            let answer = with.full_duplex(&post(path), &[body.as_bytes(), b""]).await;
            assert_eq!((answer.refused, answer.body.as_slice()), (None, body.as_bytes()), "{path} {body}");
        }
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused_by_its_encoding() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let send = async |path: &str, content_type: &str, encoding: &str| {
        let headers = [
            (":method", "POST"),
            (":path", path),
            ("content-type", content_type),
            ("content-encoding", encoding),
        ];
        let body = body_for_all("\"/model/qwen\"");
        proxy.full_duplex(&headers, &[body.as_bytes(), b""]).await
    };
    for encoding in ["gzip", "zstd", "br", "deflate, gzip"] {
        for path in ["/v1/chat/completions", "/tokenize"] {
            let (code, body, details) = send(path, "application/json", encoding).await.refused.unwrap();
            assert_eq!((code, details.as_str()), (415, "epp_body_encoded"));
            let message = body["error"]["message"].as_str().unwrap();
            assert!(message.contains(&format!("`{encoding}`")), "{message}");
        }
    }
    // Controls: no encoding, and a body that is not read.
    assert_eq!(send("/v1/chat/completions", "application/json", "identity").await.refused, None);
    let headers = [
        (":method", "POST"),
        (":path", "/v1/audio/transcriptions"),
        ("content-type", "multipart/form-data"),
        ("content-encoding", "gzip"),
    ];
    assert_eq!(proxy.full_duplex(&headers, &[b"x", b""]).await.refused, None);
}
