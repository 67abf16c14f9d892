//! The body scanner: what is read, what is refused, wherever the chunks are cut.

use epp::body::{BodyError, BodyScanner, MAX_MODEL_NAME, PromptField, RequestBody};
use prefix_index::chain::{Chain, ChainBuilder, ChainSeed};
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::{prop_assert_eq, proptest};
use serde_json::Value;

const SEED: ChainSeed<'_> = ChainSeed { target_model: "m", adapter: None, cache_salt: None };

fn scan(field: PromptField, chunks: &[&[u8]]) -> Result<RequestBody, BodyError> {
    let mut scanner = BodyScanner::new(field);
    for chunk in chunks {
        scanner.push(chunk)?;
    }
    scanner.finish()
}

fn chain(text: &[u8]) -> Chain {
    let mut builder = ChainBuilder::new();
    builder.push(text);
    builder.finish(&SEED)
}

/// The prompt of `body` is `text`, however the body is cut in two and when it comes byte by byte.
fn check_prompt(field: PromptField, body: &str, text: &[u8]) {
    let bytes = body.as_bytes();
    let mut cuts: Vec<Vec<&[u8]>> = (0..=bytes.len()).map(|at| vec![&bytes[..at], &bytes[at..]]).collect();
    cuts.push(bytes.chunks(1).collect());
    for chunks in cuts {
        let read = scan(field, &chunks).unwrap_or_else(|error| panic!("{error} in {body} as {chunks:?}"));
        assert_eq!(read.prompt_bytes, text.len() as u64, "{body}");
        assert_eq!(read.prompt.finish(&SEED), chain(text), "{body}");
        let model: String = serde_json::from_str(&body[read.model_span]).unwrap();
        assert_eq!(read.model, model);
    }
}

fn check_error(field: PromptField, body: &[u8], expected: BodyError) {
    for size in 1..=body.len().max(1) {
        let chunks: Vec<&[u8]> = body.chunks(size).collect();
        assert_eq!(scan(field, &chunks).unwrap_err(), expected, "chunks of {size}");
    }
}

#[test]
fn a_chat_is_its_messages_in_order() {
    check_prompt(
        PromptField::Messages,
        r#"{"messages":[{"role":"system","content":"Be brief, please."},{"content":"Hi\nthere","role":"user"}],"model":"m"}"#,
        b"system: Be brief, please.\nuser: Hi\nthere\n",
    );
}

#[test]
fn parts_are_concatenated_and_other_content_is_empty() {
    check_prompt(
        PromptField::Messages,
        r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"one "},
            {"type":"image_url","image_url":{"url":"x","text":"no"}},{"text":"two","type":"text"}]},
            {"role":"assistant","content":null,"tool_calls":[{"function":{"role":"no","content":"no"}}]}]}"#,
        b"user: one two\nassistant: \n",
    );
}

#[test]
fn escapes_are_undone() {
    check_prompt(
        PromptField::Messages,
        r#"{"model":"\u006d\/","messages":[{"role":"user","content":"\"\\\/\b\f\n\r\té \u00e9 \ud83d\ude00 \ud83d. \ud83d\n\ude00 \ud83d\ud83d\ude00"}]}"#,
        "user: \"\\/\u{8}\u{c}\n\r\té é 😀 \u{fffd}. \u{fffd}\n\u{fffd} \u{fffd}😀\n".as_bytes(),
    );
}

