//! Constraints and tool calls: what is parsed, what is rejected, and what a stream of pieces becomes.

use mock_vllm::structured::constraint::Constraint;
use mock_vllm::structured::tools::reply::{Syntax, ToolReply};
use mock_vllm::structured::tools::stream::{ToolCallStream, ToolDelta};
use mock_vllm::structured::tools::{LastMessage, ToolRequest};
use proptest::prelude::{any, prop_assert_eq, proptest};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use vllm_text::tokens::Tokenizer;

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(11)
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn weather_body(choice: Value) -> Map<String, Value> {
    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Zürich"]}, "days": {"type": "integer", "minimum": 1, "maximum": 1}},
            "required": ["city", "days"]}}})
    };
    object(json!({"tools": [tool("get_weather"), tool("get_time")], "tool_choice": choice}))
}

fn decide(body: &Map<String, Value>, text: &str, syntax: Syntax) -> Option<ToolReply> {
    let request = ToolRequest::parse(body).unwrap().unwrap();
    request.decide(LastMessage::User(text), syntax, &mut rng()).unwrap()
}

fn names(reply: Option<ToolReply>) -> Vec<String> {
    reply.map_or(Vec::new(), |reply| reply.tool_calls().into_iter().map(|call| call.function.name).collect())
}

/// Returns what a client puts together: the content, and name and arguments of each call.
fn collect(deltas: &[ToolDelta]) -> (String, Vec<(String, String)>) {
    let mut content = String::new();
    let mut calls: Vec<(String, String)> = Vec::new();
    for delta in deltas {
        content.extend(delta.content.as_deref());
        for call in &delta.tool_calls {
            assert_eq!(call.id.is_some(), call.function.name.is_some());
            if let Some(name) = &call.function.name {
                assert_eq!(call.index, calls.len());
                calls.push((name.clone(), String::new()));
            }
            calls[call.index].1.extend(call.function.arguments.as_deref());
        }
    }
    (content, calls)
}

#[track_caller]
fn check_constraint_refused(body: Value, expected: &str, param: Option<&str>) {
    let error = Constraint::parse(&object(body)).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.param()), (expected, param));
}

#[track_caller]
fn check_tools_refused(body: Value, expected: &str, param: &str) {
    let error = ToolRequest::parse(&object(body)).unwrap_err();
    assert_eq!((error.to_string().as_str(), error.param()), (expected, Some(param)));
}

#[test]
fn free_text_has_no_constraint() {
    for body in [
        json!({}),
        json!({"response_format": null}),
        json!({"response_format": {"type": "text"}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
        json!({"structured_outputs": null, "guided_json": null}),
    ] {
        assert!(Constraint::parse(&object(body)).unwrap().is_none());
    }
}

#[test]
fn constrained_text_has_its_shape() {
    let text = |body: Value| Constraint::parse(&object(body)).unwrap().unwrap().generate(&mut rng()).unwrap();
    let any_object: Value =
        serde_json::from_str(&text(json!({"response_format": {"type": "json_object"}}))).unwrap();
    assert!(any_object.is_object_and_small());
    let schema = json!({"type": "object", "properties": {"a": {"const": [1, 2]}, "b": {"const": "x"}}, "required": ["a", "b"]});
    let expected = r#"{"a": [1, 2], "b": "x"}"#;
    assert_eq!(
        text(
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}}})
        ),
        expected
    );
    assert_eq!(text(json!({"structured_outputs": {"json": schema}})), expected);
    assert_eq!(text(json!({"guided_json": schema.to_string()})), expected);
    assert_eq!(text(json!({"guided_json": schema, "response_format": {"type": "json_object"}})), expected);
    assert_eq!(text(json!({"guided_choice": ["yes"]})), "yes");
    assert_eq!(text(json!({"structured_outputs": {"choice": ["no"]}})), "no");
    let accepts = |body: Value, text: &str| Constraint::parse(&object(body)).unwrap().unwrap().accepts(text);
    assert!(
        accepts(json!({"guided_json": schema}), expected) && !accepts(json!({"guided_json": schema}), "{}")
    );
    assert!(accepts(json!({"guided_choice": ["a"]}), "a") && !accepts(json!({"guided_choice": ["a"]}), "ab"));
    assert!(accepts(json!({"guided_regex": "a+"}), "aa") && !accepts(json!({"guided_regex": "a+"}), "aab"));
    let matched = text(json!({"structured_outputs": {"regex": "[a-z]{3}|\\d{2}"}}));
    assert!(regex::Regex::new("^([a-z]{3}|[0-9]{2})$").unwrap().is_match(&matched), "{matched}");
}

