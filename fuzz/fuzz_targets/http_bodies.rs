//! Fuzzes a whole pod with any body on any endpoint that takes one: no answer is a 5xx, and the engine survives.
#![no_main]

use axum::body::Body;
use http::{Request, header};
use http_body_util::BodyExt as _;
use libfuzzer_sys::fuzz_target;
use mock_vllm::http::router;
use mock_vllm::{cli, server};
use std::sync::LazyLock;
use std::time::Duration;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

/// Paths to request; the input's first byte chooses one.
const PATHS: [&str; 16] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/debug/lookup",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/completions/render",
    "/v1/responses/render",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
];

/// Flags of the pod: a short context and a fast clock, because the engine itself is not under test.
const FLAGS: &str = "mock-vllm serve Qwen/Qwen3-8B --served-model-name /model/qwen --max-model-len 512 \
    --num-gpu-blocks-override 128 --time-scale 1000000 --enable-prompt-tokens-details \
    --enable-lora --allow-runtime-lora-updating --enable-auto-tool-choice --tool-call-parser hermes";

/// Time after which a request counts as stuck: far longer than any may take.
const STUCK: Duration = Duration::from_secs(20);

static POD: LazyLock<axum::Router> = LazyLock::new(|| {
    let settings = cli::pod_settings(FLAGS.split_whitespace().map(Into::into)).expect("the flags are valid");
    router(server::build(settings).expect("the pod starts").pod)
});

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the runtime starts")
});

async fn send(request: Request<Body>) -> (u16, Vec<u8>) {
    let response = POD.clone().oneshot(request).await.expect("a router always answers");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("bodies of the pod end well").to_bytes();
    (status, body.to_vec())
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, body)) = bytes.split_first() else { return };
    let path = PATHS[usize::from(*choice) % PATHS.len()];
    RUNTIME.block_on(async {
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body.to_vec())).expect("the request is valid");
        let (status, answer) =
            tokio::time::timeout(STUCK, send(request)).await.expect("the request ends in time");
        assert!(status < 500, "{status}: {}", String::from_utf8_lossy(&answer));
        let health = Request::get("/health").body(Body::empty()).expect("the request is valid");
        assert_eq!(send(health).await.0, 200, "the engine is alive");
    });
});
