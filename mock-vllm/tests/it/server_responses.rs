//! `/v1/responses`: the prompt that a request becomes, and the items and events of its answer.

use crate::server_fixtures::{Answer, TestPod, last_prompt, start};
use http::StatusCode;
use serde_json::{Value, json};

const TOOLS: &str = "--enable-auto-tool-choice --tool-call-parser hermes";

/// Declares `get_weather` with constant arguments, flat as in this API.
fn weather() -> Value {
    json!({"type": "function", "name": "get_weather", "description": "The weather.", "parameters": {
        "type": "object", "properties": {"city": {"const": "Oslo"}}, "required": ["city"]}})
}

async fn respond(pod: &TestPod, body: Value) -> Answer {
    let answer = pod.post("/v1/responses", body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer
}

/// Bodies of this API, and the chats that they become.
fn equals() -> Vec<(Value, Value)> {
    let chat_tool = {
        let mut function = weather();
        function.as_object_mut().unwrap().remove("type");
        json!([{"type": "function", "function": function}])
    };
    let call = json!({"id": "c1", "type": "function",
        "function": {"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}});
    let call_item = json!({"type": "function_call", "call_id": "c1", "name": "get_weather",
        "arguments": "{\"city\": \"Oslo\"}"});
    let user = json!({"role": "user", "content": "And in Oslo?"});
    vec![
        (
            json!({"instructions": "Be brief.", "input": "hi"}),
            json!({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]}),
        ),
        (
            json!({"input": [{"type": "message", "role": "developer", "content": "d"}, user,
                {"type": "message", "role": "assistant", "id": "m", "status": "completed",
                 "content": [{"type": "output_text", "text": "Rain.", "annotations": []}]}, user]}),
            json!({"messages": [{"role": "developer", "content": "d"}, user,
                {"role": "assistant", "content": "Rain."}, user]}),
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"},
                {"type": "input_text", "text": "b"}]}]}),
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"},
                {"type": "text", "text": "b"}]}]}),
        ),
        (
            json!({"input": "hi", "tools": [weather(), {"type": "web_search"}], "instructions": "s"}),
            json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
                "tools": chat_tool}),
        ),
        // One message of the assistant in four items, and both results.
        (
            json!({"tools": [weather()], "input": [user,
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
                {"role": "assistant", "content": "I look."}, call_item, call_item,
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
                {"type": "function_call_output", "call_id": "c1",
                 "output": [{"type": "input_text", "text": "snow"}]}]}),
            json!({"tools": chat_tool, "messages": [user,
                {"role": "assistant", "reasoning": "Hm.", "content": "I look.", "tool_calls": [call, call]},
                {"role": "tool", "tool_call_id": "c1", "content": "rain"},
                {"role": "tool", "tool_call_id": "c1", "content": "snow"}]}),
        ),
        (
            json!({"input": [user, {"role": "assistant", "content": "Rai", "status": "incomplete"}]}),
            json!({"messages": [user, {"role": "assistant", "content": "Rai"}],
                "add_generation_prompt": false, "continue_final_message": true}),
        ),
        (
            json!({"input": "hi", "reasoning": {"effort": "none"}}),
            json!({"messages": [{"role": "user", "content": "hi"}], "reasoning_effort": "none"}),
        ),
        (
            json!({"input": [user, {"type": "custom_tool_call", "call_id": "c1", "name": "f", "input": "x \"y\""},
                {"type": "custom_tool_call_output", "call_id": "c1", "output": "z"}]}),
            json!({"messages": [user, {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function",
                "function": {"name": "f", "arguments": "{\"input\":\"x \\\"y\\\"\"}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "z"}]}),
        ),
    ]
}

#[tokio::test]
async fn a_request_has_the_prompt_of_the_chat_that_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("requests");
    // This template shows what Qwen2.5's leaves out: reasoning and whether it may think.
    let template = folder.path().join("template");
    let text = "{{ tools | tojson }}{{ enable_thinking }}{% for message in messages %}<{{ message | tojson }}>{% endfor %}\
        {% if add_generation_prompt %}go{% endif %}";
    std::fs::write(&template, text).unwrap();
    let mut digests = Vec::new();
    for flags in [
        String::new(),
        format!("--chat-template {} --chat-template-content-format string", template.display()),
    ] {
        let pod = start(&format!("{TOOLS} {flags} --request-log {}", log.display())).await;
        for (mut body, mut chat) in equals() {
            if !flags.is_empty() && chat.get("continue_final_message").is_some() {
                continue;
            }
            body["max_output_tokens"] = 1.into();
            chat["max_tokens"] = 1.into();
            respond(&pod, body.clone()).await;
            let (as_response, endpoint) = last_prompt(&log);
            assert_eq!(endpoint, "/v1/responses");
            let answer = pod.post("/v1/chat/completions", chat.to_string()).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            assert_eq!(as_response, last_prompt(&log).0, "{body}");
            digests.push(as_response);
        }
    }
    // The digest distinguishes prompts.
    let n_digests = digests.len();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), n_digests);
}

