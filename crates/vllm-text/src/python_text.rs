//! Writes values in Python's spelling (`json.dumps`, `repr` and `str`), for texts that vLLM makes of them.

use serde_json::{Map, Number, Value};
use std::fmt::Write;

/// Arguments of `json.dumps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonStyle {
    pub ensure_ascii: bool,
    /// Indentation of each level; `None` writes all on one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

// === impl JsonStyle ===

impl JsonStyle {
    /// Style of `json.dumps(value, ensure_ascii=False)`.
    pub fn unicode() -> Self {
        Self {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
        }
    }

    /// Writes a value like `json.dumps(value, ..)`.
    pub fn dumps(&self, value: &Value) -> String {
        let mut text = String::new();
        self.write(&mut text, value, 0);
        text
    }

    fn write(&self, text: &mut String, value: &Value, depth: usize) {
        match value {
            Value::Null => text.push_str("null"),
            Value::Bool(truth) => text.push_str(if *truth { "true" } else { "false" }),
            Value::Number(number) => text.push_str(&number_repr(number)),
            Value::String(string) => self.write_string(text, string),
            Value::Array(items) => {
                let items = items.iter().map(|item| (None, item)).collect();
                self.write_items(text, ['[', ']'], items, depth);
            }
            Value::Object(fields) => {
                let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
                if self.sort_keys {
                    fields.sort_by_key(|(name, _)| *name);
                }
                let items = fields.into_iter().map(|(name, field)| (Some(name.as_str()), field)).collect();
                self.write_items(text, ['{', '}'], items, depth);
            }
        }
    }

    /// Writes items with their keys, if they have any.
    fn write_items(
        &self,
        text: &mut String,
        [open, close]: [char; 2],
        items: Vec<(Option<&str>, &Value)>,
        depth: usize,
    ) {
        let break_line = |text: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                text.push('\n');
                text.push_str(&indent.repeat(depth));
            }
        };
        let is_empty = items.is_empty();
        text.push(open);
        for (item_idx, (key, item)) in items.into_iter().enumerate() {
            text.push_str(if item_idx == 0 { "" } else { &self.item_separator });
            break_line(text, depth + 1);
            if let Some(key) = key {
                self.write_string(text, key);
                text.push_str(&self.key_separator);
            }
            self.write(text, item, depth + 1);
        }
        if !is_empty {
            break_line(text, depth);
        }
        text.push(close);
    }

    fn write_string(&self, text: &mut String, string: &str) {
        // JSON's own escapes are the same in Python.
        let quoted = Value::from(string).to_string();
        if !self.ensure_ascii {
            text.push_str(&quoted);
            return;
        }
        for character in quoted.chars() {
            if character.is_ascii() && character != '\u{7f}' {
                text.push(character);
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    let _infallible = write!(text, "\\u{unit:04x}");
                }
            }
        }
    }
}

/// Writes a value like `repr(value)`.
pub fn repr(value: &Value) -> String {
    repr_with(value, &number_repr)
}

/// Writes a value like `repr(value)`, with numbers as `number` writes them.
pub fn repr_with(value: &Value, number: &dyn Fn(&Number) -> String) -> String {
    let mut text = String::new();
    write_repr(&mut text, value, number);
    text
}

/// Writes a float like `repr(float)`.
pub fn float_repr(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    // Rust has the same shortest digits; Python writes an exponent below 1e-4 and from 1e16.
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

fn number_repr(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => float_repr(float),
        Some(_) | None => number.to_string(),
    }
}

fn write_repr(text: &mut String, value: &Value, number: &dyn Fn(&Number) -> String) {
    match value {
        Value::Null => text.push_str("None"),
        Value::Bool(truth) => text.push_str(if *truth { "True" } else { "False" }),
        Value::Number(digits) => text.push_str(&number(digits)),
        Value::String(string) => write_string_repr(text, string),
        Value::Array(items) => {
            text.push('[');
            for (item_idx, item) in items.iter().enumerate() {
                text.push_str(if item_idx == 0 { "" } else { ", " });
                write_repr(text, item, number);
            }
            text.push(']');
        }
        Value::Object(fields) => write_dict_repr(text, fields, number),
    }
}

fn write_dict_repr(text: &mut String, fields: &Map<String, Value>, number: &dyn Fn(&Number) -> String) {
    text.push('{');
    for (field_idx, (name, field)) in fields.iter().enumerate() {
        text.push_str(if field_idx == 0 { "" } else { ", " });
        write_string_repr(text, name);
        text.push_str(": ");
        write_repr(text, field, number);
    }
    text.push('}');
}

fn write_string_repr(text: &mut String, string: &str) {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for character in string.chars() {
        match character {
            '\\' => text.push_str(r"\\"),
            '\n' => text.push_str(r"\n"),
            '\r' => text.push_str(r"\r"),
            '\t' => text.push_str(r"\t"),
            _ if character == quote => text.extend(['\\', character]),
            _ if character.is_control() => {
                let _infallible = write!(text, "\\x{:02x}", u32::from(character));
            }
            _ => text.push(character),
        }
    }
    text.push(quote);
}

#[cfg(test)]
mod tests {
    use super::{JsonStyle, float_repr, repr};
    use serde_json::json;

    #[test]
    fn json_is_pythons() {
        // Output of json.dumps(..) of Python 3.11.
        let value = json!({"b": [1, -0.0, 1e22, 1.5e-7, {}], "a": {"é\u{7f}\"\u{1}\u{8}😀/": "x,y:z"}, "n": null, "e": []});
        let unicode = "{\"b\": [1, -0.0, 1e+22, 1.5e-07, {}], \"a\": {\"é\u{7f}\\\"\\u0001\\b😀/\": \"x,y:z\"}, \"n\": null, \"e\": []}";
        assert_eq!(JsonStyle::unicode().dumps(&value), unicode);
        let ascii = JsonStyle { ensure_ascii: true, ..JsonStyle::unicode() };
        assert_eq!(ascii.dumps(&json!("é😀\u{7f}")), r#""\u00e9\ud83d\ude00\u007f""#);
        let pretty = JsonStyle {
            indent: Some("  ".to_owned()),
            item_separator: ",".to_owned(),
            sort_keys: true,
            ..JsonStyle::unicode()
        };
        assert_eq!(
            pretty.dumps(&json!({"b": [1, {}], "a": []})),
            "{\n  \"a\": [],\n  \"b\": [\n    1,\n    {}\n  ]\n}"
        );
    }

    #[test]
    fn floats_are_pythons() {
        let cases = [
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (123_456_789.125, "123456789.125"),
            (5e-324, "5e-324"),
            (1.797_693_134_862_315_7e308, "1.7976931348623157e+308"),
        ];
        for (value, expected) in cases {
            assert_eq!(float_repr(value), expected);
        }
    }

    #[test]
    fn containers_print_as_in_python() {
        let value = json!({"a": [true, null, "it's", "\"'\n"], "b": {}});
        assert_eq!(repr(&value), r#"{'a': [True, None, "it's", '"\'\n'], 'b': {}}"#);
    }
}
