//! Shares of prompts that requests have in common: text that the engine renders differently ends the common prefix, and
//! text that it renders alike continues it, whatever the API.

use bytes::Bytes;
use ext_proc::body::{Api, BodyScanner};
use prefix_index::chain::{Chain, ChainSeed};
use prefix_index::schedule::bytes_in_blocks;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{prop_assert_eq, proptest};
use serde_json::{Value, json};

const SEED: ChainSeed<'_> = ChainSeed { target_model: "m", adapter: None, cache_salt: None };

/// About `n_bytes` of words that share nothing with the words of another tag.
fn words(tag: &str, n_bytes: usize) -> String {
    (0..)
        .map(|n| format!("{tag}{n} stands beside the {tag} gate. "))
        .scan(0, |sum, words| {
            *sum += words.len();
            (*sum <= n_bytes).then_some(words)
        })
        .collect()
}

fn user(content: impl Into<Value>) -> Value {
    json!({"role": "user", "content": content.into()})
}

fn system(content: impl Into<Value>) -> Value {
    json!({"role": "system", "content": content.into()})
}

fn tool(tag: &str) -> Value {
    let parameters = json!({"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]});
    json!({"type": "function", "function": {"name": tag, "description": words(tag, 1000), "parameters": parameters}})
}

/// A question, an assistant's call with these arguments, its result, and another question.
fn tool_loop(arguments: &str, result: &str) -> Value {
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}});
    json!([
        user(words("ask", 1000)),
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
        user("And now?"),
    ])
}

/// The chains of the body's prompts, read in chunks of `size`.
fn chains(api: Api, text: &str, size: usize) -> Vec<Chain> {
    let mut scanner = BodyScanner::new(api);
    let chunks: Vec<Bytes> = text.as_bytes().chunks(size).map(Bytes::copy_from_slice).collect();
    for chunk in &chunks {
        scanner.push(chunk).unwrap();
    }
    let prompts = scanner.finish(&chunks).unwrap().prompts.unwrap_or_else(|error| panic!("{error}: {text}"));
    prompts.into_iter().map(|prompt| prompt.chain.finish(&SEED)).collect()
}

/// The chain of a body with one prompt; asserts that it is the same for every cut and every order of the body's fields.
fn chain(api: Api, body: &Value) -> Chain {
    let object = body.as_object().unwrap();
    let mut fields: Vec<String> = object.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
    let in_order = format!("{{{}}}", fields.join(", "));
    fields.reverse();
    let reversed = format!("{{{}}}", fields.join(",\n"));
    let mut all = [(&in_order, usize::MAX), (&in_order, 7), (&reversed, 1000), (&reversed, 1)]
        .map(|(text, size)| chains(api, text, size.min(text.len())));
    assert!(all.iter().all(|chains| *chains == all[0]), "{body}");
    assert_eq!(all[0].len(), 1, "{body}");
    all[0].remove(0)
}

/// Share of the prompt of `b` that is cached after `a`.
fn share(a: &Chain, b: &Chain) -> f64 {
    let n_shared = a.hashes().iter().zip(b.hashes()).take_while(|(a, b)| a == b).count();
    let n_bytes = |n_blocks: u32| f64::from(u32::try_from(bytes_in_blocks(n_blocks)).unwrap());
    n_bytes(u32::try_from(n_shared).unwrap()) / n_bytes(b.n_blocks())
}

/// Two bodies and the share of bytes that they have in common: within these bounds as they are, and outside of them
/// without `field`, which shows that the field is hashed.
struct Row {
    api: Api,
    a: Value,
    b: Value,
    shared: std::ops::RangeInclusive<f64>,
    /// Field to remove from both, as a JSON pointer.
    field: &'static str,
}

fn check(rows: Vec<Row>) {
    for Row { api, mut a, mut b, shared, field } in rows {
        let found = share(&chain(api, &a), &chain(api, &b));
        assert!(shared.contains(&found), "{field}: {found} of {b} after {a}");
        for body in [&mut a, &mut b] {
            let (parent, key) = field.rsplit_once('/').unwrap();
            match body.pointer_mut(parent).unwrap() {
                Value::Object(object) => drop(object.remove(key)),
                Value::Array(array) => drop(array.remove(key.parse().unwrap())),
                other => panic!("{other} has no {key}"),
            }
        }
        let without = share(&chain(api, &a), &chain(api, &b));
        assert!(!shared.contains(&without), "{field}: {without} without it");
    }
}

fn chat(messages: Value, field: &str, value: Value) -> Value {
    let mut body = json!({"model": "m", "messages": messages});
    body.as_object_mut().unwrap().insert(field.to_owned(), value);
    body
}

