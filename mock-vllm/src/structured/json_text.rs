//! Writes JSON like models do, and like Python's `json.dumps(value, ensure_ascii=False)`: with a space after `:` and
//! `,`.

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::Formatter;
use std::io::{self, Write};

struct Spaced;

/// Writes a value on one line, with keys in its own order.
pub fn to_text(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, Spaced);
    value.serialize(&mut serializer).expect("a value has string keys and a vector takes every byte");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

// === impl Spaced ===

impl Formatter for Spaced {
    fn begin_array_value<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::to_text;
    use serde_json::json;

    #[test]
    fn spaces_stand_where_python_puts_them() {
        let value = json!({"b": [1, 2.5, {}], "a": {"é": "x,y:z"}, "n": null, "e": []});
        assert_eq!(to_text(&value), r#"{"b": [1, 2.5, {}], "a": {"é": "x,y:z"}, "n": null, "e": []}"#);
    }
}
