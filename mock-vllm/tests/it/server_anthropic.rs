//! `/v1/messages` and `/v1/messages/count_tokens`: the prompt that a request becomes, and the blocks and events of its
//! answer.

use crate::server_fixtures::{Answer, TestPod, last_prompt, start};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const PATH: &str = "/v1/messages";
const TOOLS: &str = "--enable-auto-tool-choice --tool-call-parser hermes";

fn weather() -> Value {
    json!({"name": "get_weather", "description": "The weather.", "input_schema": {
        "properties": {"city": {"const": "Oslo"}}, "required": ["city"]}})
}

/// Makes a body with the fields that every request needs.
fn body(messages: Value, more: Value) -> Value {
    let mut body = json!({"model": "/model/qwen", "max_tokens": 16, "messages": messages});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn user(content: impl Into<Value>) -> Value {
    json!([{"role": "user", "content": content.into()}])
}

async fn ask(pod: &TestPod, body: &Value) -> Answer {
    let answer = pod.post(PATH, body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer
}

/// Messages of this API with other fields, and the chats that they become.
fn equals() -> Vec<(Value, Value)> {
    let parameters =
        json!({"properties": {"city": {"const": "Oslo"}}, "required": ["city"], "type": "object"});
    let function = json!({"name": "get_weather", "description": "The weather.", "parameters": parameters});
    let tools = json!([{"type": "function", "function": function}]);
    let call = |id: &str| {
        json!({"id": id, "type": "function",
        "function": {"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}})
    };
    let tool_use =
        |id: &str| json!({"type": "tool_use", "id": id, "name": "get_weather", "input": {"city": "Oslo"}});
    let text = |text: &str| json!({"type": "text", "text": text});
    vec![
        (
            body(user("hi"), json!({"system": "Be brief."})),
            json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]}),
        ),
        // The texts of a system prompt become one text, without what differs from request to request.
        (
            body(
                user(vec![text("a"), text(""), text("b")]),
                json!({"system": [text("x-anthropic-billing-header: cc=1"), text("Be "),
                    {"type": "text", "text": "kind.", "cache_control": {"type": "ephemeral"}}]}),
            ),
            json!({"messages": [{"role": "system", "content": "Be kind."},
                {"role": "user", "content": [text("a"), text("b")]}]}),
        ),
        (
            body(
                json!([{"role": "user", "content": "Weather?"},
                    {"role": "assistant", "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                        {"type": "redacted_thinking", "data": "x"},
                        text("I look."), tool_use("t1"), tool_use("t2")]},
                    {"role": "user", "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": "rain"},
                        {"type": "tool_result", "tool_use_id": "t2", "content": [text("snow"), text("ice")]},
                        text("Well?")]}]),
                json!({"tools": [weather()]}),
            ),
            json!({"tools": tools, "messages": [{"role": "user", "content": "Weather?"},
                {"role": "assistant", "reasoning": "Hm.", "content": "I look.", "tool_calls": [call("t1"), call("t2")]},
                {"role": "tool", "tool_call_id": "t1", "content": "rain"},
                {"role": "tool", "tool_call_id": "t2", "content": "snow\nice"},
                {"role": "user", "content": "Well?"}]}),
        ),
        (
            body(user("Go."), json!({"tools": [weather()], "tool_choice": {"type": "none"}})),
            json!({"messages": user("Go."), "tools": tools, "tool_choice": "none"}),
        ),
        // A choice has no meaning without tools.
        (body(user("No."), json!({"tool_choice": {"type": "any"}})), json!({"messages": user("No.")})),
        (
            body(
                json!([{"role": "user", "content": "a"}, {"role": "system", "content": [text("late")]},
                    {"role": "user", "content": "b"}]),
                json!({"system": "s"}),
            ),
            json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                {"role": "system", "content": "late"}, {"role": "user", "content": "b"}]}),
        ),
        (
            body(
                user("think"),
                json!({"output_config": {"effort": "high"}, "chat_template_kwargs": {"x": 1}}),
            ),
            json!({"messages": user("think"), "reasoning_effort": "high", "chat_template_kwargs": {"x": 1}}),
        ),
        (
            body(user("do not"), json!({"thinking": {"type": "disabled"}})),
            json!({"messages": user("do not"), "reasoning_effort": "none"}),
        ),
    ]
}

