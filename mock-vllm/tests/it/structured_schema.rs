//! Values that are made for schemas, judged by an independent validator; and schemas that are rejected.

use mock_vllm::structured::schema::{Schema, SchemaError};
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_oneof, proptest};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value, json};

const N_SEEDS: u64 = 25;

fn is_valid(schema: &Value, value: &Value) -> bool {
    jsonschema::options().should_validate_formats(true).build(schema).unwrap().is_valid(value)
}

/// Validates with `format` as an annotation, its default meaning: beside `not`, `oneOf` or a `pattern` it may not hold.
fn is_valid_but_for_formats(schema: &Value, value: &Value) -> bool {
    jsonschema::options().should_validate_formats(false).build(schema).unwrap().is_valid(value)
}

fn generate(schema: &Value, seed: u64) -> Result<Value, SchemaError> {
    Schema::parse(schema)?.generate(&mut ChaCha8Rng::seed_from_u64(seed))
}

#[track_caller]
fn check(schema: Value) {
    for seed in 0..N_SEEDS {
        let value = generate(&schema, seed).unwrap_or_else(|error| panic!("{schema}: {error}"));
        assert!(is_valid(&schema, &value), "seed {seed}: {schema} got {value}");
        assert!(value.to_string().len() < 1 << 20, "{schema}");
    }
}

#[track_caller]
fn check_refused(schema: Value, expected: &str) {
    let error = generate(&schema, 1).unwrap_err().to_string();
    assert!(error.contains(expected), "{schema}: {error}");
}

#[test]
fn scalars_are_valid() {
    for name in ["null", "boolean", "integer", "number", "string", "array", "object"] {
        check(json!({"type": name}));
    }
    check(json!({}));
    check(json!(true));
    check(json!({"type": ["string", "null"]}));
    check(json!({"type": ["integer", "number"]}));
    check(json!({"enum": [1, "a", null, {"b": [2]}]}));
    check(json!({"const": {"a": 1}}));
    check(json!({"type": "string", "enum": [1, "a", 2]}));
    check(json!({"type": "string", "nullable": true}));
}

#[test]
fn numbers_keep_their_bounds() {
    check(json!({"type": "integer", "minimum": 3, "maximum": 3}));
    check(json!({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5}));
    check(json!({"type": "integer", "minimum": -7.5, "maximum": -6.5}));
    check(json!({"type": "integer", "multipleOf": 7, "minimum": 50}));
    check(json!({"type": "integer", "multipleOf": 1.5, "maximum": -1}));
    check(json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.01}));
    check(json!({"type": "number", "multipleOf": 0.25, "minimum": 1.1, "maximum": 1.3}));
    check(json!({"type": "number", "allOf": [{"multipleOf": 4}, {"multipleOf": 6}]}));
    check(json!({"type": "number", "minimum": 1e6, "maximum": 1.5e6}));
    check(json!({"type": "integer", "minimum": 9007199254740993i64}));
    check(json!({"type": "integer", "minimum": -1e300, "maximum": 1e300}));
    check_refused(json!({"type": "integer", "minimum": 3.1, "maximum": 3.9}), "no value satisfies");
    check_refused(
        json!({"type": "integer", "multipleOf": 10, "minimum": 1, "maximum": 9}),
        "no value satisfies",
    );
}

#[test]
fn texts_keep_length_pattern_and_format() {
    check(json!({"type": "string", "minLength": 1, "maxLength": 1}));
    check(json!({"type": "string", "maxLength": 0}));
    check(json!({"type": "string", "minLength": 500, "maxLength": 500}));
    check(json!({"type": "string", "minLength": 9_999}));
    for pattern in [
        "^[A-Z]{2}-\\d{4}$",
        "foo|bar",
        "^(\\+?\\d{1,3})?[ -]?\\d{6,}$",
        "[^a-z]+",
        "^.{3,5}$",
        "^\\w+@\\w+\\.com$",
        "\\bword\\b",
        "^(?:a|b(?:c|d)*)+$",
        "^[\\u4e00-\\u9fff]{2}$",
        "^\\s\\S$",
        "^(?<year>\\d{4})-(?<month>0[1-9]|1[0-2])$",
        "^\\/api\\/v[1-3]$",
        "^$",
    ] {
        check(json!({"type": "string", "pattern": pattern}));
    }
    check(json!({"type": "string", "pattern": "^[a-z]+$", "minLength": 30, "maxLength": 32}));
    check(json!({"type": "string", "pattern": "^(ab)*$", "minLength": 10, "maxLength": 12}));
    check(json!({"type": "string", "allOf": [{"pattern": "a"}, {"pattern": "^[abc]+$"}]}));
    for format in [
        "date",
        "time",
        "date-time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "uuid",
        "json-pointer",
        "regex",
        "iri",
        "uri-template",
        "relative-json-pointer",
        "password",
    ] {
        check(json!({"type": "string", "format": format}));
    }
    check(json!({"type": "string", "format": "email", "maxLength": 30}));
}