#[test]
fn tools_stand_between_the_system_message_and_the_others() {
    let messages = |question: &str| json!([system(words("sys", 1000)), user(words(question, 1000))]);
    let (one, other) = (json!([tool("one")]), json!([tool("other")]));
    check(vec![
        // Nearly everything is shared; without the tools, half.
        Row {
            api: Api::Chat,
            a: chat(messages("x"), "tools", one.clone()),
            b: chat(messages("y"), "tools", one.clone()),
            shared: 0.6..=0.8,
            field: "/tools",
        },
        // The system message is shared; without the tools, everything.
        Row {
            api: Api::Chat,
            a: chat(messages("x"), "tools", one.clone()),
            b: chat(messages("x"), "tools", other.clone()),
            shared: 0.2..=0.45,
            field: "/tools",
        },
        Row {
            api: Api::Chat,
            a: chat(messages("x"), "tools", json!([tool("one"), tool("other")])),
            b: chat(messages("x"), "tools", json!([tool("one"), tool("third")])),
            shared: 0.45..=0.65,
            field: "/tools/1",
        },
        Row {
            api: Api::Responses,
            a: json!({"model": "m", "input": words("x", 1000), "tools": [tool("one")["function"]]}),
            b: json!({"model": "m", "input": words("x", 1000), "tools": [tool("other")["function"]]}),
            shared: 0.0..=0.1,
            field: "/tools",
        },
        Row {
            api: Api::Messages,
            a: json!({"model": "m", "messages": [user(words("x", 1000))], "tools": [tool("one")["function"]]}),
            b: json!({"model": "m", "messages": [user(words("x", 1000))], "tools": [tool("other")["function"]]}),
            shared: 0.0..=0.1,
            field: "/tools",
        },
    ]);
}

#[test]
fn instructions_come_first() {
    let respond = |instructions: &str, input: &str| json!({"model": "m", "instructions": words(instructions, 2000), "input": words(input, 500)});
    let message = |system: &str, text: &str| {
        let blocks = json!([{"type": "text", "text": words(system, 2000)}]);
        json!({"model": "m", "system": blocks, "messages": [user(words(text, 500))]})
    };
    check(vec![
        Row {
            api: Api::Responses,
            a: respond("same", "x"),
            b: respond("same", "y"),
            shared: 0.7..=0.95,
            field: "/instructions",
        },
        Row {
            api: Api::Responses,
            a: respond("one", "x"),
            b: respond("other", "x"),
            shared: 0.0..=0.1,
            field: "/instructions",
        },
        Row {
            api: Api::Messages,
            a: message("same", "x"),
            b: message("same", "y"),
            shared: 0.7..=0.95,
            field: "/system",
        },
        Row {
            api: Api::Messages,
            a: message("one", "x"),
            b: message("other", "x"),
            shared: 0.0..=0.1,
            field: "/system",
        },
    ]);
}

