//! The body scanner: what it reads and what it refuses, for every way to cut the chunks.

use bytes::Bytes;
use ext_proc::body::{Api, BodyError, BodyScanner, MAX_MODEL_NAME, MAX_PROMPTS, RequestBody};
use prefix_index::chain::{Chain, ChainBuilder, ChainSeed};
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::{prop_assert_eq, proptest};
use serde_json::Value;

const SEED: ChainSeed<'_> = ChainSeed { target_model: "m", adapter: None, cache_salt: None };

fn scan(api: Api, chunks: &[&[u8]]) -> Result<RequestBody, BodyError> {
    let mut scanner = BodyScanner::new(api);
    for chunk in chunks {
        scanner.push(chunk)?;
    }
    let chunks: Vec<Bytes> = chunks.iter().map(|chunk| Bytes::copy_from_slice(chunk)).collect();
    scanner.finish(&chunks)
}

fn chain(text: &[u8]) -> Chain {
    let mut builder = ChainBuilder::new();
    builder.push(text);
    builder.finish(&SEED)
}

/// Asserts that `text` is the only prompt of `body`, cut in two anywhere or byte by byte.
fn check_prompt(api: Api, body: &str, text: &[u8]) {
    check_prompts(api, body, &[text]);
}

fn check_prompts(api: Api, body: &str, texts: &[&[u8]]) {
    let bytes = body.as_bytes();
    let mut cuts: Vec<Vec<&[u8]>> = (0..=bytes.len()).map(|at| vec![&bytes[..at], &bytes[at..]]).collect();
    cuts.push(bytes.chunks(1).collect());
    for chunks in cuts {
        let read = scan(api, &chunks).unwrap_or_else(|error| panic!("{error} in {body} as {chunks:?}"));
        let prompts = read.prompts.unwrap_or_else(|error| panic!("{error} in {body} as {chunks:?}"));
        let lengths: Vec<u64> = prompts.iter().map(|prompt| prompt.n_bytes).collect();
        assert_eq!(lengths, texts.iter().map(|text| text.len() as u64).collect::<Vec<_>>(), "{body}");
        for (prompt, text) in prompts.into_iter().zip(texts) {
            assert_eq!(prompt.chain.finish(&SEED), chain(text), "{body} as {chunks:?}");
        }
        let model = read.model.unwrap();
        assert_eq!(model.name, serde_json::from_str::<String>(&body[model.span]).unwrap());
    }
}

fn check_error(api: Api, body: &[u8], expected: BodyError) {
    for size in 1..=body.len().max(1) {
        let chunks: Vec<&[u8]> = body.chunks(size).collect();
        assert_eq!(scan(api, &chunks).unwrap_err(), expected, "chunks of {size}");
    }
}

/// Asserts that the body is read, and has no model or no prompt for the reason `expected`.
fn check_lack(api: Api, body: &[u8], expected: BodyError) {
    for size in 1..=body.len() {
        let read = scan(api, &body.chunks(size).collect::<Vec<_>>()).unwrap();
        let lack = read.model.err().or(read.prompts.err());
        assert_eq!(lack.as_ref(), Some(&expected), "chunks of {size}");
    }
}

#[test]
fn a_chat_is_its_messages_in_order() {
    check_prompt(
        Api::Chat,
        r#"{"messages":[{"role":"system","content":"Be brief, please."},{"content":"Hi\nthere","role":"user"}],"model":"m"}"#,
        b"system: Be brief, please.\nuser: Hi\nthere\n",
    );
}

#[test]
fn parts_are_lines_and_what_has_no_text_is_empty() {
    check_prompt(
        Api::Chat,
        r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"one"},{"text":"","type":"text"},
            "three",{"text":"four","type":"text"}]},{"role":"assistant","content":null,"audio":{"role":"no","content":"no"}},
            {"content":null,"role":"user"},{"role":"user","content":[{"type":"text"},{"type":"text","text":"five"}]}]}"#,
        b"user: one\nthree\nfour\nassistant: \nuser: \nuser: five\n",
    );
}

#[test]
fn escapes_are_undone() {
    check_prompt(
        Api::Chat,
        r#"{"model":"\u006d\/","messages":[{"role":"user","content":"\"\\\/\b\f\n\r\té \u00e9 \ud83d\ude00 \ud83d. \ud83d\n\ude00 \ud83d\ud83d\ude00"}]}"#,
        "user: \"\\/\u{8}\u{c}\n\r\té é 😀 \u{fffd}. \u{fffd}\n\u{fffd} \u{fffd}😀\n".as_bytes(),
    );
}