trait Small {
    fn is_object_and_small(&self) -> bool;
}

impl Small for Value {
    fn is_object_and_small(&self) -> bool {
        self.as_object().is_some_and(|fields| (1..=3).contains(&fields.len()))
    }
}

#[test]
fn bad_constraints_are_refused_with_vllms_texts() {
    check_constraint_refused(
        json!({"response_format": {"type": "json_schema"}}),
        "When response_format type is 'json_schema', the 'json_schema' field must be provided.",
        Some("response_format"),
    );
    check_constraint_refused(
        json!({"structured_outputs": {"json": {}, "regex": "a"}}),
        "You can only use one kind of constraints for structured outputs ('json', 'regex' or 'choice').",
        None,
    );
    check_constraint_refused(
        json!({"guided_json": {}, "guided_choice": ["a"]}),
        "You can only use one kind of guided decoding ('guided_json', 'guided_regex' or 'guided_choice').",
        None,
    );
    check_constraint_refused(
        json!({"structured_outputs": {"json": {}}, "tool_choice": {"type": "function"}}),
        "You can only either use constraints for structured outputs or tools, not both.",
        None,
    );
    check_constraint_refused(json!({"guided_choice": []}), "Choice '[]' cannot be an empty list", None);
    check_constraint_refused(json!({"guided_json": "{"}), "Invalid JSON grammar specification.", None);
    check_constraint_refused(
        json!({"guided_json": {"properties": {"a": {"if": {}}}}}),
        "Failed to transform json schema into a grammar: #/properties/a: keyword if is not supported",
        None,
    );
    check_constraint_refused(
        json!({"guided_regex": "(?!a)b"}),
        "Failed to transform regex into a grammar: look-around, including look-ahead and look-behind, is not supported",
        None,
    );
    check_constraint_refused(
        json!({"response_format": {"type": "xml"}}),
        "response_format type \"xml\" is not supported by this server",
        Some("response_format"),
    );
}

#[test]
fn no_tool_request_without_tools_or_choice() {
    let is_none = |body: Value| ToolRequest::parse(&object(body)).unwrap().is_none();
    assert!(is_none(json!({})));
    assert!(is_none(json!({"tools": null, "tool_choice": null})));
    assert!(is_none(json!({"tool_choice": "none"})));
    assert!(ToolRequest::parse(&weather_body(json!("none"))).unwrap().is_none());
    assert!(ToolRequest::parse(&weather_body(Value::Null)).unwrap().is_some());
}

#[test]
fn bad_tools_are_refused_with_vllms_texts() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let usage = "Correct usage: `{\"type\": \"function\", \"function\": {\"name\": \"my_function\"}}`";
    check_tools_refused(
        json!({"tools": []}),
        "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.",
        "tools",
    );
    check_tools_refused(
        json!({"tool_choice": "auto"}),
        "When using `tool_choice`, `tools` must be set.",
        "tool_choice",
    );
    check_tools_refused(
        json!({"tools": tools, "tool_choice": "any"}),
        "Invalid value for `tool_choice`: any! Only named tools, \"none\", \"auto\" or \"required\" are supported.",
        "tool_choice",
    );
    check_tools_refused(
        json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "g"}}}),
        "The tool specified in `tool_choice` does not match any of the specified `tools`",
        "tool_choice",
    );
    check_tools_refused(
        json!({"tools": tools, "tool_choice": {"type": "function"}}),
        &format!("Invalid value for `function`: `None` in `tool_choice`! {usage}"),
        "tool_choice.function",
    );
    check_tools_refused(
        json!({"tools": tools, "tool_choice": {"function": {}}}),
        &format!("Expected field `name` in `function` in `tool_choice`! {usage}"),
        "tool_choice.function.name",
    );
    check_tools_refused(
        json!({"tools": [{"type": "custom"}]}),
        "tools.0: only tools of type `function` are supported",
        "tools",
    );
}