#[tokio::test]
async fn a_request_has_the_prompt_of_the_chat_that_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("requests");
    // This template shows what Qwen2.5's leaves out: reasoning, effort and whether it may think.
    let template = folder.path().join("template");
    let text = "{{ tools | tojson }}{{ enable_thinking }}{{ reasoning_effort }}{{ x }}\
        {% for message in messages %}<{{ message | tojson }}>{% endfor %}";
    std::fs::write(&template, text).unwrap();
    let own = format!("--chat-template {} --chat-template-content-format string", template.display());
    let mut digests = Vec::new();
    for flags in ["", own.as_str()] {
        let pod = start(&format!("{TOOLS} {flags} --request-log {}", log.display())).await;
        for (body, mut chat) in equals() {
            ask(&pod, &body).await;
            let (as_message, endpoint) = last_prompt(&log);
            assert_eq!(endpoint, PATH);
            chat["max_tokens"] = 1.into();
            let answer = pod.post("/v1/chat/completions", chat.to_string()).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            assert_eq!(as_message, last_prompt(&log).0, "{body}");
            digests.push(as_message);
        }
    }
    // The digest distinguishes prompts.
    let n_digests = digests.len();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), n_digests);
}

/// Templates with Qwen3.5's guard take a system message only at the beginning.
#[tokio::test]
async fn late_system_messages_go_where_the_template_takes_them() {
    let folder = tempfile::tempdir().unwrap();
    let (log, template) = (folder.path().join("requests"), folder.path().join("template"));
    let text = "{% for message in messages %}{% if message.role == 'system' and not loop.first %}\
        {{ raise_exception('System message must be at the beginning.') }}{% endif %}\
        <{{ message.role }} {{ message.content }}>{% endfor %}";
    std::fs::write(&template, text).unwrap();
    let flags = format!("--chat-template {} --request-log {}", template.display(), log.display());
    let pod = start(&flags).await;
    let messages = json!([{"role": "user", "content": "a"}, {"role": "system", "content": "late"},
        {"role": "user", "content": "b"}]);
    ask(&pod, &body(messages.clone(), json!({"system": "s"}))).await;
    let merged = last_prompt(&log).0;
    let chat = json!({"max_tokens": 1, "messages": [{"role": "system", "content": "slate"},
        {"role": "user", "content": "a"}, {"role": "user", "content": "b"}]});
    pod.post("/v1/chat/completions", chat.to_string()).await;
    assert_eq!(merged, last_prompt(&log).0);
    // The same messages as a chat are rejected.
    let chat = json!({"max_tokens": 1, "messages": messages});
    assert_eq!(pod.post("/v1/chat/completions", chat.to_string()).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_message_is_told_in_blocks() {
    let pod = start(&format!("{TOOLS} --enable-prompt-tokens-details")).await;
    let text = ask(&pod, &body(user("hi"), json!({"max_tokens": 3}))).await.json();
    let n_prompt = text["usage"]["input_tokens"].as_u64().unwrap()
        + text["usage"]["cache_creation_input_tokens"].as_u64().unwrap();
    assert_eq!(
        text["usage"],
        json!({"input_tokens": n_prompt - 16, "output_tokens": 3,
        "cache_creation_input_tokens": 16, "cache_read_input_tokens": 0})
    );
    let expected = json!({"id": text["id"], "type": "message", "role": "assistant", "content": text["content"],
        "model": "/model/qwen", "stop_reason": "max_tokens", "usage": text["usage"]});
    assert_eq!(text.to_string(), expected.to_string());
    assert_eq!(text["content"].as_array().unwrap().len(), 1);
    let again = ask(&pod, &body(user("hi"), json!({"max_tokens": 3}))).await;
    assert_eq!(again.json()["usage"]["cache_read_input_tokens"], 16);
    assert!(again.headers["x-mock-vllm-cache"].to_str().unwrap().starts_with("cached_tokens=16"));
    let words = text["content"][0]["text"].as_str().unwrap();
    let word = words.split_whitespace().nth(1).unwrap();
    let stopped = ask(&pod, &body(user("hi"), json!({"stop_sequences": [word]}))).await.json();
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(word)));
    let call = ask(&pod, &body(user("Use get_weather."), json!({"tools": [weather()], "max_tokens": 99})))
        .await
        .json();
    let id = &call["content"][0]["id"];
    let expected = json!([{"type": "tool_use", "id": id, "name": "get_weather", "input": {"city": "Oslo"}}]);
    assert_eq!((&call["content"], &call["stop_reason"]), (&expected, &json!("tool_use")));
    let forced = body(
        user("x"),
        json!({"tools": [weather()], "max_tokens": 99,
        "tool_choice": {"type": "tool", "name": "get_weather"}}),
    );
    assert_eq!(ask(&pod, &forced).await.json()["stop_reason"], "tool_use");
    let spared =
        body(user("Use get_weather."), json!({"tools": [weather()], "tool_choice": {"type": "none"}}));
    assert_eq!(ask(&pod, &spared).await.json()["content"][0]["type"], "text");
}