#[test]
fn calls_and_their_results_are_part_of_the_conversation() {
    let arguments = |tag: &str| format!(r#"{{"q": "{}"}}"#, words(tag, 1000));
    let call = |arguments: &str| json!({"model": "m", "messages": tool_loop(arguments, &words("res", 1000))});
    let result = |tag: &str| json!({"model": "m", "messages": tool_loop("{}", &words(tag, 1000))});
    let items = |arguments: &str, output: &str| {
        json!({"model": "m", "input": [user(words("ask", 1000)),
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": arguments},
            {"type": "function_call_output", "call_id": "c1", "output": output}]})
    };
    let blocks = |input: &str, result: &str| {
        json!({"model": "m", "messages": [user(words("ask", 1000)),
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"q": input}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": result}]}]})
    };
    let field = "/messages/1/tool_calls/0/function/arguments";
    let first_third = 0.3..=0.45;
    let first_half = 0.45..=0.6;
    check(vec![
        Row {
            api: Api::Chat,
            a: call(&arguments("one")),
            b: call(&arguments("other")),
            shared: first_third.clone(),
            field,
        },
        Row {
            api: Api::Chat,
            a: result("one"),
            b: result("other"),
            shared: first_half.clone(),
            field: "/messages/2",
        },
        Row {
            api: Api::Responses,
            a: items(&arguments("one"), ""),
            b: items(&arguments("other"), ""),
            shared: first_half.clone(),
            field: "/input/1",
        },
        Row {
            api: Api::Responses,
            a: items("{}", &words("one", 1000)),
            b: items("{}", &words("other", 1000)),
            shared: first_half.clone(),
            field: "/input/2",
        },
        Row {
            api: Api::Messages,
            a: blocks(&words("one", 1000), ""),
            b: blocks(&words("other", 1000), ""),
            shared: first_half.clone(),
            field: "/messages/1",
        },
        Row {
            api: Api::Messages,
            a: blocks("", &words("one", 1000)),
            b: blocks("", &words("other", 1000)),
            shared: first_half,
            field: "/messages/2",
        },
    ]);
}

#[test]
fn images_audio_and_video_are_known_by_what_they_are() {
    let body = |part: Value| {
        let parts = json!([{"type": "text", "text": words("before", 1000)}, part,
            {"type": "text", "text": words("behind", 1000)}]);
        json!({"model": "m", "messages": [user(parts)]})
    };
    let parts = |id: &str| {
        [
            json!({"type": "image_url", "image_url": {"url": format!("https://x/{id}.png"), "detail": "low"}}),
            json!({"type": "image_url", "image_url": format!("https://x/{id}.png")}),
            json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{id}")}}),
            json!({"type": "input_audio", "input_audio": {"data": id, "format": "wav"}}),
            json!({"type": "video_url", "video_url": {"url": format!("https://x/{id}.mp4")}}),
            json!({"type": "image_url", "image_url": null, "uuid": id}),
            json!({"type": "hologram", "waves": {"x": [id, 1.5, null]}}),
        ]
    };
    for (one, other) in parts("one").into_iter().zip(parts("other")) {
        let (a, b) = (body(one), body(other));
        assert_eq!(share(&chain(Api::Chat, &a), &chain(Api::Chat, &a)), 1.0);
        check(vec![Row { api: Api::Chat, a, b, shared: 0.35..=0.5, field: "/messages/0/content/1" }]);
    }
    // The level of detail and the form in which the URL is written do not change the prompt.
    let [image, plain, ..] = parts("one");
    assert_eq!(chain(Api::Chat, &body(image)), chain(Api::Chat, &body(plain)));
    // An image counts as many words: two short questions about it share most of their prompts.
    let ask = |question: &str| {
        let image = json!({"type": "image_url", "image_url": {"url": "https://x/y.png"}});
        json!({"model": "m", "messages": [user(json!([image, {"type": "text", "text": words(question, 200)}]))]})
    };
    assert!(share(&chain(Api::Chat, &ask("one")), &chain(Api::Chat, &ask("other"))) > 0.6);
}

#[test]
fn reasoning_is_shown_behind_the_last_question_only() {
    let body = |name: &str, tag: &str, behind: Value| {
        let mut messages = vec![user(words("ask", 1000)), json!({"role": "assistant", "content": "Well."})];
        messages[1].as_object_mut().unwrap().insert(name.to_owned(), words(tag, 1000).into());
        messages.push(behind);
        json!({"model": "m", "messages": messages})
    };
    for name in ["reasoning", "reasoning_content"] {
        let result = || json!({"role": "tool", "tool_call_id": "c", "content": "8"});
        let (a, b) = (body(name, "one", result()), body(name, "other", result()));
        let field: &str =
            if name == "reasoning" { "/messages/1/reasoning" } else { "/messages/1/reasoning_content" };
        check(vec![Row { api: Api::Chat, a, b, shared: 0.4..=0.6, field }]);
        let (a, b) = (body(name, "one", user("Go on.")), body(name, "other", user("Go on.")));
        assert_eq!(chain(Api::Chat, &a), chain(Api::Chat, &b));
    }
    let items = |tag: &str| {
        let reasoning = json!({"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": words(tag, 1000)}]});
        json!({"model": "m", "input": [user(words("ask", 1000)), reasoning]})
    };
    check(vec![Row {
        api: Api::Responses,
        a: items("one"),
        b: items("other"),
        shared: 0.4..=0.6,
        field: "/input/1",
    }]);
}

#[test]
fn options_change_the_prompt_where_templates_use_them() {
    let messages = || json!([user(words("ask", 1000))]);
    // A chat template in the request changes everything.
    check(vec![Row {
        api: Api::Chat,
        a: chat(messages(), "chat_template", "{{ one }}".into()),
        b: chat(messages(), "chat_template", "{{ other }}".into()),
        shared: 0.0..=0.05,
        field: "/chat_template",
    }]);
    for (field, pointer, one, other) in [
        (
            "chat_template_kwargs",
            "/chat_template_kwargs",
            json!({"enable_thinking": true}),
            json!({"enable_thinking": false}),
        ),
        ("reasoning_effort", "/reasoning_effort", json!("low"), json!("high")),
        ("documents", "/documents", json!([{"text": "a"}]), json!([{"text": "b"}])),
        ("add_generation_prompt", "/add_generation_prompt", json!(true), json!(false)),
        ("continue_final_message", "/continue_final_message", json!(true), json!(false)),
    ] {
        check(vec![Row {
            api: Api::Chat,
            a: chat(messages(), field, one),
            b: chat(messages(), field, other),
            shared: 0.9..=0.995,
            field: pointer,
        }]);
    }
    // Fields that are not rendered change nothing.
    let plain = chain(Api::Chat, &json!({"model": "m", "messages": messages()}));
    for (field, value) in [
        ("tool_choice", json!("none")),
        ("response_format", json!({"type": "json_object"})),
        ("functions", json!([{"name": "f"}])),
        ("temperature", json!(0.5)),
        ("tools", json!([])),
        ("tools", json!(null)),
        ("chat_template_kwargs", json!(null)),
    ] {
        assert_eq!(chain(Api::Chat, &chat(messages(), field, value)), plain, "{field}");
    }
}

#[test]
fn spaces_and_escapes_in_tools_and_calls_make_no_difference() {
    let arguments = [
        r#"{"q": "caf\u00e9 \"x\"", "n": [1, -2.5e3, true, null]}"#,
        r#"{"q":"café \"x\"","n":[1,-2.5e3,true,null]}"#,
    ];
    let texts = arguments.map(|arguments| {
        let call = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]);
        format!(
            r#"{{"model":"m","tools":[{{"type":"function","function":{{"name":"f","parameters":{arguments}}}}}],
            "messages":[{{"role":"user","content":"hi"}},{{"role":"assistant","tool_calls":{call}}}]}}"#
        )
    });
    assert_eq!(chains(Api::Chat, &texts[0], 1000), chains(Api::Chat, &texts[1], 1));
    // Control: other values change it.
    let other = texts[1].replace("-2.5e3", "-2.5e4");
    assert_ne!(chains(Api::Chat, &texts[0], 1000), chains(Api::Chat, &other, 1000));
}