#[test]
fn arrays_keep_their_items() {
    check(json!({"type": "array", "items": {"type": "integer"}, "minItems": 5, "maxItems": 5}));
    check(json!({"type": "array", "maxItems": 0}));
    check(json!({"type": "array", "items": {"enum": [1, 2, 3, 4]}, "uniqueItems": true, "minItems": 4}));
    check(json!({"type": "array", "items": {"type": "boolean"}, "uniqueItems": true, "minItems": 2}));
    check(json!({"type": "array", "items": {"enum": [1, 1.0, 2]}, "uniqueItems": true}));
    check(json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": false}));
    check(json!({"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "minItems": 4}));
    check(json!({"type": "array", "items": {"type": "integer"}, "minItems": 1000}));
    check(json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array",
        "items": [{"const": 1}, {"const": 2}], "additionalItems": false, "minItems": 2}));
    check_refused(
        json!({"type": "array", "items": {"const": 1}, "uniqueItems": true, "minItems": 2}),
        "no value",
    );
    check_refused(json!({"type": "array", "items": false, "minItems": 1}), "no value");
}

#[test]
fn objects_keep_their_properties() {
    check(json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["b"],
        "additionalProperties": false}));
    check(json!({"required": ["x"], "additionalProperties": {"type": "integer"}}));
    check(json!({"type": "object", "minProperties": 5}));
    check(
        json!({"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 1, "required": ["c"]}),
    );
    check(
        json!({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 2, "additionalProperties": false}),
    );
    check(json!({"type": "object", "properties": {"never": false, "a": {"const": 1}}}));
    check(json!({"type": "object", "additionalProperties": false}));
    check_refused(json!({"type": "object", "required": ["x"], "additionalProperties": false}), "no value");
    check_refused(json!({"type": "object", "required": ["x", "y"], "maxProperties": 1}), "no value");
    check_refused(json!({"type": "object", "properties": {"x": false}, "required": ["x"]}), "no value");
}

#[test]
fn properties_come_in_the_schemas_order() {
    let schema =
        json!({"type": "object", "properties": {"z": {}, "a": {}, "m": {}}, "required": ["m", "a", "z"]});
    let value = generate(&schema, 3).unwrap();
    assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), ["z", "a", "m"]);
}