#[tokio::test]
async fn a_stream_tells_block_after_block() {
    let pod = start(TOOLS).await;
    let note = json!({"name": "note", "input_schema": {"type": "object", "properties": {"n": {"const": 7}}, "required": ["n"]}});
    let request = |stream: bool| {
        body(
            user("Use get_weather and note."),
            json!({"tools": [weather(), note], "max_tokens": 200, "stream": stream}),
        )
    };
    let events = ask(&pod, &request(true)).await.events();
    let whole = ask(&pod, &request(false)).await.json();
    let mut kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.dedup();
    let block = ["content_block_start", "content_block_delta", "content_block_stop"];
    assert_eq!(kinds, [&["message_start"][..], &block, &block, &["message_delta", "message_stop"]].concat());
    let first = &events[0]["message"];
    let n_prompt = &whole["usage"]["input_tokens"];
    assert_eq!(first["usage"], json!({"input_tokens": n_prompt, "output_tokens": 0}));
    assert_eq!(
        (&first["content"], &first["role"], &first["stop_reason"]),
        (&json!([]), &json!("assistant"), &Value::Null)
    );
    for (block_idx, block) in whole["content"].as_array().unwrap().iter().enumerate() {
        let of_block = |kind: &'static str| {
            let is_it = move |event: &&Value| event["type"] == kind && event["index"] == block_idx;
            events.iter().filter(is_it)
        };
        let mut start = block.clone();
        start["input"] = json!({});
        assert_eq!(of_block("content_block_start").next().unwrap()["content_block"], start);
        let deltas =
            of_block("content_block_delta").map(|event| event["delta"]["partial_json"].as_str().unwrap());
        let input: Value = serde_json::from_str(&deltas.collect::<String>()).unwrap();
        assert_eq!(input, block["input"]);
    }
    let last = &events[events.len() - 2];
    assert_eq!(last["delta"], json!({"stop_reason": "tool_use", "stop_sequence": null}));
    assert_eq!(last["usage"], whole["usage"]);
    // Words are sent as they arrive; a stream ends like a whole message.
    let words = |stream: bool| body(user("hi"), json!({"stream": stream}));
    let answer = ask(&pod, &words(true)).await;
    let head = "event: content_block_start\ndata: {\"type\":\"content_block_start\",\
        \"content_block\":{\"type\":\"text\",\"text\":\"\"},\"index\":0}\n\n";
    assert!(answer.body.contains(head), "{}", answer.body);
    assert!(answer.body.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"));
    let deltas: String = { answer.events().into_iter() }
        .filter_map(|event| event["delta"]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(deltas, ask(&pod, &words(false)).await.json()["content"][0]["text"].as_str().unwrap());
}

#[tokio::test]
async fn tokens_are_counted_without_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("requests");
    let pod = start(&format!("{TOOLS} --request-log {}", log.display())).await;
    for (body, _chat) in equals() {
        let counted = pod.post("/v1/messages/count_tokens", body.to_string()).await;
        assert_eq!(counted.status, StatusCode::OK, "{}", counted.body);
        let n_tokens = counted.json()["input_tokens"].clone();
        assert_eq!(
            counted.json(),
            json!({"input_tokens": n_tokens,
            "context_management": {"original_input_tokens": n_tokens}})
        );
        assert_eq!(ask(&pod, &body).await.json()["usage"]["input_tokens"], n_tokens);
    }
    let n_lines = std::fs::read_to_string(&log).unwrap().lines().count();
    assert_eq!(n_lines, equals().len());
}