#[tokio::test]
async fn calls_of_tools_are_items() {
    let pod = start(TOOLS).await;
    let body = json!({"input": "Use get_weather twice.", "tools": [weather()]});
    let response = respond(&pod, body).await.json();
    let call = &response["output"][0];
    assert_eq!(response["output"].as_array().unwrap().len(), 1);
    let digits = call["call_id"].as_str().unwrap().strip_prefix("chatcmpl-tool-").unwrap();
    let expected = json!({"arguments": "{\"city\": \"Oslo\"}", "call_id": call["call_id"], "name": "get_weather",
        "type": "function_call", "id": format!("fc_{digits}"), "namespace": null, "status": "completed"});
    assert_eq!(call, &expected);
    assert_eq!((&response["status"], &response["tool_choice"]), (&json!("completed"), &json!("auto")));
    let told = json!([{"name": "get_weather", "parameters": weather()["parameters"], "strict": null,
        "type": "function", "defer_loading": null, "description": "The weather."}]);
    assert_eq!(response["tools"], told);
    // Nothing is called if nothing may be, or without a parser; the tools are still in the prompt.
    let n_prompt_tokens = &response["usage"]["input_tokens"];
    let forbidden = json!({"input": "Use get_weather twice.", "tools": [weather()], "tool_choice": "none"});
    let without_parser = start("").await;
    for (pod, choice) in [(&pod, "none"), (&without_parser, "auto"), (&without_parser, "required")] {
        let mut body = forbidden.clone();
        body["tool_choice"] = choice.into();
        let response = respond(pod, body).await.json();
        assert_eq!(response["output"][0]["type"], "message", "{choice}");
        assert_eq!(&response["usage"]["input_tokens"], n_prompt_tokens);
    }
    let plain = respond(&pod, json!({"input": "Use get_weather twice."})).await.json();
    assert_eq!((&plain["output"][0]["type"], &plain["tool_choice"]), (&json!("message"), &json!("none")));
    assert_ne!(&plain["usage"]["input_tokens"], n_prompt_tokens);
}

#[tokio::test]
async fn a_stream_tells_item_after_item() {
    let pod = start(TOOLS).await;
    let search = json!({"type": "namespace", "name": "web", "description": "d", "tools": [{"type": "function",
        "name": "search", "parameters": {"type": "object", "properties": {"q": {"const": "x"}}, "required": ["q"]}}]});
    let body = json!({"input": "Use get_weather, web__search and note.", "stream": true,
        "tools": [weather(), search, {"type": "custom", "name": "note"}]});
    let events = respond(&pod, body.clone()).await.events();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let mut kinds: Vec<_> = kinds.iter().map(|kind| kind.strip_prefix("response.").unwrap()).collect();
    kinds.dedup();
    let function = [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ];
    let custom = [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ];
    let expected = [&["created", "in_progress"][..], &function, &function, &custom, &["completed"]].concat();
    assert_eq!(kinds, expected);
    let output = &events.last().unwrap()["response"]["output"];
    let of_kind =
        |kind: &str| events.iter().filter(|event| event["type"] == kind).cloned().collect::<Vec<_>>();
    for (output_idx, done) in of_kind("response.output_item.done").iter().enumerate() {
        assert_eq!((&done["item"], &done["output_index"]), (&output[output_idx], &json!(output_idx)));
    }
    let added = of_kind("response.output_item.added");
    assert_eq!(added[0]["item"]["arguments"], "");
    assert_eq!(added[2]["item"]["input"], "");
    for (output_idx, (kind, field)) in [
        ("function_call_arguments", "arguments"),
        ("function_call_arguments", "arguments"),
        ("custom_tool_call_input", "input"),
    ]
    .into_iter()
    .enumerate()
    {
        let deltas = of_kind(&format!("response.{kind}.delta"));
        let deltas = deltas.iter().filter(|delta| delta["output_index"] == output_idx);
        let told: String = deltas.map(|delta| delta["delta"].as_str().unwrap()).collect();
        assert_eq!(told, output[output_idx][field].as_str().unwrap());
    }
    assert_eq!((&output[1]["name"], &output[1]["namespace"]), (&json!("search"), &json!("web")));
    assert_eq!((&output[2]["type"], &output[2]["name"]), (&json!("custom_tool_call"), &json!("note")));
    // A plain answer has the same content.
    let mut body = body;
    body["stream"] = false.into();
    let whole = respond(&pod, body).await.json();
    assert_eq!(&whole["output"], output);
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_incomplete() {
    let pod = start("").await;
    let body = |stream: bool| json!({"input": "hi", "max_output_tokens": 2, "stream": stream});
    let whole = respond(&pod, body(false)).await.json();
    assert_eq!(
        (&whole["status"], &whole["output"][0]["status"]),
        (&json!("incomplete"), &json!("incomplete"))
    );
    assert_eq!(
        (&whole["incomplete_details"]["reason"], &whole["max_output_tokens"]),
        (&json!("max_output_tokens"), &json!(2))
    );
    let events = respond(&pod, body(true)).await.events();
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["status"]),
        (&json!("response.incomplete"), &json!("incomplete"))
    );
    assert_eq!(last["response"]["output"][0]["content"], whole["output"][0]["content"]);
    // A reply that ends by itself is complete.
    let mut body = body(false);
    body["max_output_tokens"] = Value::Null;
    assert_eq!(respond(&pod, body).await.json()["status"], "completed");
}

