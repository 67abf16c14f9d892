//! Tool calls and constrained replies over HTTP: plain and streamed, for each generation.

use crate::server_fixtures::{Answer, TestPod, start};
use http::StatusCode;
use serde_json::{Value, json};

const TOOLS: &str = "--enable-auto-tool-choice --tool-call-parser hermes";

fn weather(choice: Value) -> Value {
    json!({
        "messages": [{"role": "user", "content": "Please use get_weather for Paris."}],
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object",
            "properties": {"city": {"const": "Paris"}, "days": {"const": 3}}, "required": ["city", "days"]}}}],
        "tool_choice": choice,
    })
}

fn with(mut body: Value, fields: &[(&str, Value)]) -> Value {
    for (name, value) in fields {
        body[*name] = value.clone();
    }
    body
}

async fn chat(pod: &TestPod, body: Value) -> Answer {
    let answer = pod.post("/v1/chat/completions", body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer
}

/// Returns the deltas of the only choice, each as it was written, and the last frame's finish reason.
fn deltas(answer: &Answer) -> (Vec<String>, String) {
    let mut finish = String::new();
    let mut deltas = Vec::new();
    for frame in answer.frames().into_iter().filter(|frame| *frame != "[DONE]") {
        let (_, rest) = frame.split_once("\"delta\":").unwrap();
        let (delta, rest) = rest.split_once(",\"logprobs\":null").unwrap();
        deltas.push(delta.to_owned());
        let value: Value = serde_json::from_str(frame).unwrap();
        finish.push_str(value["choices"][0]["finish_reason"].as_str().unwrap_or_default());
        assert_eq!(rest.contains("stop_reason"), !finish.is_empty());
    }
    (deltas, finish)
}

/// Removes the id, which is random for the client.
fn without_ids(delta: &str) -> String {
    match delta.split_once("\"id\":\"chatcmpl-tool-") {
        Some((before, after)) => format!("{before}\"id\":\"ID{}", &after[32..]),
        None => delta.to_owned(),
    }
}

#[tokio::test]
async fn a_call_streams_vllms_deltas() {
    let pod = start(TOOLS).await;
    let answer = chat(&pod, with(weather(json!("auto")), &[("stream", json!(true))])).await;
    let (deltas, finish) = deltas(&answer);
    let deltas: Vec<_> = deltas.iter().map(|delta| without_ids(delta)).collect();
    assert_eq!(finish, "tool_calls");
    assert_eq!(deltas[0], r#"{"role":"assistant","content":""}"#);
    assert_eq!(
        deltas[1],
        r#"{"content":null,"tool_calls":[{"id":"ID","type":"function","index":0,"function":{"name":"get_weather"}}]}"#
    );
    assert_eq!(deltas[2], r#"{"content":null,"tool_calls":[{"index":0,"function":{"arguments":"{\""}}]}"#);
    assert_eq!(deltas.last().unwrap(), "{}");
    let arguments: String = deltas[1..]
        .iter()
        .filter_map(|delta| {
            let delta: Value = serde_json::from_str(delta).unwrap();
            Some(delta["tool_calls"][0]["function"]["arguments"].as_str()?.to_owned())
        })
        .collect();
    assert_eq!(arguments, r#"{"city": "Paris", "days": 3}"#);
}

#[tokio::test]
async fn a_plain_call_has_vllms_message() {
    let message = async |flags: &str, choice: Value| {
        let answer = chat(&start(flags).await, weather(choice)).await;
        let (_, rest) = answer.body.split_once("\"message\":").unwrap();
        let (message, rest) = rest.split_once(",\"logprobs\"").unwrap();
        let finish: Value = serde_json::from_str(&answer.body).unwrap();
        assert!(rest.len() > 10);
        (without_ids(message), finish["choices"][0]["finish_reason"].as_str().unwrap().to_owned())
    };
    let calls = r#"[{"id":"ID","type":"function","function":{"name":"get_weather","arguments":"{\"city\": \"Paris\", \"days\": 3}"}}]"#;
    let nulls = r#""refusal":null,"annotations":null,"audio":null,"function_call":null"#;
    let (auto, finish) = message(TOOLS, json!("auto")).await;
    let expected =
        format!(r#"{{"role":"assistant","content":null,{nulls},"tool_calls":{calls},"reasoning":null}}"#);
    assert_eq!((auto, finish.as_str()), (expected, "tool_calls"));
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    let (named_message, finish) = message(TOOLS, named.clone()).await;
    let expected =
        format!(r#"{{"role":"assistant","content":"",{nulls},"tool_calls":{calls},"reasoning":null}}"#);
    assert_eq!((named_message, finish.as_str()), (expected, "stop"));
    let (_, finish) = message(TOOLS, json!("required")).await;
    assert_eq!(finish, "tool_calls");
    // Guided decoding of older versions needs no parser.
    let (old, finish) = message("--vllm-version 0.11", named.clone()).await;
    let expected = format!(
        r#"{{"role":"assistant","content":"",{nulls},"tool_calls":{calls},"reasoning_content":null}}"#
    );
    assert_eq!((old, finish.as_str()), (expected, "stop"));
    let (oldest, _) = message("--vllm-version 0.8", named).await;
    let expected =
        format!(r#"{{"role":"assistant","reasoning_content":null,"content":"","tool_calls":{calls}}}"#);
    assert_eq!(oldest, expected);
}

#[tokio::test]
async fn replies_in_words_pass_through_the_parser() {
    let pod = start(TOOLS).await;
    let mut body = with(weather(json!("auto")), &[("max_tokens", json!(5)), ("stream", json!(true))]);
    body["messages"][0]["content"] = json!("Opening the mailbox reveals:\n A leaflet.\n>");
    let (deltas, finish) = deltas(&chat(&pod, body.clone()).await);
    assert_eq!(deltas[1..3], [r#"{"content":"Read"}"#, r#"{"content":" the"}"#]);
    assert_eq!(finish, "length");
    body["max_tokens"] = Value::Null;
    let (deltas, finish) = self::deltas(&chat(&pod, body).await);
    // The delta of the EOS, which the parser drops.
    assert_eq!((deltas.last().unwrap().as_str(), finish.as_str()), ("{}", "stop"));
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_words() {
    let pod = start(TOOLS).await;
    let cut = with(weather(json!("auto")), &[("max_tokens", json!(12))]);
    let choice = chat(&pod, cut.clone()).await.json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "length");
    assert!(
        choice["message"]["content"].as_str().unwrap().starts_with("<tool_call>\n{\"name\": \"get_weather\"")
    );
    let streamed = chat(&pod, with(cut, &[("stream", json!(true))])).await;
    assert_eq!(deltas(&streamed).1, "length");
}

#[tokio::test]
async fn tools_need_the_servers_flags() {
    let check = async |flags: &str, choice: Value, message: &str| {
        let answer = start(flags).await.post("/v1/chat/completions", weather(choice).to_string()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert_eq!(answer.json()["error"]["message"], message);
    };
    let auto = "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set";
    check("", json!("auto"), auto).await;
    check("--tool-call-parser hermes", json!("auto"), auto).await;
    check("", json!("required"), "tool_choice=\"required\" requires --tool-call-parser to be set").await;
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    check("", named, "tool_choice=function \"get_weather\" requires --tool-call-parser to be set").await;
    check("--vllm-version 0.11", json!("auto"), auto).await;
    let none = start("").await.post("/v1/chat/completions", weather(json!("none")).to_string()).await;
    assert_eq!(none.status, StatusCode::OK);
    let empty = json!({"messages": [{"role": "user", "content": "x"}], "tools": []});
    let answer = start(TOOLS).await.post("/v1/chat/completions", empty.to_string()).await.json();
    assert_eq!(answer["error"]["param"], "tools");
}

#[tokio::test]
async fn constrained_replies_keep_their_constraint() {
    let pod = start("").await;
    let schema = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "tags", "age"], "additionalProperties": false});
    let validator = jsonschema::validator_for(&schema).unwrap();
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": true}});
    for seed in 0..8 {
        let body = json!({"messages": [{"role": "user", "content": "who?"}], "response_format": format, "seed": seed});
        let plain = chat(&pod, body.clone()).await.json()["choices"][0].clone();
        let text = plain["message"]["content"].as_str().unwrap().to_owned();
        assert!(validator.is_valid(&serde_json::from_str(&text).unwrap()), "{text}");
        assert_eq!(plain["finish_reason"], "stop");
        let streamed = chat(&pod, with(body, &[("stream", json!(true))])).await;
        assert_eq!(streamed.text(), text);
    }
    let cut = json!({"messages": [{"role": "user", "content": "who?"}], "response_format": format, "max_tokens": 4});
    assert_eq!(chat(&pod, cut).await.json()["choices"][0]["finish_reason"], "length");
    let completion =
        json!({"prompt": "yes or no?", "structured_outputs": {"choice": ["yes", "no"]}, "ignore_eos": true});
    let answer = pod.post("/v1/completions", completion.to_string()).await.json();
    assert!(["yes", "no"].contains(&answer["choices"][0]["text"].as_str().unwrap()), "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn each_generation_heeds_its_own_fields() {
    let text = async |flags: &str, fields: Value| {
        let pod = start(flags).await;
        let mut body = json!({"prompt": "x", "max_tokens": 8});
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let answer = pod.post("/v1/completions", body.to_string()).await.json();
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let guided = json!({"guided_choice": ["yes"]});
    let structured = json!({"structured_outputs": {"choice": ["yes"]}});
    assert_eq!(text("--vllm-version 0.8", guided.clone()).await, "yes");
    assert_ne!(text("--vllm-version 0.8", structured.clone()).await, "yes");
    assert_eq!(text("--vllm-version 0.11", guided.clone()).await, "yes");
    assert_ne!(text("", guided).await, "yes");
    assert_eq!(text("", structured).await, "yes");
}

#[tokio::test]
async fn bad_constraints_are_refused() {
    let pod = start("").await;
    let check = async |format: Value, param: Option<&str>, message: &str| {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "response_format": format});
        let error = pod.post("/v1/chat/completions", body.to_string()).await.json()["error"].clone();
        assert_eq!((error["param"].as_str(), error["message"].as_str()), (param, Some(message)));
        assert_eq!(error["code"], 400);
    };
    let missing = "When response_format type is 'json_schema', the 'json_schema' field must be provided. (parameter=response_format)";
    check(json!({"type": "json_schema"}), Some("response_format"), missing).await;
    let keyword = "Failed to transform json schema into a grammar: #: keyword if is not supported";
    check(json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"if": {}}}}), None, keyword)
        .await;
}