#[test]
fn auto_calls_the_tools_that_the_user_names() {
    let auto = weather_body(json!("auto"));
    let called = |text: &str| names(decide(&auto, text, Syntax::Hermes));
    assert_eq!(called("Please use get_weather for Paris."), ["get_weather"]);
    assert_eq!(called("GET_TIME, then `get_weather`"), ["get_time", "get_weather"]);
    assert!(called("What is the weather?").is_empty());
    assert!(called("forget_weather get_weather_now get-time").is_empty());
    let request = ToolRequest::parse(&auto).unwrap().unwrap();
    assert!(request.decide(LastMessage::Other, Syntax::Hermes, &mut rng()).unwrap().is_none());
    let mut single = auto;
    single.insert("parallel_tool_calls".to_owned(), false.into());
    assert_eq!(names(decide(&single, "get_time and get_weather", Syntax::Hermes)), ["get_time"]);
}

#[test]
fn required_and_named_always_call() {
    assert_eq!(names(decide(&weather_body(json!("required")), "hello", Syntax::Hermes)).len(), 1);
    assert_eq!(names(decide(&weather_body(json!("required")), "get_time!", Syntax::Hermes)), ["get_time"]);
    let named = weather_body(json!({"type": "function", "function": {"name": "get_time"}}));
    assert_eq!(names(decide(&named, "get_weather", Syntax::Hermes)), ["get_time"]);
}

#[test]
fn a_call_has_the_models_text_and_the_apis_form() {
    let reply = decide(&weather_body(json!("auto")), "get_weather and get_time", Syntax::Hermes).unwrap();
    let [first, second] = reply.tool_calls().try_into().unwrap();
    let arguments: Value = serde_json::from_str(&first.function.arguments).unwrap();
    assert_eq!(arguments["days"], 1);
    assert_eq!(
        reply.text(),
        format!(
            "<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {}}}\n</tool_call>\n\
             <tool_call>\n{{\"name\": \"get_time\", \"arguments\": {}}}\n</tool_call>",
            first.function.arguments, second.function.arguments
        )
    );
    let wire = serde_json::to_string(&first).unwrap();
    let id = first.id.strip_prefix("chatcmpl-tool-").unwrap();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    assert!(
        wire.starts_with(&format!(
            r#"{{"id":"{}","type":"function","function":{{"name":"get_weather","arguments":"{{\"#,
            first.id
        )),
        "{wire}"
    );
    assert_ne!(first.id, second.id);
    let message = reply.message(reply.text());
    assert_eq!((message.content, message.tool_calls.len()), (None, 2));
}

#[test]
fn a_reply_that_is_cut_off_within_a_call_is_text() {
    let reply = decide(&weather_body(json!("auto")), "get_weather", Syntax::Hermes).unwrap();
    let cut = &reply.text()[..reply.text().len() - 20];
    let message = reply.message(cut);
    assert_eq!((message.content.as_deref(), message.tool_calls.len()), (Some(cut), 0));
    // The closing tag may be missing: the JSON is whole.
    let untagged = reply.text().strip_suffix("\n</tool_call>").unwrap();
    assert_eq!(reply.message(untagged).tool_calls, reply.tool_calls());
}

#[test]
fn guided_choices_write_json_without_tags() {
    let named = weather_body(json!({"type": "function", "function": {"name": "get_time"}}));
    let reply = decide(&named, "", Syntax::GuidedChoice).unwrap();
    assert_eq!(reply.text(), reply.tool_calls()[0].function.arguments);
    assert_eq!(reply.message(reply.text()).tool_calls, reply.tool_calls());
    let reply = decide(&weather_body(json!("required")), "get_time", Syntax::GuidedChoice).unwrap();
    let list: Value = serde_json::from_str(reply.text()).unwrap();
    assert_eq!(list[0]["name"], "get_time");
    assert_eq!(list[0]["parameters"]["days"], 1);
    assert_eq!(reply.message(reply.text()).tool_calls, reply.tool_calls());
    assert!(reply.message("[").tool_calls.is_empty());
}