#[test]
fn a_completion_is_its_prompt() {
    check_prompt(PromptField::Prompt, r#"{"model":"m","prompt":"Once upon a time"}"#, b"Once upon a time");
    check_prompt(PromptField::Prompt, r#"{"prompt":["Once ","upon"],"model":"m"}"#, b"Once upon");
    check_prompt(PromptField::Input, r#"{"model":"m","input":"embed me"}"#, b"embed me");
    check_prompt(
        PromptField::Input,
        r#"{"model":"m","input":[{"role":"user","content":"hi"}]}"#,
        b"user: hi\n",
    );
}

#[test]
fn token_ids_are_four_bytes_each() {
    let ids = [&151_644_u32.to_le_bytes()[..], &0_u32.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    check_prompt(PromptField::Prompt, r#"{"model":"m","prompt":[151644, 0,4294967295]}"#, &ids);
    check_prompt(PromptField::Prompt, r#"{"model":"m","prompt":[[151644],[0,4294967295]]}"#, &ids);
}

#[test]
fn the_last_of_equal_keys_counts() {
    check_prompt(
        PromptField::Prompt,
        r#"{"model":"old","prompt":"old","model":"m","prompt":"new and long enough"}"#,
        b"new and long enough",
    );
    check_prompt(
        PromptField::Messages,
        r#"{"model":"m","messages":[{"role":"x","content":"old","role":"user","content":"new"}]}"#,
        b"user: new\n",
    );
}

#[test]
fn nothing_but_the_top_level_is_read() {
    check_prompt(
        PromptField::Prompt,
        r#" { "x" : {"model":"no","prompt":["no"]}, "prompt" : "yes" , "n":-0.5e+10, "t":[true,false,null,[]], "model":"m" } "#,
        b"yes",
    );
    let read =
        scan(PromptField::Prompt, &[br#"{"model":"m","prompt":"p","cache_salt":"s\u0061lt"}"#]).unwrap();
    assert_eq!(read.cache_salt.as_deref(), Some("salt"));
}

#[test]
fn what_is_not_json_is_refused_where_it_goes_wrong() {
    let syntax = |offset, problem| BodyError::Syntax { offset, problem };
    let control = "a control character inside a string must be escaped";
    check_error(PromptField::Prompt, b"{\"prompt\":\"a\nb\"}", syntax(12, control));
    check_error(PromptField::Prompt, br#"{"prompt":"\x"}"#, syntax(12, "unknown escape"));
    check_error(
        PromptField::Prompt,
        br#"{"prompt":"\u12g4"}"#,
        syntax(15, "expected four hexadecimal digits"),
    );
    check_error(PromptField::Prompt, br#"{"prompt" "p"}"#, syntax(10, "expected `:`"));
    check_error(PromptField::Prompt, br#"{"a":1,}"#, syntax(7, "expected a key in double quotes"));
    check_error(PromptField::Prompt, br#"[1,]"#, syntax(3, "expected a value"));
    check_error(PromptField::Prompt, br#"{"a":01}"#, syntax(6, "expected `,` or a closing bracket"));
    check_error(PromptField::Prompt, br#"{"a":-}"#, syntax(6, "malformed number"));
    check_error(PromptField::Prompt, br#"{"a":1.}"#, syntax(7, "malformed number"));
    check_error(PromptField::Prompt, br#"{"a":nul}"#, syntax(8, "expected a value"));
    check_error(PromptField::Prompt, br#"{"a":[1}"#, syntax(7, "mismatched closing bracket"));
    check_error(PromptField::Prompt, br#"{} {}"#, syntax(3, "more than one document"));
    check_error(PromptField::Prompt, br#"{"prompt":"cut"#, syntax(14, "the document ends too early"));
    check_error(PromptField::Prompt, b"", syntax(0, "the document ends too early"));
    check_error(PromptField::Prompt, b"{\"prompt\":\"\xff\"}", BodyError::Utf8 { offset: 11 });
    check_error(PromptField::Prompt, b"{\"prompt\":\"\xe2\x82\"}", BodyError::Utf8 { offset: 11 });
    check_error(PromptField::Prompt, b"{\"prompt\":\"\xe2\x82", BodyError::Utf8 { offset: 11 });
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| {
        format!(r#"{{"model":"m","prompt":"p","x":{}{}}}"#, "[".repeat(depth), "]".repeat(depth))
    };
    let limit = epp::body::MAX_NESTING;
    assert!(scan(PromptField::Prompt, &[nested(limit as usize - 1).as_bytes()]).is_ok());
    let body = nested(limit as usize);
    let offset = body.rfind('[').unwrap();
    check_error(PromptField::Prompt, body.as_bytes(), BodyError::Depth { offset, limit });
}

#[test]
fn a_body_without_model_or_prompt_is_refused() {
    let key = "messages";
    let field = PromptField::Messages;
    check_error(field, b"[]", BodyError::NotAnObject);
    check_error(field, b"17", BodyError::NotAnObject);
    check_error(field, br#"{"messages":[]}"#, BodyError::ModelMissing);
    check_error(field, br#"{"model":7,"messages":[]}"#, BodyError::ModelType);
    check_error(field, br#"{"model":"","messages":[]}"#, BodyError::ModelType);
    check_error(field, br#"{"model":"m"}"#, BodyError::PromptMissing { key });
    check_error(field, br#"{"model":"m","messages":{}}"#, BodyError::PromptType { key });
    check_error(field, br#"{"model":"m","messages":null}"#, BodyError::PromptType { key });
    check_error(field, br#"{"model":"m","messages":[]}"#, BodyError::PromptEmpty { key });
    check_error(
        PromptField::Prompt,
        br#"{"model":"m","prompt":[1.5]}"#,
        BodyError::PromptType { key: "prompt" },
    );
    check_error(
        PromptField::Prompt,
        br#"{"model":"m","prompt":[-1]}"#,
        BodyError::PromptType { key: "prompt" },
    );
}

#[test]
fn a_prompt_that_is_not_read_is_one_all_the_same() {
    check_prompt(PromptField::Prompt, r#"{"model":"m","prompt_embeds":"AAAA"}"#, b"");
    check_prompt(PromptField::Prompt, r#"{"model":"m","prompt":null,"prompt":"p","prompt_embeds":[]}"#, b"p");
    let missing = BodyError::PromptMissing { key: "messages" };
    check_error(PromptField::Messages, br#"{"model":"m","prompt_embeds":"AAAA"}"#, missing);
}

#[test]
fn of_two_prompts_the_apis_first_counts() {
    let both = [
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"prompt":"p","input":"i"}"#,
        r#"{"input":"i","prompt":"p","model":"m","messages":[{"role":"user","content":"hi"}]}"#,
    ];
    for body in both {
        check_prompt(PromptField::Any, body, b"user: hi\n");
        check_prompt(PromptField::Messages, body, b"user: hi\n");
        check_prompt(PromptField::Embedded, body, b"i");
        check_prompt(PromptField::Input, body, b"i");
        check_prompt(PromptField::Prompt, body, b"p");
    }
    check_prompt(PromptField::Any, r#"{"model":"m","prompt":"p"}"#, b"p");
    check_prompt(
        PromptField::Embedded,
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#,
        b"user: hi\n",
    );
    check_error(PromptField::Any, br#"{"model":"m"}"#, BodyError::PromptMissing { key: "messages" });
    check_error(PromptField::Any, br#"{"model":"m","prompt":{}}"#, BodyError::PromptType { key: "prompt" });
}

#[test]
fn a_model_name_is_bounded() {
    let body = |n: usize| format!(r#"{{"model":"{}","prompt":"p"}}"#, "m".repeat(n));
    assert_eq!(
        scan(PromptField::Prompt, &[body(MAX_MODEL_NAME).as_bytes()]).unwrap().model.len(),
        MAX_MODEL_NAME
    );
    let limit = MAX_MODEL_NAME;
    for n in [limit + 1, limit + 2, 1 << 20] {
        let error = scan(PromptField::Prompt, &[body(n).as_bytes()]).unwrap_err();
        assert_eq!(error, BodyError::ModelTooLong { limit });
    }
    // A later, short name counts.
    let twice = body(limit + 9).replace("\"prompt\"", "\"model\":\"m\",\"prompt\"");
    assert_eq!(scan(PromptField::Prompt, &[twice.as_bytes()]).unwrap().model, "m");
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
    /// Whatever serde_json writes is accepted, and what it reads is what we read.
    #[test]
    fn agrees_with_serde_json_on_documents(extra in json(), content in any::<String>(), size in 1..40_usize) {
        let body = serde_json::json!({"extra": extra, "messages": [{"role": "user", "content": content}], "model": "m"});
        let body = serde_json::to_vec(&body).unwrap();
        let read = scan(PromptField::Messages, &body.chunks(size).collect::<Vec<_>>()).unwrap();
        let text = format!("user: {content}\n");
        prop_assert_eq!(read.prompt.finish(&SEED), chain(text.as_bytes()));
    }

    /// Damaged documents are refused exactly when serde_json refuses them. It is stricter in two things that the
    /// engine decides: lone surrogates, and numbers that do not fit a float.
    #[test]
    fn agrees_with_serde_json_on_damage(at in 0..60_usize, byte in any::<u8>(), size in 1..40_usize) {
        let mut body = br#"{"a":[1,-2.5e3,true,null,"\n\u0041x"],"model":"m","prompt":"p"}"#.to_vec();
        body[at] = byte;
        let theirs = serde_json::from_slice::<Value>(&body);
        let ours = scan(PromptField::Prompt, &body.chunks(size).collect::<Vec<_>>());
        let refused = matches!(ours, Err(BodyError::Syntax { .. } | BodyError::Utf8 { .. }));
        let excused = theirs.as_ref().is_err_and(|error| {
            let text = error.to_string();
            text.contains("surrogate") || text.contains("number out of range") || text.contains("hex escape")
        });
        prop_assert_eq!(refused, theirs.is_err() && !excused, "{}: {:?}, {:?}", String::from_utf8_lossy(&body), ours, theirs);
    }
}
