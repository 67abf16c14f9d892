//! `tools` and `tool_choice` of `/v1/responses`: flat, and of more types than functions, although the model sees only
//! functions.

use crate::http::body::Fields;
use crate::http::error::ApiError;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Types of tools that vLLM accepts and does not show to a model.
const HOSTED: [&str; 15] = [
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
];

/// Tools of a request.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// Tools as a chat declares them.
    pub(super) declared: Vec<Value>,
    /// Tools by their names in [`Self::declared`].
    pub(super) callees: HashMap<String, Callee>,
    /// Tools as the response repeats them.
    pub(super) told: Vec<Value>,
    /// Choice as the response repeats it.
    pub(super) choice: Value,
}

/// Tool that a call by a declared name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Callee {
    Function {
        name: String,
        namespace: Option<String>,
    },
    /// A tool that takes text. The model sees it as a function with one argument.
    Custom,
}

/// Tool that a choice names, if any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named<'a> {
    No,
    Tool(&'a str),
}

// === impl Tools ===

impl Tools {
    /// Reads both fields.
    ///
    /// # Errors
    /// Fails for a choice that is not among the tools, and for grammars.
    pub(super) fn parse(fields: &mut Fields) -> Result<Self, ApiError> {
        let list = fields
            .typed("tools", "list_type", "Input should be a valid list", |value| value.as_array().cloned());
        let list = list.unwrap_or_default();
        if list.iter().any(has_grammar) {
            let message = "Custom tools with a grammar format are not supported; only free-form text custom tools are accepted.";
            return Err(fields.refused(message, Some("tools")));
        }
        let mut tools = Self::default();
        for (tool_idx, tool) in list.iter().enumerate() {
            tools.add(fields, &format!("tools.{tool_idx}"), tool);
        }
        tools.choose(fields)?;
        Ok(tools)
    }

    /// Returns the choice in a chat's form; `None` if it is left to the model, or without tools.
    ///
    /// # Errors
    /// Fails if a call is required and there is no tool to call.
    pub(super) fn chat_choice(&self) -> Result<Option<Value>, ApiError> {
        let choice = match &self.choice {
            Value::String(choice) => {
                Some(choice.as_str()).filter(|choice| *choice != "auto").map(Value::from)
            }
            Value::Object(choice) => match choice.get("type").and_then(Value::as_str) {
                Some("function" | "custom") => {
                    Some(json!({"type": "function", "function": {"name": choice.get("name")}}))
                }
                Some("allowed_tools") => choice.get("mode").filter(|mode| *mode == "required").cloned(),
                Some(_) | None => None,
            },
            _ => None,
        };
        let wants_call = choice.as_ref().is_some_and(|choice| choice != "none");
        if wants_call && self.declared.is_empty() {
            let message = "tool_choice requires a function call, but tools contains no function tool the model can call.";
            return Err(ApiError::bad_request(
                format!("{message} (parameter=tool_choice)"),
                Some("tool_choice"),
            ));
        }
        Ok(choice)
    }

    fn add(&mut self, fields: &mut Fields, loc: &str, tool: &Value) {
        match tool.get("type").and_then(Value::as_str) {
            Some("function") => {
                let Some(function) = function(fields, loc, tool) else { return };
                self.declare(None, &function);
                self.told.push(function.into());
            }
            Some("custom") => {
                let Some(name) = name(fields, loc, tool) else { return };
                let description = tool.get("description").cloned().unwrap_or_default();
                self.callees.insert(name.clone(), Callee::Custom);
                self.declared.push(declaration(&json!({
                    "name": name, "description": description, "parameters": text_parameters(),
                })));
                self.told.push(tool.clone());
            }
            Some("namespace") => {
                let Some(namespace) = name(fields, loc, tool) else { return };
                let inner = tool.get("tools").and_then(Value::as_array);
                let Some(inner) = fields.required(&format!("{loc}.tools"), inner) else { return };
                for (tool_idx, tool) in inner.iter().enumerate().filter(|(_, tool)| is_function(tool)) {
                    let loc = format!("{loc}.tools.{tool_idx}");
                    if let Some(function) = function(fields, &loc, tool) {
                        self.declare(Some(&namespace), &function);
                    }
                }
                self.told.push(tool.clone());
            }
            Some(kind) if HOSTED.contains(&kind) => self.told.push(tool.clone()),
            Some(_) | None if !tool.is_object() => {
                let message = "Input should be a valid dictionary or object to extract fields from";
                fields.error("model_attributes_type", loc, message, tool.clone());
            }
            Some(_) | None => {
                let kind = tool.get("type").cloned().unwrap_or_default();
                fields.literal_error(&format!("{loc}.type"), "'function'", kind);
            }
        }
    }

    fn declare(&mut self, namespace: Option<&str>, function: &Map<String, Value>) {
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        let mut shown = function.clone();
        let declared = namespace.map_or_else(|| name.to_owned(), |namespace| flat_name(namespace, name));
        shown.insert("name".to_owned(), declared.as_str().into());
        self.declared.push(declaration(&Value::Object(shown)));
        let callee = Callee::Function { name: name.to_owned(), namespace: namespace.map(str::to_owned) };
        self.callees.insert(declared, callee);
    }