#[test]
fn scripted_calls_are_read_back() {
    let text = "Let me look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": [1, 2]}}\n</tool_call>";
    let reply = ToolReply::parse(text, &mut rng()).unwrap();
    assert_eq!(reply.text(), text);
    let message = reply.message(text);
    assert_eq!(message.content.as_deref(), Some("Let me look.\n"));
    assert_eq!(message.tool_calls[0].function.arguments, r#"{"x": [1, 2]}"#);
    assert!(ToolReply::parse("no calls", &mut rng()).is_none());
    assert!(ToolReply::parse("<tool_call>\n{\"name\": 1}\n</tool_call>", &mut rng()).is_none());
    assert!(ToolReply::parse("<tool_call>\n{\"name\": \"f\"", &mut rng()).is_none());
}

#[test]
fn a_stream_of_tokens_tells_the_name_first() {
    let reply = decide(&weather_body(json!("auto")), "get_weather", Syntax::Hermes).unwrap();
    let tokenizer = Tokenizer::qwen25();
    let mut detokenizer = tokenizer.detokenizer();
    let mut stream = ToolCallStream::new(Arc::new(reply.clone()));
    assert!(!stream.has_calls());
    let pieces = tokenizer.encode(reply.text()).into_iter().map(|token| detokenizer.push(token));
    let deltas: Vec<ToolDelta> = pieces.filter_map(|piece| stream.push(&piece)).collect();
    let first = serde_json::to_string(&deltas[0]).unwrap();
    let call = &reply.tool_calls()[0];
    assert_eq!(
        first,
        format!(
            r#"{{"tool_calls":[{{"id":"{}","type":"function","index":0,"function":{{"name":"get_weather"}}}}]}}"#,
            call.id
        )
    );
    let second = serde_json::to_string(&deltas[1]).unwrap();
    assert_eq!(second, r#"{"tool_calls":[{"index":0,"function":{"arguments":"{\""}}]}"#);
    assert!(deltas.len() > 6);
    assert_eq!(
        collect(&deltas),
        (String::new(), vec![("get_weather".to_owned(), call.function.arguments.clone())])
    );
    assert!(stream.has_calls());
}

proptest! {
    /// The client gets the same for every way to cut the text into pieces.
    #[test]
    fn any_pieces_add_up(text in "[ -~é\n]{0,20}", value in "[ -~<é]{0,20}", n_calls in 1..4usize, cuts in any::<Vec<u8>>()) {
        let call = format!("<tool_call>\n{}\n</tool_call>", json!({"name": "f", "arguments": {"v": value}}));
        let written = format!("{}{}", text.replace('<', ""), vec![call; n_calls].join("\n"));
        let Some(reply) = ToolReply::parse(&written, &mut rng()) else { return Ok(()) };
        let mut stream = ToolCallStream::new(Arc::new(reply.clone()));
        let mut deltas = Vec::new();
        let mut rest = reply.text();
        for cut in cuts.iter().cycle().take(if cuts.is_empty() { 0 } else { 400 }) {
            let n_chars = usize::from(*cut % 9);
            let end = rest.char_indices().nth(n_chars).map_or(rest.len(), |(offset, _)| offset);
            let (piece, tail) = rest.split_at(end);
            deltas.extend(stream.push(piece));
            rest = tail;
        }
        deltas.extend(stream.push(rest));
        let (content, calls) = collect(&deltas);
        let message = reply.message(reply.text());
        let expected: Vec<_> = message.tool_calls.into_iter().map(|call| (call.function.name, call.function.arguments)).collect();
        prop_assert_eq!(content, message.content.unwrap_or_default());
        prop_assert_eq!(calls, expected);
    }
}