#[test]
fn a_completion_is_its_prompt() {
    check_prompt(Api::Completions, r#"{"model":"m","prompt":"Once upon a time"}"#, b"Once upon a time");
    check_prompt(Api::Pooling, r#"{"model":"m","input":"embed me"}"#, b"embed me");
    check_prompt(Api::Responses, r#"{"model":"m","input":"Hi"}"#, b"user: Hi\n");
    check_prompt(Api::Responses, r#"{"model":"m","input":[{"role":"user","content":"hi"}]}"#, b"user: hi\n");
}

#[test]
fn token_ids_are_four_bytes_each() {
    let ids = [&151_644_u32.to_le_bytes()[..], &0_u32.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    check_prompt(Api::Completions, r#"{"model":"m","prompt":[151644, 0,4294967295]}"#, &ids);
    check_prompt(Api::Completions, r#"{"model":"m","prompt":[[151644, 0,4294967295]]}"#, &ids);
    check_prompt(Api::Generate, r#"{"model":"m","token_ids":[151644, 0,4294967295]}"#, &ids);
}

#[test]
fn each_prompt_of_an_array_is_one_of_its_own() {
    check_prompts(Api::Completions, r#"{"prompt":["Once ","upon"],"model":"m"}"#, &[b"Once ", b"upon"]);
    let ids = [151_644_u32, 7].map(u32::to_le_bytes);
    check_prompts(
        Api::Completions,
        r#"{"prompt":[[151644],[7,151644]],"model":"m"}"#,
        &[&ids[0], &[ids[1], ids[0]].concat()],
    );
    check_prompts(Api::Pooling, r#"{"model":"m","query":"q","documents":["a","b"]}"#, &[b"q", b"a", b"b"]);
    check_prompts(Api::Pooling, r#"{"model":"m","text_1":"q","text_2":"a"}"#, &[b"q", b"a"]);
    // Too many prompts: only the first ones are read.
    let body = format!(r#"{{"model":"m","prompt":[{}"z"]}}"#, r#""x","#.repeat(MAX_PROMPTS));
    let read = scan(Api::Completions, &[body.as_bytes()]).unwrap();
    assert_eq!(read.prompts.unwrap().len(), MAX_PROMPTS);
}

#[test]
fn the_last_of_equal_keys_counts() {
    check_prompt(
        Api::Completions,
        r#"{"model":"old","prompt":"old","model":"m","prompt":"new and long enough"}"#,
        b"new and long enough",
    );
    check_prompt(
        Api::Chat,
        r#"{"model":"m","messages":[{"role":"x","content":"old","role":"user","content":"new"}]}"#,
        b"user: new\n",
    );
}

#[test]
fn nothing_but_the_top_level_is_read() {
    check_prompt(
        Api::Completions,
        r#" { "x" : {"model":"no","prompt":["no"]}, "prompt" : "yes" , "n":-0.5e+10, "t":[true,false,null,[]], "model":"m" } "#,
        b"yes",
    );
    let read = scan(Api::Completions, &[br#"{"model":"m","prompt":"p","cache_salt":"s\u0061lt"}"#]).unwrap();
    assert_eq!(read.cache_salt.as_deref(), Some("salt"));
}

#[test]
fn what_is_not_json_is_refused_where_it_goes_wrong() {
    let syntax = |offset, problem| BodyError::Syntax { offset, problem };
    let control = "a control character inside a string must be escaped";
    check_error(Api::Completions, b"{\"prompt\":\"a\nb\"}", syntax(12, control));
    check_error(Api::Completions, br#"{"prompt":"\x"}"#, syntax(12, "unknown escape"));
    check_error(Api::Completions, br#"{"prompt":"\u12g4"}"#, syntax(15, "expected four hexadecimal digits"));
    check_error(Api::Completions, br#"{"prompt" "p"}"#, syntax(10, "expected `:`"));
    check_error(Api::Completions, br#"{"a":1,}"#, syntax(7, "expected a key in double quotes"));
    check_error(Api::Completions, br#"[1,]"#, syntax(3, "expected a value"));
    check_error(Api::Completions, br#"{"a":01}"#, syntax(6, "expected `,` or a closing bracket"));
    check_error(Api::Completions, br#"{"a":-}"#, syntax(6, "malformed number"));
    check_error(Api::Completions, br#"{"a":1.}"#, syntax(7, "malformed number"));
    check_error(Api::Completions, br#"{"a":nul}"#, syntax(8, "expected a value"));
    check_error(Api::Completions, br#"{"a":[1}"#, syntax(7, "mismatched closing bracket"));
    check_error(Api::Completions, br#"{} {}"#, syntax(3, "more than one document"));
    check_error(Api::Completions, br#"{"prompt":"cut"#, syntax(14, "the document ends too early"));
    check_error(Api::Completions, b"", syntax(0, "the document ends too early"));
    check_error(Api::Completions, b"{\"prompt\":\"\xff\"}", BodyError::Utf8 { offset: 11 });
    check_error(Api::Completions, b"{\"prompt\":\"\xe2\x82\"}", BodyError::Utf8 { offset: 11 });
    check_error(Api::Completions, b"{\"prompt\":\"\xe2\x82", BodyError::Utf8 { offset: 11 });
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| {
        format!(r#"{{"model":"m","prompt":"p","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    let limit = ext_proc::body::MAX_NESTING;
    assert!(scan(Api::Completions, &[nested(limit as usize - 1).as_bytes()]).is_ok());
    let body = nested(limit as usize);
    let offset = body.rfind('[').unwrap();
    check_error(Api::Completions, body.as_bytes(), BodyError::Depth { offset, limit });
}

#[test]
fn a_body_tells_what_it_lacks() {
    let key = "messages";
    check_error(Api::Chat, b"[]", BodyError::NotAnObject);
    check_error(Api::Chat, b"17", BodyError::NotAnObject);
    check_lack(Api::Chat, br#"{"messages":[]}"#, BodyError::ModelMissing);
    check_lack(Api::Chat, br#"{"model":7,"messages":[]}"#, BodyError::ModelType);
    check_lack(Api::Chat, br#"{"model":null,"messages":[]}"#, BodyError::ModelType);
    check_lack(Api::Chat, br#"{"model":"","messages":[]}"#, BodyError::ModelType);
    check_lack(Api::Chat, br#"{"model":"m"}"#, BodyError::PromptMissing { key });
    check_lack(Api::Chat, br#"{"model":"m","messages":{}}"#, BodyError::PromptType { key });
    check_lack(Api::Chat, br#"{"model":"m","messages":"hi"}"#, BodyError::PromptType { key });
    check_lack(Api::Chat, br#"{"model":"m","messages":null}"#, BodyError::PromptType { key });
    check_lack(Api::Chat, br#"{"model":"m","messages":[]}"#, BodyError::PromptEmpty { key });
    let wrong = BodyError::PromptType { key: "prompt" };
    for prompt in ["1.5", "[1.5]", "[-1]", "{}", "[{}]", "[[1],[-1]]", "true", "[4294967296]"] {
        let body = format!(r#"{{"model":"m","prompt":{prompt}}}"#);
        check_lack(Api::Completions, body.as_bytes(), wrong.clone());
    }
}

#[test]
fn a_prompt_that_is_not_read_is_one_all_the_same() {
    for prompt in ["", r#""prompt":"","#, r#""prompt":null,"#, r#""prompt":[],"#] {
        let body = format!(r#"{{"model":"m",{prompt}"prompt_embeds":"AAAA"}}"#);
        check_prompts(Api::Completions, &body, &[]);
        // Control: without them, it lacks a prompt.
        let body = format!(r#"{{"model":"m",{prompt}"x":0}}"#);
        assert!(scan(Api::Completions, &[body.as_bytes()]).unwrap().prompts.is_err(), "{body}");
    }
    check_prompt(Api::Completions, r#"{"model":"m","prompt":null,"prompt":"p","prompt_embeds":[]}"#, b"p");
    let missing = BodyError::PromptMissing { key: "messages" };
    check_lack(Api::Chat, br#"{"model":"m","prompt_embeds":"AAAA"}"#, missing);
    // The older picker treats an empty prompt as missing.
    check_lack(
        Api::Any,
        br#"{"model":"m","prompt":"","prompt_embeds":"AAAA"}"#,
        BodyError::PromptEmpty { key: "prompt" },
    );
}

#[test]
fn of_two_prompts_the_apis_first_counts() {
    let both = [
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"prompt":"p","input":"i"}"#,
        r#"{"input":"i","prompt":"p","model":"m","messages":[{"role":"user","content":"hi"}]}"#,
    ];
    for body in both {
        check_prompt(Api::Any, body, b"user: hi\n");
        check_prompt(Api::Invocations, body, b"user: hi\n");
        check_prompt(Api::Chat, body, b"user: hi\n");
        check_prompt(Api::Messages, body, b"user: hi\n");
        check_prompt(Api::Pooling, body, b"i");
        check_prompt(Api::Responses, body, b"user: i\n");
        check_prompt(Api::Completions, body, b"p");
        check_prompts(Api::ModelOnly, body, &[]);
    }
    check_prompt(Api::Any, r#"{"model":"m","prompt":"p"}"#, b"p");
    check_prompt(Api::Invocations, r#"{"model":"m","input":"i"}"#, b"i");
    check_prompt(Api::Pooling, r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#, b"user: hi\n");
    check_lack(Api::Any, br#"{"model":"m"}"#, BodyError::PromptMissing { key: "messages" });
    check_lack(Api::Any, br#"{"model":"m","prompt":{}}"#, BodyError::PromptType { key: "prompt" });
}

#[test]
fn a_byte_order_mark_is_skipped() {
    check_prompt(Api::Completions, "\u{feff}{\"model\":\"m\",\"prompt\":\"p\"}", b"p");
    check_prompt(
        Api::Chat,
        "\u{feff}{\"messages\":[{\"content\":\"hi\",\"role\":\"user\"}],\"model\":\"m\"}",
        b"user: hi\n",
    );
    // Control: the byte order mark is allowed only at the start.
    let problem = "expected a key in double quotes";
    check_error(
        Api::Completions,
        "{\u{feff}\"model\":\"m\"}".as_bytes(),
        BodyError::Syntax { offset: 1, problem },
    );
    let problem = "expected a value";
    check_error(Api::Completions, "\u{fec0}{}".as_bytes(), BodyError::Syntax { offset: 0, problem });
}

#[test]
fn a_model_name_is_bounded() {
    let body = |n: usize| format!(r#"{{"model":"{}","prompt":"p"}}"#, "m".repeat(n));
    let name = |body: &str| scan(Api::Completions, &[body.as_bytes()]).unwrap().model.unwrap().name;
    assert_eq!(name(&body(MAX_MODEL_NAME)).len(), MAX_MODEL_NAME);
    let limit = MAX_MODEL_NAME;
    for n in [limit + 1, limit + 2, 1 << 20] {
        let read = scan(Api::Completions, &[body(n).as_bytes()]).unwrap();
        assert_eq!(read.model, Err(BodyError::ModelTooLong { limit }));
    }
    // The last name counts, here a short one.
    let twice = body(limit + 9).replace("\"prompt\"", "\"model\":\"m\",\"prompt\"");
    assert_eq!(name(&twice), "m");
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// All documents of serde_json are accepted, and read as serde_json reads them.
    #[test]
    fn agrees_with_serde_json_on_documents(extra in json(), content in any::<String>(), size in 1..40_usize) {
        let body = serde_json::json!({"extra": extra, "messages": [{"role": "user", "content": content}], "model": "m"});
        let body = serde_json::to_vec(&body).unwrap();
        let read = scan(Api::Chat, &body.chunks(size).collect::<Vec<_>>()).unwrap();
        let text = format!("user: {content}\n");
        prop_assert_eq!(read.prompts.unwrap().remove(0).chain.finish(&SEED), chain(text.as_bytes()));
    }

    /// Damaged documents are refused exactly if serde_json refuses them, except for two things that serde_json refuses
    /// and the engine decides: lone surrogates, and numbers that do not fit a float.
    #[test]
    fn agrees_with_serde_json_on_damage(at in 0..60_usize, byte in any::<u8>(), size in 1..40_usize) {
        let mut body = br#"{"a":[1,-2.5e3,true,null,"\n\u0041x"],"model":"m","prompt":"p"}"#.to_vec();
        body[at] = byte;
        let theirs = serde_json::from_slice::<Value>(&body);
        let ours = scan(Api::Completions, &body.chunks(size).collect::<Vec<_>>());
        let refused = matches!(ours, Err(BodyError::Syntax { .. } | BodyError::Utf8 { .. }));
        let excused = theirs.as_ref().is_err_and(|error| {
            let text = error.to_string();
            text.contains("surrogate") || text.contains("number out of range") || text.contains("hex escape")
        });
        prop_assert_eq!(refused, theirs.is_err() && !excused, "{}: {:?}, {:?}", String::from_utf8_lossy(&body), ours, theirs);
    }
}