    fn choose(&mut self, fields: &Fields) -> Result<(), ApiError> {
        let choice = fields.raw("tool_choice").cloned().unwrap_or_else(|| "auto".into());
        let named = match choice.get("type").and_then(Value::as_str) {
            Some("function" | "custom") => {
                Named::Tool(choice.get("name").and_then(Value::as_str).unwrap_or_default())
            }
            Some(_) | None => Named::No,
        };
        let refuse = |message: &str| Err(fields.refused(message, Some("tool_choice")));
        let has_tools = fields.raw("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty());
        self.choice = match (has_tools, named) {
            (false, Named::No) if choice == "required" => {
                return refuse("Tool choice 'required' must be specified with 'tools' parameter.");
            }
            (false, Named::No) if choice == "auto" => "none".into(),
            (true, Named::Tool(name)) if !name.is_empty() => {
                let mut choice = choice.clone();
                choice["name"] = self.resolve(fields, name)?.into();
                choice
            }
            (_, Named::Tool(_)) => return refuse(NOT_FOUND),
            (_, Named::No) => match &choice {
                Value::String(text) if !["none", "auto", "required"].contains(&text.as_str()) => {
                    return refuse(&format!("Invalid value for `tool_choice`: {text}"));
                }
                Value::String(_) | Value::Object(_) => choice,
                _ => return refuse("Invalid value for `tool_choice`: neither a string nor an object"),
            },
        };
        Ok(())
    }

    /// Finds the declared name that a choice means, which may leave out the namespace.
    fn resolve(&self, fields: &Fields, name: &str) -> Result<String, ApiError> {
        if self.callees.contains_key(name) {
            return Ok(name.to_owned());
        }
        let is_it = |callee: &Callee| matches!(callee, Callee::Function { name: local, .. } if local == name);
        let mut found: Vec<&str> = { self.callees.iter() }
            .filter(|(_, callee)| is_it(callee))
            .map(|(declared, _)| declared.as_str())
            .collect();
        found.sort_unstable();
        match found.as_slice() {
            [] => Err(fields.refused(NOT_FOUND, Some("tool_choice"))),
            [declared] => Ok((*declared).to_owned()),
            several => {
                let message = format!(
                    "Tool choice '{name}' is ambiguous: it is defined in more than one namespace ({}). Select it by its \
                     full '<namespace>__<name>' name.",
                    several.join(", ")
                );
                Err(fields.refused(&message, Some("tool_choice")))
            }
        }
    }
}

const NOT_FOUND: &str = "Tool choice 'function' not found in 'tools' parameter.";

/// Joins a name like vLLM's `flat_namespace_tool_name`.
pub(super) fn flat_name(namespace: &str, name: &str) -> String {
    format!("{namespace}__{name}")
}

fn is_function(tool: &Value) -> bool {
    tool.get("type").is_some_and(|kind| kind == "function")
}

fn has_grammar(tool: &Value) -> bool {
    tool.get("type").is_some_and(|kind| kind == "custom")
        && tool.pointer("/format/type").is_some_and(|kind| kind == "grammar")
}

fn declaration(function: &Value) -> Value {
    json!({"type": "function", "function": function})
}

/// Parameters like vLLM's `custom_tool_parameters`.
fn text_parameters() -> Value {
    json!({
        "type": "object",
        "properties": {
            "input": {"type": "string", "description": "The freeform text payload for this tool."},
        },
        "required": ["input"],
        "additionalProperties": false,
    })
}

fn name(fields: &mut Fields, loc: &str, tool: &Value) -> Option<String> {
    let loc = format!("{loc}.name");
    match tool.get("name") {
        Some(Value::String(name)) => return Some(name.clone()),
        Some(other) => fields.error("string_type", &loc, "Input should be a valid string", other.clone()),
        None => fields.error("missing", &loc, "Field required", tool.clone()),
    }
    None
}

/// Keeps the fields of a function that vLLM knows, in the order of its class.
fn function(fields: &mut Fields, loc: &str, tool: &Value) -> Option<Map<String, Value>> {
    let name = name(fields, loc, tool)?;
    let mut known = Map::from_iter([("name".to_owned(), Value::from(name))]);
    for field in ["parameters", "strict", "type", "defer_loading", "description"] {
        let value = tool.get(field).cloned().unwrap_or_default();
        let error = match (field, &value) {
            ("type", _)
            | (_, Value::Null)
            | ("parameters", Value::Object(_))
            | ("strict" | "defer_loading", Value::Bool(_))
            | ("description", Value::String(_)) => None,
            ("parameters", _) => Some(("dict_type", "Input should be a valid dictionary")),
            ("description", _) => Some(("string_type", "Input should be a valid string")),
            (_, _) => Some(("bool_type", "Input should be a valid boolean")),
        };
        if let Some((kind, message)) = error {
            fields.error(kind, &format!("{loc}.{field}"), message, value.clone());
        }
        known.insert(field.to_owned(), value);
    }
    Some(known)
}