#[test]
fn escapes_in_keys_and_brackets_in_texts_make_no_difference() {
    let plain = r#"{"model":"m","messages":[{"role":"assistant","content":"a } ] , : \" b","weight":[1.5 ,{"content":"no"}, -2e3],
        "tool_calls":[{"type":"function","function":{"name":"f","arguments":"{\"n\": [1]}"}}]},{"role":"user","content":"hi \\"}]}"#;
    let escaped = plain
        .replace(r#""content":"a"#, r#""c\u006fntent":"a"#)
        .replace(r#""tool_calls""#, r#""tool\u005fcalls""#)
        .replace(r#""function":{"#, r#""\u0066unction":{"#);
    let expected = chains(Api::Chat, plain, plain.len());
    for size in [1, 7, 1000] {
        assert_eq!(chains(Api::Chat, &escaped, size), expected, "chunks of {size} bytes");
    }
    // Control: each of the keys counts.
    for key in ["content", "tool_calls", "function"] {
        let other = plain.replace(&format!(r#""{key}":"#), r#""other":"#);
        assert_ne!(chains(Api::Chat, &other, 1000), expected, "{key}");
    }
}

#[test]
fn a_line_that_differs_from_request_to_request_is_left_out() {
    let header = |n: u32| format!("x-anthropic-billing-header: cc_version=2.1.{n}; cch={n:05x};");
    let blocks = |n: u32| {
        json!({"model": "m", "messages": [user("hi")],
            "system": [{"type": "text", "text": header(n)}, {"type": "text", "text": words("sys", 500)}]})
    };
    assert_eq!(chain(Api::Messages, &blocks(1)), chain(Api::Messages, &blocks(2)));
    let chat = |n: u32| json!({"model": "m", "messages": [system(header(n) + "\n" + &words("sys", 500)), user("hi")]});
    assert_eq!(chain(Api::Chat, &chat(1)), chain(Api::Chat, &chat(2)));
    // Control: in a user's message it stays.
    let user = |n: u32| json!({"model": "m", "messages": [user(header(n) + "\n" + &words("ask", 500))]});
    assert_ne!(chain(Api::Chat, &user(1)), chain(Api::Chat, &user(2)));
}

#[test]
fn the_same_conversation_is_the_same_prompt_in_every_api() {
    let (sys, ask) = (words("sys", 500), words("ask", 500));
    let parameters = json!({"type": "object", "properties": {"q": {"type": "string"}}});
    let tool = json!({"name": "f", "description": "finds", "parameters": parameters});
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"q\":\"x\"}"}});
    let chat = json!({"model": "m", "tools": [{"type": "function", "function": tool}], "messages": [
        system(sys.as_str()), user(ask.as_str()),
        {"role": "assistant", "reasoning": "Hm.", "content": "Let me see.", "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"}]});
    let flat = json!({"type": "function", "name": "f", "description": "finds", "parameters": parameters, "strict": null});
    let item = |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{\"q\": \"x\"}"});
    let responses = json!({"model": "m", "instructions": sys, "tools": [flat, {"type": "web_search"}], "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": ask}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "status": "completed", "id": "i",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]},
        item("c1"), item("c2"),
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]}]});
    let schema = json!({"name": "f", "description": "finds", "input_schema": parameters});
    let block = |id: &str| json!({"type": "tool_use", "id": id, "name": "f", "input": {"q": "x"}});
    let messages = json!({"model": "m", "system": sys, "tools": [schema], "max_tokens": 9, "messages": [
        user(ask.as_str()),
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": "Let me see."}, block("c1"), block("c2")]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
            {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "two"}]}]}]});
    let expected = chain(Api::Chat, &chat);
    assert_eq!(chain(Api::Responses, &responses), expected);
    assert_eq!(chain(Api::Messages, &messages), expected);
    assert_eq!(chain(Api::Invocations, &chat), expected);
    // An image given by its data equals one given by a data URL.
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}});
    let source =
        json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}});
    assert_eq!(
        chain(Api::Chat, &json!({"model": "m", "messages": [user(json!([image]))]})),
        chain(Api::Messages, &json!({"model": "m", "messages": [user(json!([source]))]})),
    );
}