#[tokio::test]
async fn what_cannot_be_served_is_refused() {
    let pod = start(TOOLS).await;
    let named = |name: &str| json!({"type": "function", "name": name});
    let grammar = json!({"type": "custom", "name": "p", "format": {"type": "grammar", "syntax": "lark", "definition": "a"}});
    let cases = [
        (json!({}), "'loc': 'body.input', 'msg': 'Field required'"),
        (json!({"input": 3}), "body.input"),
        (json!({"input": ["x"]}), "body.input.0"),
        (json!({"input": [{"role": "king", "content": "x"}]}), "body.input.0.role"),
        (
            json!({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}),
            "body.input.0.call_id",
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "c", "output": 8}]}),
            "body.input.0.output",
        ),
        (json!({"input": [{"type": "reasoning"}]}), "body.input.0.summary"),
        (
            json!({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}),
            "Encrypted content is not",
        ),
        (
            json!({"input": [{"type": "item_reference", "id": "x"}]}),
            "Unsupported input item type: item_reference",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}),
            "Unsupported chat content part type",
        ),
        (json!({"input": "x", "tools": [{"type": "function"}]}), "body.tools.0.name"),
        (json!({"input": "x", "tools": [{"type": "fun", "name": "f"}]}), "body.tools.0.type"),
        (json!({"input": "x", "tools": [grammar]}), "Custom tools with a grammar format are not supported"),
        (json!({"input": "x", "tools": [], "tool_choice": "required"}), "must be specified with 'tools'"),
        (json!({"input": "x", "tools": [weather()], "tool_choice": named("other")}), "not found in 'tools'"),
        (
            json!({"input": "x", "tools": [{"type": "web_search"}], "tool_choice": "required"}),
            "no function tool",
        ),
        (json!({"input": "x", "prompt": {"id": "p"}}), "prompt template is not supported"),
        (json!({"input": "x", "background": true}), "does not support the background mode"),
        (json!({"input": "x", "background": true, "store": false}), "only be used when `store` is true"),
        (json!({"input": "x", "max_output_tokens": 9000}), "max_output_tokens=9000 cannot be greater"),
    ];
    for (body, words) in cases {
        let answer = pod.post("/v1/responses", body.to_string()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(answer.body.contains(words), "{body}: {}", answer.body);
    }
    let not_found = "\"message\":\"Response with id 'resp_x' not found.\"";
    let previous = pod.post("/v1/responses", r#"{"input":"x","previous_response_id":"resp_x"}"#).await;
    let cancelled = pod.post("/v1/responses/resp_x/cancel", "").await;
    for answer in [previous, pod.get("/v1/responses/resp_x").await, cancelled] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert!(answer.body.contains(not_found), "{}", answer.body);
    }
    let older = start("--vllm-version 0.8").await;
    assert_eq!(older.post("/v1/responses", r#"{"input":"x"}"#).await.status, StatusCode::NOT_FOUND);
}
