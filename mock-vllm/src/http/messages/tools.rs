//! `tools` and `tool_calls`, in the form that templates get.

use super::super::body::Fields;
use super::super::error::ApiError;
use serde_json::{Map, Value};
use vllm_engine::vllm_version::VllmVersion;

/// Dumps each tool like vLLM's `model_dump`: fields in the order of their declaration, absent ones as null. Returns
/// `None` if the field is missing or has errors.
pub(super) fn declared(fields: &mut Fields, version: VllmVersion) -> Option<Vec<Value>> {
    let tools = fields
        .typed("tools", "list_type", "Input should be a valid list", |value| value.as_array().cloned())?;
    let dumped: Vec<Option<Value>> = tools
        .into_iter()
        .enumerate()
        .map(|(tool_idx, tool)| declared_tool(fields, &format!("tools.{tool_idx}"), tool, version))
        .collect();
    dumped.into_iter().collect()
}

/// Parses the arguments of an assistant's calls into objects; `None` without calls.
///
/// # Errors
/// Fails for calls of anything but functions.
pub(super) fn called(calls: Option<Value>) -> Result<Option<Value>, ApiError> {
    let Some(Value::Array(mut calls)) = calls else { return Ok(None) };
    for call in &mut calls {
        let Value::Object(call) = call else {
            return Err(call_error("assistant tool_calls entries must be objects."));
        };
        let is_function = call.get("type").is_none_or(|kind| kind == "function");
        let Some(Value::Object(function)) = call.get_mut("function").filter(|_| is_function) else {
            let message = "chat completions only support assistant tool_calls of type 'function'.";
            return Err(call_error(message));
        };
        // vLLM drops arguments that are not an object: they would make every later turn fail too.
        let arguments = match function.get("arguments") {
            Some(Value::String(text)) => serde_json::from_str(text).ok().filter(Value::is_object),
            Some(arguments) if arguments.is_object() => Some(arguments.clone()),
            Some(_) | None => None,
        };
        function.insert("arguments".to_owned(), arguments.unwrap_or_else(|| Value::Object(Map::new())));
    }
    Ok((!calls.is_empty()).then_some(Value::Array(calls)))
}

fn call_error(message: &str) -> ApiError {
    ApiError::bad_request(format!("{message} (parameter=tool_calls)"), Some("tool_calls"))
}

fn declared_tool(fields: &mut Fields, loc: &str, tool: Value, version: VllmVersion) -> Option<Value> {
    let mut tool = object(fields, loc, tool)?;
    let kind = tool.shift_remove("type").unwrap_or_else(|| Value::from("function"));
    if kind != "function" {
        fields.literal_error(&format!("{loc}.type"), "'function'", kind.clone());
    }
    let Some(function) = tool.shift_remove("function") else {
        fields.error("missing", &format!("{loc}.function"), "Field required", Value::Object(tool));
        return None;
    };
    let defer_loading = tool.shift_remove("defer_loading").filter(|value| !value.is_null());
    let mut function = declared_function(fields, &format!("{loc}.function"), function, version)?;
    if kind != "function" {
        return None;
    }
    let mut dumped = Map::from_iter([("type".to_owned(), kind)]);
    match version {
        VllmVersion::V0_33 => {
            if let Some(defer_loading) = &defer_loading {
                function.entry("defer_loading").or_insert_with(|| defer_loading.clone());
            }
            dumped.insert("function".to_owned(), Value::Object(function));
            dumped.extend(defer_loading.map(|value| ("defer_loading".to_owned(), value)));
        }
        VllmVersion::V0_8 | VllmVersion::V0_11 => {
            dumped.insert("function".to_owned(), Value::Object(function));
            dumped.extend(defer_loading.map(|value| ("defer_loading".to_owned(), value)));
            dumped.extend(tool);
        }
    }
    Some(Value::Object(dumped))
}

fn declared_function(
    fields: &mut Fields,
    loc: &str,
    function: Value,
    version: VllmVersion,
) -> Option<Map<String, Value>> {
    let mut function = object(fields, loc, function)?;
    let whole = Value::Object(function.clone());
    let mut is_right = true;
    let mut complain = |kind: &'static str, name: &str, message: &str, input: Value| {
        fields.error(kind, &format!("{loc}.{name}"), message, input);
        is_right = false;
    };
    let [name, description, parameters] =
        ["name", "description", "parameters"].map(|name| function.shift_remove(name));
    match &name {
        None => complain("missing", "name", "Field required", whole),
        Some(name) if !name.is_string() => {
            complain("string_type", "name", "Input should be a valid string", name.clone());
        }
        Some(_) => {}
    }
    let (description, parameters) = (description.unwrap_or_default(), parameters.unwrap_or_default());
    if !(description.is_null() || description.is_string()) {
        complain("string_type", "description", "Input should be a valid string", description.clone());
    }
    if !(parameters.is_null() || parameters.is_object()) {
        complain("dict_type", "parameters", "Input should be a valid dictionary", parameters.clone());
    }
    if !is_right {
        return None;
    }
    let declared =
        [("name", name.unwrap_or_default()), ("description", description), ("parameters", parameters)];
    let mut dumped = Map::from_iter(declared.map(|(name, value)| (name.to_owned(), value)));
    match version {
        // Only the fields that are set.
        VllmVersion::V0_33 => {
            let set = |name: &'static str| {
                let value = function.shift_remove(name).filter(|value| !value.is_null())?;
                Some((name.to_owned(), value))
            };
            dumped.extend(["strict", "defer_loading"].into_iter().filter_map(set));
        }
        // All other fields.
        VllmVersion::V0_8 | VllmVersion::V0_11 => dumped.extend(function),
    }
    Some(dumped)
}

fn object(fields: &mut Fields, loc: &str, value: Value) -> Option<Map<String, Value>> {
    match value {
        Value::Object(object) => Some(object),
        other => {
            let message = "Input should be a valid dictionary or object to extract fields from";
            fields.error("model_attributes_type", loc, message, other);
            None
        }
    }
}
