//! The table: for each kind of request, some that come first, and one that shares much or little of its prompt with
//! them.

use serde_json::{Value, json};

pub(super) const CHATS: &str = "/v1/chat/completions";
pub(super) const COMPLETIONS: &str = "/v1/completions";
pub(super) const RESPONSES: &str = "/v1/responses";
pub(super) const MESSAGES: &str = "/v1/messages";

/// Sentences of a long text; about 500 tokens.
const LONG: usize = 40;
/// Number of prompts that must stay in the cache.
const WARM: usize = 6;

/// Requests that are sent one after the other.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Name of the row's checks.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// Requests that are sent first.
    pub(super) before: Vec<RowRequest>,
    /// Requests whose prediction is compared with what was cached.
    pub(super) probes: Vec<RowRequest>,
    /// Field that makes the difference; a picker that ignores it is wrong about the probe.
    pub(super) field: Option<&'static str>,
    /// True if engines for text serve the probes.
    pub(super) is_served: bool,
}

#[derive(Debug, Clone)]
pub(super) struct RowRequest {
    pub(super) path: &'static str,
    pub(super) body: Value,
}

impl Row {
    fn new(name: &'static str, title: &'static str, before: RowRequest, probe: RowRequest) -> Self {
        Self { name, title, before: vec![before], probes: vec![probe], field: None, is_served: true }
    }

    fn refused(self) -> Self {
        Self { is_served: false, ..self }
    }