#[test]
fn compositions_hold_together() {
    check(json!({"anyOf": [{"type": "string"}, {"type": "integer"}], "enum": [1, "a", null]}));
    check(json!({"type": "string", "anyOf": [{"enum": [1, "a"]}, {"const": 2}]}));
    check(json!({"oneOf": [{"type": "integer", "multipleOf": 2}, {"type": "integer", "multipleOf": 3}]}));
    check(json!({"oneOf": [{"type": "number"}, {"type": "integer"}]}));
    check(json!({"not": {"type": "string"}}));
    check(json!({"type": "integer", "minimum": 1, "maximum": 3, "not": {"const": 2}}));
    check(json!({"allOf": [
        {"properties": {"a": {"minimum": 5}}, "required": ["a"]},
        {"properties": {"a": {"type": "integer", "maximum": 5}}},
    ]}));
    check(
        json!({"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"], "anyOf": [
            {"properties": {"kind": {"const": "circle"}, "radius": {"type": "number"}}, "required": ["radius"]},
            {"properties": {"kind": {"const": "square"}, "side": {"type": "number"}}, "required": ["side"]},
        ]}),
    );
    check(
        json!({"allOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"anyOf": [{"const": 2}, {"const": 3}]}]}),
    );
    check_refused(json!({"allOf": [{"type": "string"}, {"type": "integer"}]}), "no value satisfies");
    check_refused(json!({"const": 1, "not": {"const": 1}}), "no value satisfies");
    check_refused(json!({"oneOf": [{"const": 1}, {"const": 1}]}), "no value satisfies");
    check_refused(json!(false), "no value satisfies");
}

#[test]
fn references_may_recurse() {
    check(
        json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["value", "children"],
        "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}}}),
    );
    check(
        json!({"type": "object", "required": ["next"], "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}),
    );
    check(
        json!({"$ref": "#/definitions/a%20b", "definitions": {"a b": {"$ref": "#/definitions/c~1d"}, "c/d": {"const": 4}}}),
    );
    check(
        json!({"$defs": {"expr": {"oneOf": [{"type": "integer"}, {"type": "object", "required": ["left", "right"],
        "additionalProperties": false,
        "properties": {"left": {"$ref": "#/$defs/expr"}, "right": {"$ref": "#/$defs/expr"}}}]}}, "$ref": "#/$defs/expr"}),
    );
    check(
        json!({"properties": {"a": {"$ref": "#/$defs/s", "minLength": 3}}, "$defs": {"s": {"type": "string", "maxLength": 3}},
        "required": ["a"]}),
    );
    check_refused(
        json!({"type": "object", "required": ["me"], "properties": {"me": {"$ref": "#"}}}),
        "recurses without an end",
    );
    check_refused(json!({"$ref": "#/$defs/nope"}), "#/$ref: cannot find #/$defs/nope");
    check_refused(json!({"$ref": "https://example.com/x.json"}), "cannot find");
}

#[test]
fn bombs_end_in_an_error() {
    let mut doubling = Map::new();
    for level in 0..60 {
        let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        doubling.insert(
            format!("d{level}"),
            json!({"type": "array", "prefixItems": [next, next], "minItems": 2}),
        );
    }
    doubling.insert("d60".to_owned(), json!({"type": "null"}));
    let bomb = json!({"$ref": "#/$defs/d0", "$defs": doubling});
    assert!(matches!(generate(&bomb, 1), Err(SchemaError::TooComplex | SchemaError::TooDeep)));

    let mut validating = Map::new();
    for level in 0..60 {
        let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
        validating.insert(format!("d{level}"), json!({"allOf": [next, {"not": {"not": next}}]}));
    }
    validating.insert("d60".to_owned(), json!({"type": "null"}));
    let bomb = json!({"$ref": "#/$defs/d0", "$defs": validating});
    assert!(generate(&bomb, 1).is_err());

    let wide = (0..1000).fold(json!({"type": "integer"}), |_, _| {
        json!({"type": "array", "minItems": 1000,
        "items": {"type": "array", "minItems": 1000, "items": {"type": "integer"}}})
    });
    assert_eq!(generate(&wide, 1), Err(SchemaError::TooComplex));

    let loops = json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}});
    assert!(generate(&loops, 1).is_err());

    let mut deep = json!({"type": "integer"});
    for _ in 0..400 {
        deep = json!({"type": "array", "items": deep, "minItems": 1});
    }
    assert_eq!(generate(&deep, 1), Err(SchemaError::TooDeep));
    check_refused(
        json!({"type": "string", "minLength": 1_000_000_000}),
        "#/minLength: minLength asks for more than 10000",
    );
    check_refused(json!({"type": "string", "pattern": "(?:(?:a{1000}){1000}){1000}"}), "#/pattern: pattern");
}

#[test]
fn what_is_not_supported_is_named_with_its_path() {
    check_refused(
        json!({"properties": {"a/b": {"if": true}}}),
        "#/properties/a~1b: keyword if is not supported",
    );
    check_refused(json!({"items": {"anyOf": [{}, {"contains": {}}]}}), "#/items/anyOf/1: keyword contains");
    check_refused(json!({"patternProperties": {"^a": {}}}), "#: keyword patternProperties");
    check_refused(
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"unevaluatedItems": false}}}),
        "#/$defs/a: keyword unevaluatedItems",
    );
    check_refused(json!({"pattern": "(?=a)"}), "#/pattern: pattern \"(?=a)\" is not supported: look-around");
    check_refused(json!({"pattern": "("}), "unclosed group");
    check_refused(json!({"type": "text"}), "#/type: must be a type");
    check_refused(json!({"enum": []}), "#/enum: must be a list of values");
    check_refused(json!({"anyOf": []}), "#/anyOf: must not be empty");
    check_refused(json!({"minItems": -1}), "#/minItems: must be a whole number");
    check_refused(json!({"multipleOf": 0}), "#/multipleOf");
    check_refused(json!({"exclusiveMinimum": true}), "#/exclusiveMinimum: must be a number");
    check_refused(json!("string"), "#: a schema is an object or a boolean");
    // Unused definitions are not checked, and annotations are not rejected.
    check(json!({"type": "null", "$defs": {"a": {"if": true}}, "title": "T", "x-order": 1, "default": 3}));
}