#[tokio::test]
async fn what_cannot_be_served_is_refused() {
    let pod = start("").await;
    let with = |more: Value| body(user("x"), more);
    let block = |block: Value| body(user(vec![block]), json!({}));
    // The web framework finds what is wrong with a body, in vLLM's own shape.
    let of_body = [
        (json!({"model": "m", "messages": []}), "body.max_tokens"),
        (json!({"max_tokens": 1, "messages": []}), "body.model"),
        (json!({"max_tokens": 1, "model": "m"}), "body.messages"),
        (with(json!({"model": ""})), "Model is required"),
        (with(json!({"max_tokens": 0})), "max_tokens must be positive"),
        (body(json!(["x"]), json!({})), "body.messages.0"),
        (body(json!([{"role": "tool", "content": "x"}]), json!({})), "'user', 'assistant' or 'system'"),
        (body(json!([{"role": "user"}]), json!({})), "body.messages.0.content"),
        (body(user(3), json!({})), "body.messages.0.content"),
        (block(json!("x")), "body.messages.0.content.0"),
        (block(json!({"type": "audio"})), "body.messages.0.content.0.type"),
        (block(json!({"type": "text", "text": 1})), "body.messages.0.content.0.text"),
        (block(json!({"type": "tool_use", "input": []})), "body.messages.0.content.0.input"),
        (block(json!({"type": "tool_result", "content": [1]})), "body.messages.0.content.0.content.0"),
        (with(json!({"tools": [{"name": "f"}]})), "body.tools.0.input_schema"),
        (with(json!({"tool_choice": {"type": "tool"}})), "tool_choice.name is required"),
        (with(json!({"stop_sequences": ["1", "2", "3", "4", "5"]})), "at most 4 items"),
        (with(json!({"thinking": {"type": "enabled", "budget_tokens": 5}})), "greater than or equal to 1024"),
        (
            with(json!({"thinking": {"type": "enabled", "budget_tokens": 2048}})),
            "must be less than max_tokens",
        ),
    ];
    for (body, words) in of_body {
        let answer = pod.post(PATH, body.to_string()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(
            answer.body.starts_with("{\"error\":{\"message\"") && answer.body.contains(words),
            "{}",
            answer.body
        );
    }
    // The endpoint finds the rest, in Anthropic's shape.
    let image = json!({"type": "image", "source": {"type": "url", "url": "http://x/y.png"}});
    let change = json!({"type": "tool_removal", "tool": {"type": "tool_reference", "name": "f"}});
    let of_endpoint = [
        (with(json!({"model": "gpt"})), (404, "not_found_error", "The model `gpt` does not exist")),
        (with(json!({"temperature": 3})), (400, "invalid_request_error", "temperature must be")),
        (with(json!({"max_tokens": 9000})), (400, "invalid_request_error", "max_completion_tokens=9000")),
        (body(user("x ".repeat(9000)), json!({})), (400, "invalid_request_error", "maximum context length")),
        (with(json!({"tools": [weather()]})), (400, "invalid_request_error", "--enable-auto-tool-choice")),
        (block(image), (400, "invalid_request_error", "is not a multimodal model")),
        (block(change), (400, "invalid_request_error", "not supported by this server")),
    ];
    for (body, (status, kind, words)) in of_endpoint {
        for path in [PATH, "/v1/messages/count_tokens"] {
            let knows = !words.contains("temperature") && !words.contains("max_completion");
            if path == PATH || knows {
                let answer = pod.post(path, body.to_string()).await;
                assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
                let error = answer.json();
                assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
                assert!(error["error"]["message"].as_str().unwrap().contains(words), "{}", answer.body);
            }
        }
    }
    for version in ["0.8", "0.11"] {
        let older = start(&format!("--vllm-version {version}")).await;
        for path in [PATH, "/v1/messages/count_tokens"] {
            assert_eq!(older.post(path, with(json!({})).to_string()).await.status, StatusCode::NOT_FOUND);
        }
    }
}

/// Adapters, keys, the log and the metrics treat the endpoint like a chat's.
#[tokio::test]
async fn a_message_counts_as_a_chat_does() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("requests");
    let flags = "--enable-lora --lora-modules sql=/lora/sql --api-key secret";
    let pod = start(&format!("{flags} --request-log {}", log.display())).await;
    let post = async |header: (&str, &str), model: &str| {
        let headers = [("content-type", "application/json"), ("x-request-id", "abc"), header];
        pod.send(Method::POST, PATH, &headers, body(user("hi"), json!({"model": model})).to_string()).await
    };
    // vLLM looks only for a bearer token.
    assert_eq!(post(("x-api-key", "secret"), "sql").await.status, StatusCode::UNAUTHORIZED);
    let bearer = ("authorization", "Bearer secret");
    let answer = post(bearer, "sql").await.json();
    assert_eq!((&answer["model"], &answer["id"]), (&json!("sql"), &json!("chatcmpl-abc")));
    assert_eq!(post(bearer, "nobody").await.status, StatusCode::NOT_FOUND);
    let lines = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told =
        lines.iter().map(|line| (&line["endpoint"], &line["model"], &line["status"], &line["request_id"]));
    let expected = [
        (json!(PATH), json!("sql"), json!(200), json!("abc")),
        (json!(PATH), json!("nobody"), json!(404), json!("abc")),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected.each_ref().map(|(a, b, c, d)| (a, b, c, d)));
    let metrics = pod.get("/metrics").await.body;
    for (class, n) in [("2xx", 1.0), ("4xx", 1.0)] {
        let line =
            format!("http_requests_total{{handler=\"{PATH}\",method=\"POST\",status=\"{class}\"}} {n:?}");
        assert!(metrics.contains(&line), "{line}");
    }
}
