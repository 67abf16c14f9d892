//! Adapters over HTTP: cards, loading at run time, requests that name one.

use crate::server_fixtures::{MODEL, start};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const UPDATES: &str = "--enable-lora --allow-runtime-lora-updating";

fn completion(model: &str) -> String {
    json!({"model": model, "prompt": vec![785; 100], "max_tokens": 2}).to_string()
}

#[tokio::test]
async fn adapters_have_cards() {
    let modules =
        r#"--lora-modules sql=/loras/sql {"name":"chat","path":"/loras/chat","base_model_name":"m"}"#;
    let pod = start(&format!("--enable-lora {modules}")).await;
    let cards = pod.get("/v1/models").await.json();
    let card = |idx: usize, field: &str| cards["data"][idx][field].clone();
    assert_eq!(cards["data"].as_array().map(Vec::len), Some(3));
    assert_eq!([card(0, "id"), card(0, "parent")], [json!(MODEL), Value::Null]);
    assert_eq!([card(1, "id"), card(1, "root"), card(1, "parent")], ["sql", "/loras/sql", MODEL]);
    assert_eq!(card(1, "max_model_len"), Value::Null);
    assert_eq!([card(2, "id"), card(2, "root"), card(2, "parent")], ["chat", "/loras/chat", "m"]);
    assert_eq!(card(2, "permission")[0]["object"], "model_permission");
}

#[tokio::test]
async fn adapters_come_and_go_with_vllms_texts() {
    let pod = start(UPDATES).await;
    let load = async |body: Value| pod.post("/v1/load_lora_adapter", body.to_string()).await;
    let unload = async |body: Value| pod.post("/v1/unload_lora_adapter", body.to_string()).await;
    let sql = json!({"lora_name": "sql", "lora_path": "/loras/sql"});
    let unknown = pod.post("/v1/completions", completion("sql")).await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);

    let loaded = load(sql.clone()).await;
    assert_eq!(
        (loaded.status.as_u16(), loaded.body.as_str()),
        (200, "Success: LoRA adapter 'sql' added successfully.")
    );
    let answer = pod.post("/v1/completions", completion("sql")).await.json();
    assert_eq!(answer["model"], "sql");

    let twice = load(sql.clone()).await;
    assert_eq!((twice.status.as_u16(), &twice.json()["error"]["type"]), (400, &json!("InvalidUserInput")));
    assert!(twice.json()["error"]["message"].as_str().unwrap().contains("'sql' has already been loaded"));
    let in_place = json!({"lora_name": "sql", "lora_path": "/loras/sql2", "load_inplace": true});
    assert_eq!(load(in_place).await.status, StatusCode::OK);
    assert_eq!(pod.get("/v1/models").await.json()["data"][1]["root"], "/loras/sql2");

    assert_eq!(load(json!({"lora_name": "x"})).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        load(json!({"lora_name": "", "lora_path": "/p"})).await.json()["error"]["type"],
        "InvalidUserInput"
    );
    let missing = pod.post("/v1/completions", completion("nope")).await.json();
    let aliases = format!("The model `nope` does not exist. Valid aliases: {MODEL}, sql.");
    assert_eq!(missing["error"]["message"], aliases);

    let gone = unload(json!({"lora_name": "sql"})).await;
    assert_eq!(gone.body, "Success: LoRA adapter 'sql' removed successfully.");
    let again = unload(json!({"lora_name": "sql"})).await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
    assert_eq!(again.json()["error"]["message"], "The lora adapter 'sql' cannot be found.");
    assert_eq!(pod.post("/v1/completions", completion("sql")).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn without_leave_nothing_is_loaded() {
    for flags in ["", "--enable-lora", "--allow-runtime-lora-updating"] {
        let pod = start(flags).await;
        let body = json!({"lora_name": "sql", "lora_path": "/loras/sql"}).to_string();
        assert_eq!(pod.post("/v1/load_lora_adapter", body).await.status, StatusCode::NOT_FOUND, "{flags}");
    }
}

#[tokio::test]
async fn adapters_do_not_share_a_cache() {
    let modules = "--lora-modules a=/a b=/b";
    let pod = start(&format!("--enable-lora {modules} --enable-prompt-tokens-details")).await;
    let cached = async |model: &str| {
        let answer = pod.post("/v1/completions", completion(model)).await.json();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
    };
    for model in [MODEL, "a", "b"] {
        assert_eq!(cached(model).await, Some(0), "{model}");
        assert_eq!(cached(model).await, Some(96), "{model}");
    }
    let lookup = json!({"model": "a", "prompt_token_ids": vec![785; 100]}).to_string();
    let header =
        pod.send(Method::POST, "/debug/lookup", &[("content-type", "application/json")], lookup).await;
    assert_eq!(header.json()["cached_tokens"], 96);
}

#[tokio::test]
async fn one_adapter_at_a_time_defers_the_other() {
    let check = async |max_loras: u32, n_deferred: f64| {
        let flags = "--time-scale 20 --enable-lora --lora-modules a=/a b=/b --max-loras";
        let pod = start(&format!("{flags} {max_loras}")).await;
        let long = |model: &str| {
            json!({"model": model, "prompt": "x", "max_tokens": 60, "ignore_eos": true}).to_string()
        };
        let watch = async {
            loop {
                let page = pod.get("/metrics").await.body;
                let gauge = |name: &str| {
                    let line = page.lines().find_map(|line| line.strip_prefix(name));
                    line.and_then(|value| value.trim().parse::<f64>().ok()).unwrap()
                };
                let running = gauge("vllm:num_requests_running{engine=\"0\",model_name=\"/model/qwen\"}");
                let deferred = gauge(
                    "vllm:num_requests_waiting_by_reason{engine=\"0\",model_name=\"/model/qwen\",reason=\"deferred\"}",
                );
                if running + deferred >= 2.0 {
                    return (deferred, page);
                }
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        };
        let (a, b, (deferred, page)) = tokio::join!(
            pod.post("/v1/completions", long("a")),
            pod.post("/v1/completions", long("b")),
            watch
        );
        assert_eq!((a.status, b.status), (StatusCode::OK, StatusCode::OK));
        assert!((deferred - n_deferred).abs() < 1e-9, "{deferred}");
        assert!(page.contains(&format!("max_lora=\"{max_loras}\"")), "lora_requests_info tells the limit");
    };
    check(1, 1.0).await;
    check(2, 0.0).await;
}
