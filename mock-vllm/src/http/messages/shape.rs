//! Checks the shape of messages. vLLM's type is a union of eight, and for a message that fits none of them the error
//! lists what each of them misses: the errors of pydantic 2 for vLLM 0.33.

use super::super::body::Fields;
use serde_json::{Map, Value};

/// One type of the union, with its fields in the order in which pydantic checks them.
struct Shape {
    name: &'static str,
    fields: &'static [Field],
}

struct Field {
    name: &'static str,
    presence: Presence,
    kinds: &'static [Kind],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Required,
    Optional,
}

/// Kind of value. A field is right if its value is of one of the field's kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Iterable,
    List,
    Null,
    /// A fixed text, in Python's quotes.
    Literal(&'static str),
}

use Kind::{Iterable, List, Literal, Null, Text};
use Presence::{Optional, Required};

const fn field(name: &'static str, presence: Presence, kinds: &'static [Kind]) -> Field {
    Field { name, presence, kinds }
}

const SHAPES: [Shape; 8] = [
    Shape { name: "ChatCompletionDeveloperMessageParam", fields: &plain_fields(&[Literal("'developer'")]) },
    Shape { name: "ChatCompletionSystemMessageParam", fields: &plain_fields(&[Literal("'system'")]) },
    Shape { name: "ChatCompletionUserMessageParam", fields: &plain_fields(&[Literal("'user'")]) },
    Shape {
        name: "ChatCompletionAssistantMessageParam",
        fields: &[
            field("role", Required, &[Literal("'assistant'")]),
            field("content", Optional, &[Text, Iterable, Null]),
            field("name", Optional, &[Text]),
            field("refusal", Optional, &[Text, Null]),
            field("tool_calls", Optional, &[Iterable]),
        ],
    },
    Shape {
        name: "ChatCompletionToolMessageParam",
        fields: &[
            field("content", Required, &[Text, Iterable]),
            field("role", Required, &[Literal("'tool'")]),
            field("tool_call_id", Required, &[Text]),
        ],
    },
    Shape {
        name: "ChatCompletionFunctionMessageParam",
        fields: &[
            field("content", Required, &[Text, Null]),
            field("name", Required, &[Text]),
            field("role", Required, &[Literal("'function'")]),
        ],
    },
    Shape {
        name: "CustomChatCompletionMessageParam",
        fields: &[
            field("role", Required, &[Text]),
            field("content", Optional, &[Text, List]),
            field("name", Optional, &[Text]),
            field("tool_call_id", Optional, &[Text, Null]),
            field("tool_calls", Optional, &[List, Null]),
            field("task", Optional, &[Text, Null]),
        ],
    },
    Shape {
        name: "Message",
        fields: &[field("author", Required, &[Iterable]), field("content", Optional, &[List])],
    },
];

const fn plain_fields(role: &'static [Kind]) -> [Field; 3] {
    [
        field("content", Required, &[Text, Iterable]),
        field("role", Required, role),
        field("name", Optional, &[Text]),
    ]
}

/// Checks the messages; `None` if `fields` have errors.
pub(super) fn messages(fields: &mut Fields) -> Option<Vec<Map<String, Value>>> {
    let messages = fields
        .typed("messages", "list_type", "Input should be a valid list", |value| value.as_array().cloned());
    let messages = fields.required("messages", messages)?;
    let checked =
        messages.into_iter().enumerate().map(|(message_idx, message)| check(fields, message_idx, message));
    // All messages are checked before the first bad one ends the request.
    let checked: Vec<Option<Map<String, Value>>> = checked.collect();
    checked.into_iter().collect()
}

fn check(fields: &mut Fields, message_idx: usize, message: Value) -> Option<Map<String, Value>> {
    let prefix = format!("messages.{message_idx}");
    let Value::Object(mut message) = message else {
        for Shape { name, fields: _ } in SHAPES {
            let loc = format!("{prefix}.{name}");
            if name == "Message" {
                fields.model_error(&loc, "Message", message.clone());
            } else {
                fields.error("dict_type", &loc, "Input should be a valid dictionary", message.clone());
            }
        }
        return None;
    };
    // vLLM treats the older name like the newer one.
    if let Some(reasoning) = message.remove("reasoning_content").filter(|reasoning| !reasoning.is_null()) {
        let is_set = message.get("reasoning").is_some_and(|reasoning| !reasoning.is_null());
        if !is_set {
            message.insert("reasoning".to_owned(), reasoning);
        }
    }
    if SHAPES.iter().any(|shape| shape.fields.iter().all(|field| field.fits(&message))) {
        return Some(message);
    }
    for Shape { name, fields: shape } in SHAPES {
        for field in shape {
            field.tell(fields, &format!("{prefix}.{name}.{}", field.name), &message);
        }
    }
    None
}

// === impl Field ===

impl Field {
    fn fits(&self, message: &Map<String, Value>) -> bool {
        match message.get(self.name) {
            Some(value) => self.kinds.iter().any(|kind| kind.fits(value)),
            None => self.presence == Optional,
        }
    }

    /// Reports an error for each kind, if the value fits none.
    fn tell(&self, fields: &mut Fields, loc: &str, message: &Map<String, Value>) {
        if self.fits(message) {
            return;
        }
        let Some(value) = message.get(self.name) else {
            fields.error("missing", loc, "Field required", Value::Object(message.clone()));
            return;
        };
        for kind in self.kinds {
            let value = value.clone();
            match kind {
                Text => fields.error("string_type", loc, "Input should be a valid string", value),
                Iterable => fields.error("iterable_type", loc, "Input should be iterable", value),
                List => fields.error("list_type", loc, "Input should be a valid list", value),
                Literal(expected) => fields.literal_error(loc, expected, value),
                Null => {}
            }
        }
    }
}

// === impl Kind ===

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Text => value.is_string(),
            Iterable => value.is_array() || value.is_object(),
            List => value.is_array(),
            Null => value.is_null(),
            Literal(expected) => value.as_str().is_some_and(|value| expected.trim_matches('\'') == value),
        }
    }
}