#[test]
fn the_same_seed_gives_the_same_value() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "number"}}, "required": ["a", "n"]});
    assert_eq!(generate(&schema, 7), generate(&schema, 7));
    assert_ne!(generate(&schema, 7), generate(&schema, 8));
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"type": "boolean"})),
        Just(json!({"enum": ["a", 1, null]})),
        (-50..50i64, 0..40i64)
            .prop_map(|(min, span)| json!({"type": "integer", "minimum": min, "maximum": min + span})),
        (-50..50i64, 1..40i64).prop_map(
            |(min, span)| json!({"type": "number", "exclusiveMinimum": min, "exclusiveMaximum": min + span})
        ),
        (1..9i64).prop_map(|step| json!({"type": "integer", "multipleOf": step})),
        (0..30usize, 0..30usize)
            .prop_map(|(min, span)| json!({"type": "string", "minLength": min, "maxLength": min + span})),
        Just(json!({"type": "string", "pattern": "^[a-f]+(-[0-9]{2})?$"})),
        Just(json!({"type": ["string", "null"], "format": "date-time"})),
        Just(json!({"$ref": "#/$defs/tree"})),
    ]
}

fn schema() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(4, 24, 4, |inner| {
        let list = proptest::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            (list.clone(), any::<u8>(), any::<bool>()).prop_map(|(schemas, mask, is_closed)| {
                let names: Vec<String> = (0..schemas.len()).map(|idx| format!("p{idx}")).collect();
                let required: Vec<_> = names.iter().enumerate().filter(|(idx, _)| mask >> idx & 1 == 1).map(|(_, name)| name).collect();
                let required = json!(required);
                let properties: Map<String, Value> = names.iter().cloned().zip(schemas).collect();
                json!({"type": "object", "properties": properties, "required": required, "additionalProperties": !is_closed})
            }),
            (inner.clone(), 0..4usize, 0..3usize, any::<bool>()).prop_map(|(items, min, span, is_unique)| {
                json!({"type": "array", "items": items, "minItems": min, "maxItems": min + span, "uniqueItems": is_unique})
            }),
            (list.clone(), inner.clone()).prop_map(|(prefix, items)| json!({"type": "array", "prefixItems": prefix, "items": items})),
            list.clone().prop_map(|schemas| json!({"anyOf": schemas})),
            list.clone().prop_map(|schemas| json!({"oneOf": schemas})),
            list.prop_map(|schemas| json!({"allOf": schemas})),
            inner.prop_map(|schema| json!({"not": schema})),
        ]
    })
}

proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    /// Every made value is valid. Where none is made, none may exist; but no possible scalar is missed.
    #[test]
    fn any_schema_gives_a_valid_value_or_an_error(schema in schema(), seed in any::<u64>()) {
        let mut root = schema.as_object().unwrap().clone();
        root.insert("$defs".to_owned(), json!({"tree": {"type": "object", "required": ["v"],
            "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/tree"}}}}));
        let root = Value::Object(root);
        match generate(&root, seed) {
            Ok(value) => prop_assert!(is_valid_but_for_formats(&root, &value), "{root} got {value}"),
            Err(error) => {
                let is_hard = ["allOf", "oneOf", "not", "uniqueItems"].iter().any(|keyword| root.to_string().contains(keyword));
                prop_assert!(is_hard, "{root}: {error}");
            }
        }
    }

    /// Any JSON may be sent as a schema.
    #[test]
    fn no_json_panics(text in "\\{(\"(type|enum|items|\\$ref|minimum|pattern|anyOf|required)\":(1|-0.5e3|true|null|\\[\\]|\\{\\}|\"#\"|\"string\"),?){0,4}\\}", seed in any::<u64>()) {
        if let Ok(schema) = serde_json::from_str::<Value>(&text.replace(",}", "}")) {
            let _any_outcome = generate(&schema, seed);
        }
    }
}