    fn by(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    /// Returns the same requests without the field, as a picker that ignores it would see them.
    pub(super) fn without_field(mut self) -> Option<Self> {
        let field = self.field?;
        for sent in self.before.iter_mut().chain(&mut self.probes) {
            strip(&mut sent.body, field);
        }
        Some(self)
    }
}

/// Removes `field` everywhere; a text is made equal instead of removed, because some texts are required.
fn strip(value: &mut Value, field: &str) {
    match value {
        Value::Object(fields) => {
            if let Some(value) = fields.get_mut(field) {
                match value {
                    Value::String(text) => *text = "-".to_owned(),
                    _ => drop(fields.remove(field)),
                }
            }
            fields.values_mut().for_each(|value| strip(value, field));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| strip(item, field)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Returns all rows. Texts contain `tag`, so that rows of different tags share only the first words of the template.
pub(super) fn rows(tag: &str) -> Vec<Row> {
    let mut rows = chats(tag);
    rows.extend(tool_calls(tag));
    rows.extend(beside_the_messages(tag));
    rows.extend(completions(tag));
    rows.extend(responses(tag));
    rows.extend(messages(tag));
    rows
}

fn chats(tag: &str) -> Vec<Row> {
    let long = |name: &str| text(&format!("{tag} {name}"), LONG);
    let system = |tool: &str| {
        let messages = vec![json!({"role": "system", "content": long("system")}), user(&long("behind"))];
        chat(&messages, json!({"tools": [tool_of(&long(tool))]}))
    };
    vec![
        Row::new(
            "chat",
            "A conversation goes on",
            chat(&[user(&long("chat"))], json!({})),
            chat(&[user(&long("chat")), assistant("A troll."), user("hit it")], json!({})),
        ),
        Row::new(
            "same-tools",
            "The same tools before other messages",
            chat(&[user(&format!("{tag} one"))], json!({"tools": [tool_of(&long("tool"))]})),
            chat(&[user(&format!("{tag} two"))], json!({"tools": [tool_of(&long("tool"))]})),
        )
        .by("tools"),
        Row::new(
            "other-tools",
            "Other tools before the same messages",
            chat(&[user(&long("question"))], json!({"tools": [tool_of(&long("tool a"))]})),
            chat(&[user(&long("question"))], json!({"tools": [tool_of(&long("tool b"))]})),
        )
        .by("tools"),
        Row::new(
            "system-other-tools",
            "Other tools behind the same system message",
            system("a"),
            system("b"),
        )
        .by("tools"),
        Row::new(
            "parts",
            "The same content in parts",
            chat(&[user(&long("parts"))], json!({})),
            chat(
                &[
                    json!({"role": "user", "content": [{"type": "text", "text": long("parts")}]}),
                    assistant("-"),
                ],
                json!({}),
            ),
        ),
        Row::new(
            "image",
            "Another image before the same text",
            chat(&[picture("one", &long("picture"))], json!({})),
            chat(&[picture("two", &long("picture"))], json!({})),
        )
        .by("url")
        .refused(),
    ]
}

fn tool_calls(tag: &str) -> Vec<Row> {
    let long = |name: &str| text(&format!("{tag} {name}"), LONG);
    let called = |arguments: &str, reasoning: &str| {
        let call = json!({"name": "look", "arguments": json!({"where": arguments}).to_string()});
        vec![
            user(&format!("{tag} what is there?")),
            json!({"role": "assistant", "content": "", "reasoning_content": reasoning,
                "tool_calls": [{"id": "call-1", "type": "function", "function": call}]}),
            json!({"role": "tool", "tool_call_id": "call-1", "content": long("result")}),
        ]
    };
    vec![
        Row::new(
            "tool-calls",
            "Other arguments in an assistant's tool call",
            chat(&called(&long("north"), ""), json!({})),
            chat(&called(&long("south"), ""), json!({})),
        )
        .by("arguments"),
        Row::new(
            "reasoning",
            "Other reasoning behind the last question",
            chat(&called("north", &long("first")), json!({})),
            chat(&called("north", &long("second")), json!({})),
        )
        .by("reasoning_content"),
    ]
}

/// Rows for fields of a chat that say how it is rendered and answered.
fn beside_the_messages(tag: &str) -> Vec<Row> {
    let long = |name: &str| text(&format!("{tag} {name}"), LONG);
    let both = |name: &'static str, title: &'static str, before: Value, probe: Value| {
        let messages = [user(&long(name))];
        Row::new(name, title, chat(&messages, before), chat(&messages, probe))
    };
    let documents = |title: &str| json!({"documents": [{"title": title, "text": long(title)}]});
    let schema = json!({"type": "object", "properties": {"where": {"type": "string"}}});
    vec![
        both(
            "documents",
            "Other documents, which the template does not show",
            documents("a"),
            documents("b"),
        ),
        both(
            "thinking",
            "No thinking, which the template says after the messages",
            json!({}),
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
        ),
        both(
            "response-format",
            "An answer by a schema, which the prompt does not show",
            json!({}),
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}}),
        ),
        both(
            "tool-choice",
            "No tool may be called, and all are shown",
            json!({"tools": [tool_of(&long("choice"))]}),
            json!({"tools": [tool_of(&long("choice"))], "tool_choice": "none"}),
        ),
        both(
            "salt",
            "Another salt before the same messages",
            json!({"cache_salt": format!("{tag} a").replace(' ', "")}),
            json!({"cache_salt": format!("{tag} b").replace(' ', "")}),
        )
        .by("cache_salt"),
        both(
            "chat-prompt-logprobs",
            "Log probabilities of a chat's prompt, which the engine computes",
            json!({}),
            json!({"prompt_logprobs": 1}),
        )
        .by("prompt_logprobs"),
    ]
}

fn completions(tag: &str) -> Vec<Row> {
    let long = |name: &str| text(&format!("{tag} {name}"), LONG);
    // Token ids without special tokens, different for each tag.
    let first = tag.bytes().fold(1_000, |sum: u32, byte| (sum * 31 + u32::from(byte)) % 90_000 + 1_000);
    let ids = |n: u32| (first..first + n).collect::<Vec<u32>>();
    let kept: Vec<RowRequest> =
        (0..WARM).map(|number| complete(long(&format!("kept {number}")), json!({}))).collect();
    let scored = (0..WARM).flat_map(|number| {
        let prompt = long(&format!("scored {number}"));
        let echoed = complete(prompt.as_str(), json!({"echo": true, "logprobs": 1}));
        [
            complete(prompt.as_str(), json!({})),
            complete(prompt.as_str(), json!({"prompt_logprobs": 1})),
            complete(prompt.as_str(), json!({"prompt_logprobs": 1})),
            echoed,
        ]
    });
    vec![
        Row::new(
            "completion",
            "A longer text",
            complete(long("text"), json!({})),
            complete(format!("{} And then?", long("text")), json!({})),
        ),
        Row::new(
            "second-prompt",
            "The second of two prompts comes alone",
            complete(json!([long("prompt a"), long("prompt b")]), json!({})),
            complete(long("prompt b"), json!({})),
        ),
        Row::new(
            "token-ids",
            "A longer prompt of token ids",
            complete(json!(ids(600)), json!({})),
            complete(json!(ids(640)), json!({})),
        ),
        Row::new(
            "prompt-logprobs",
            "Log probabilities of the prompt, which the engine computes",
            complete(long("logprobs"), json!({})),
            complete(long("logprobs"), json!({"prompt_logprobs": 1})),
        )
        .by("prompt_logprobs"),
        Row::new(
            "echo-logprobs",
            "An echo with log probabilities, which the engine computes",
            complete(long("echo"), json!({})),
            complete(long("echo"), json!({"echo": true, "logprobs": 1})),
        )
        .by("logprobs"),
        Row {
            name: "kept",
            title: "Warm prompts stay known behind requests that look for nothing",
            before: kept.iter().cloned().chain(scored).collect(),
            probes: kept.clone(),
            field: None,
            is_served: true,
        },
    ]
}

fn responses(tag: &str) -> Vec<Row> {
    let long = |name: &str| text(&format!("{tag} {name}"), LONG);
    let items = |output: &str, behind: &[Value]| {
        let mut items = vec![
            json!({"type": "message", "role": "user", "content": long("items")}),
            json!({"type": "function_call", "call_id": "call-1", "name": "look", "arguments": "{}"}),
            json!({"type": "function_call_output", "call_id": "call-1", "output": output}),
        ];
        items.extend_from_slice(behind);
        items
    };
    let tool = json!({"type": "function", "name": "look", "description": long("flat"), "parameters": {"type": "object"}});
    vec![
        Row::new(
            "same-instructions",
            "The same instructions before another input",
            respond(json!(format!("{tag} one")), json!({"instructions": long("instructions")})),
            respond(json!(format!("{tag} two")), json!({"instructions": long("instructions")})),
        )
        .by("instructions"),
        Row::new(
            "other-instructions",
            "Other instructions before the same input",
            respond(json!(long("input")), json!({"instructions": long("instructions a")})),
            respond(json!(long("input")), json!({"instructions": long("instructions b")})),
        )
        .by("instructions"),
        Row::new(
            "items",
            "Items of a response go on",
            respond(json!(items(&long("output"), &[])), json!({})),
            respond(json!(items(&long("output"), &[user("hit it")])), json!({})),
        ),
        Row::new(
            "other-output",
            "Another output of a call",
            respond(json!(items(&long("output a"), &[user(&long("behind"))])), json!({})),
            respond(json!(items(&long("output b"), &[user(&long("behind"))])), json!({})),
        )
        .by("output"),
        Row::new(
            "flat-tools",
            "The same tools of a response before another input",
            respond(json!(format!("{tag} one")), json!({"tools": [tool]})),
            respond(json!(format!("{tag} two")), json!({"tools": [tool]})),
        )
        .by("tools"),
    ]
}

/// Rows for Anthropic's Messages API.
fn messages(tag: &str) -> Vec<Row> {
    let long = |name: &str| text(&format!("{tag} {name}"), LONG);
    let tools =
        |name: &str| json!([{"name": "look", "description": long(name), "input_schema": {"type": "object"}}]);
    let used = |result: &str| {
        vec![
            user(&format!("{tag} what is there?")),
            json!({"role": "assistant", "content": [
                {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"where": "north"}}]}),
            json!({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": result}]}),
        ]
    };
    let went_on = || {
        let mut messages = used(&long("went"));
        messages.extend([assistant("A troll."), user("hit it")]);
        messages
    };
    vec![
        Row::new(
            "messages-same-tools",
            "The same tools and system of the Messages API before other messages",
            message(&[user(&format!("{tag} one"))], json!({"tools": tools("m"), "system": "be brief"})),
            message(&[user(&format!("{tag} two"))], json!({"tools": tools("m"), "system": "be brief"})),
        )
        .by("tools"),
        Row::new(
            "messages-other-system",
            "Another system of the Messages API before the same messages",
            message(&[user(&long("same"))], json!({"system": long("system a")})),
            message(&[user(&long("same"))], json!({"system": long("system b")})),
        )
        .by("system"),
        Row::new(
            "messages-tool-result",
            "A conversation with the result of a tool goes on",
            message(&used(&long("went")), json!({"tools": tools("used")})),
            message(&went_on(), json!({"tools": tools("used")})),
        ),
    ]
}

fn chat(messages: &[Value], fields: Value) -> RowRequest {
    with(CHATS, json!({"messages": messages, "max_tokens": 1}), fields)
}

fn complete(prompt: impl Into<Value>, fields: Value) -> RowRequest {
    with(COMPLETIONS, json!({"prompt": prompt.into(), "max_tokens": 1}), fields)
}

fn respond(input: Value, fields: Value) -> RowRequest {
    with(RESPONSES, json!({"input": input, "max_output_tokens": 1}), fields)
}

fn message(messages: &[Value], fields: Value) -> RowRequest {
    with(MESSAGES, json!({"messages": messages, "max_tokens": 1}), fields)
}

fn with(path: &'static str, mut body: Value, fields: Value) -> RowRequest {
    if let (Some(body), Value::Object(fields)) = (body.as_object_mut(), fields) {
        body.extend(fields);
    }
    RowRequest { path, body }
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

fn picture(name: &str, words: &str) -> Value {
    json!({"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": format!("https://example.com/{name}.png")}},
        {"type": "text", "text": words}]})
}

fn tool_of(description: &str) -> Value {
    let parameters = json!({"type": "object", "properties": {}});
    json!({"type": "function", "function": {"name": "look", "description": description, "parameters": parameters}})
}

fn text(name: &str, n_sentences: usize) -> String {
    let sentence = |number| format!("The {name} {number} stands beside the gate and waits.");
    (0..n_sentences).map(sentence).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::rows;

    #[test]
    fn rows_have_names_of_their_own_and_differ_by_their_field_alone() {
        let rows = rows("t");
        let names: BTreeSet<&str> = rows.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), rows.len());
        for row in rows {
            let Some(stripped) = row.clone().without_field() else { continue };
            assert_ne!(stripped.probes[0].body, row.probes[0].body, "{}: the field is there", row.name);
        }
    }
}