#[test]
fn developers_speak_as_the_system_and_in_front() {
    let messages = |role: &str| json!([{"role": role, "content": words("dev", 500)}, user(words("ask", 500)), {"role": role, "content": "Stop."}]);
    let developer = json!({"model": "m", "messages": messages("developer")});
    let merged = json!({"model": "m", "messages": [
        system(words("dev", 500) + "\n\nStop."), user(words("ask", 500))]});
    assert_eq!(chain(Api::Chat, &developer), chain(Api::Chat, &merged));
    // Control: system messages stay where they are.
    assert_ne!(
        chain(Api::Chat, &json!({"model": "m", "messages": messages("system")})),
        chain(Api::Chat, &merged)
    );
}

#[test]
fn a_prompt_of_an_array_is_known_alone() {
    let prompts = [words("one", 500), words("other", 500)];
    let both = json!({"model": "m", "prompt": prompts}).to_string();
    let both = chains(Api::Completions, &both, both.len());
    let alone = prompts.map(|prompt| chain(Api::Completions, &json!({"model": "m", "prompt": prompt})));
    assert_eq!(both, alone);
}

fn content() -> impl Strategy<Value = Value> {
    let text =
        || prop_oneof![any::<String>(), Just("x-anthropic-billing-".to_owned()), Just(words("w", 300))];
    let part = prop_oneof![
        text().prop_map(Value::from),
        text().prop_map(|text| json!({"type": "text", "text": text})),
        text().prop_map(
            |text| json!({"text": text, "type": "input_text", "cache_control": {"type": "ephemeral"}})
        ),
        Just(json!({"type": "text"})),
    ];
    prop_oneof![
        text().prop_map(Value::from),
        Just(Value::Null),
        proptest::collection::vec(part, 0..4).prop_map(Value::from),
    ]
}

fn message() -> impl Strategy<Value = Value> {
    let role = prop_oneof![Just("system"), Just("user"), Just("assistant"), Just("tool")];
    let name = prop_oneof![
        Just(Value::Null),
        any::<String>().prop_map(Value::from),
        Just(json!([{"content": "no"}]))
    ];
    // The role comes first, as clients write it: otherwise the chat is not hashed as it arrives.
    (role, content(), name).prop_map(|(role, content, name)| json!([role, content, name]))
}

proptest! {
    /// A chat is hashed as it arrives, or read again because of a field besides its messages: the text is the same.
    #[test]
    fn what_is_hashed_at_once_and_what_is_read_again_are_the_same(
        messages in proptest::collection::vec(message(), 1..6), size in 1..80_usize
    ) {
        let texts: Vec<String> = messages
            .iter()
            .map(|message| format!(r#"{{"role":{},"content":{},"name":{}}}"#, message[0], message[1], message[2]))
            .collect();
        let body = |more: &str| format!(r#"{{"messages":[{}],{more}"model":"m"}}"#, texts.join(","));
        let at_once = chains(Api::Chat, &body(""), size);
        let read_again = chains(Api::Chat, &body("\"tools\":[],"), size);
        prop_assert_eq!(at_once, read_again);
    }
}
