//! Makes one value. A value must satisfy several schemas at once (`allOf`, `$ref` and its neighbours, a branch of
//! `anyOf` and the keywords beside it). They are kept as a list of conjuncts, and combined only for the value at hand.

use super::check::TYPES;
use super::gave_up::GaveUp;
use super::number::{self, Kind};
use super::validate::{Validator, equal, item_schema, property_schema};
use super::{Schema, SchemaError};
use crate::structured::pattern::{Lengths, Pattern};
use crate::structured::{format, words};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde_json::{Map, Value};

/// Depth beyond which only required parts are made, and the simplest branch is tried first.
const SOFT_DEPTH: usize = 4;
/// Depth beyond which a branch is given up.
const DEPTH_LIMIT: usize = 48;
/// Most values tried for one schema, those that are given up included.
const N_STEPS_LIMIT: usize = 20_000;
/// Most bytes of text in one value.
const TEXT_LIMIT: usize = 256 << 10;
/// Most draws of a value that can only be tested afterwards.
const N_RETRIES: usize = 16;
const N_UNIQUE_RETRIES: usize = 100;
/// Most items and extra properties if the schema leaves the number open.
const N_OPEN: usize = 3;
/// Most characters of a text whose length is open.
const OPEN_LENGTH: usize = 40;

pub(super) struct Composer<'s, 'r> {
    schema: &'s Schema,
    /// Validator of all tests, so that its limit holds for the value as a whole.
    validator: Validator<'s>,
    rng: &'r mut dyn Rng,
    n_steps: usize,
    n_text_bytes: usize,
}

/// Schemas of one value, with references and `allOf` unfolded.
#[derive(Clone, Default)]
struct Demand<'s> {
    conjuncts: Vec<&'s Map<String, Value>>,
    /// `anyOf` and `oneOf` without a chosen branch yet.
    choices: Vec<&'s [Value]>,
    /// True if something can only be tested on the value.
    needs_test: bool,
    has_false: bool,
}

// === impl Demand ===

impl<'s> Demand<'s> {
    fn add(&mut self, schema: &'s Schema, first: &'s Value) {
        let mut pending = vec![first];
        while let Some(next) = pending.pop() {
            let Value::Object(keywords) = next else {
                self.has_false |= next == &Value::Bool(false);
                continue;
            };
            if self.conjuncts.iter().any(|known| std::ptr::eq(*known, keywords)) {
                continue;
            }
            self.conjuncts.push(keywords);
            pending
                .extend(keywords.get("$ref").and_then(Value::as_str).and_then(|name| schema.resolve(name)));
            // In reverse order, because the first schema of the list must be unfolded first, for the order of
            // properties.
            pending.extend(keywords.get("allOf").and_then(Value::as_array).into_iter().flatten().rev());
            for keyword in ["anyOf", "oneOf"] {
                self.choices.extend(keywords.get(keyword).and_then(Value::as_array).map(Vec::as_slice));
            }
            self.needs_test |= keywords.contains_key("oneOf") || keywords.contains_key("not");
        }
    }

    fn values(&self, keyword: &str) -> impl Iterator<Item = &'s Value> {
        self.conjuncts.iter().filter_map(move |keywords| keywords.get(keyword))
    }

    fn counts(&self, keyword: &str) -> impl Iterator<Item = usize> {
        self.values(keyword).filter_map(super::check::count).filter_map(|count| usize::try_from(count).ok())
    }

    /// Returns the strictest lower and upper bound.
    fn size(&self, min: &str, max: &str) -> Result<Lengths, GaveUp> {
        let min = self.counts(min).max().unwrap_or_default();
        let max = self.counts(max).min().unwrap_or(usize::MAX);
        if min <= max { Ok(Lengths { min, max }) } else { Err(GaveUp::Unsatisfiable) }
    }

    /// Returns the types that all schemas allow; all types if no schema has `type`.
    fn types(&self) -> Vec<&'static str> {
        let allows = |types: &Value, name: &str| match types {
            Value::Array(types) => types.iter().any(|of| of == name),
            of => of == name,
        };
        // An integer is a number, so integers are what both types have in common.
        let is_allowed = |name: &str| {
            self.values("type")
                .all(|types| allows(types, name) || name == "integer" && allows(types, "number"))
        };
        let mut types: Vec<_> = TYPES.into_iter().filter(|name| is_allowed(name)).collect();
        if types.contains(&"number") {
            types.retain(|name| *name != "integer");
        }
        types
    }
}

// === impl Composer ===

impl<'s, 'r> Composer<'s, 'r> {
    pub(super) fn new(schema: &'s Schema, rng: &'r mut dyn Rng) -> Self {
        Self { schema, validator: Validator::new(schema), rng, n_steps: 0, n_text_bytes: 0 }
    }

    pub(super) fn compose(&mut self, root: &'s Value) -> Result<Value, SchemaError> {
        self.value(&[root], 0).map_err(SchemaError::from)
    }

    /// Makes a value that satisfies all of `schemas`.
    fn value(&mut self, schemas: &[&'s Value], depth: usize) -> Result<Value, GaveUp> {
        if depth > DEPTH_LIMIT {
            return Err(GaveUp::TooDeep);
        }
        let mut demand = Demand::default();
        schemas.iter().for_each(|schema| demand.add(self.schema, schema));
        if let Some(listed) = listed_values(&demand) {
            return self.listed(listed, &demand);
        }
        let n_tries = if demand.needs_test { N_RETRIES } else { 1 };
        let mut last = GaveUp::Unsatisfiable;
        for _ in 0..n_tries {
            match self.branch(demand.clone(), depth) {
                Ok(value) if !demand.needs_test || self.accept(&demand, &value) => return Ok(value),
                Ok(_) => {}
                Err(GaveUp::TooComplex) => return Err(GaveUp::TooComplex),
                Err(stop) => last = stop,
            }
        }
        Err(last)
    }

    fn accept(&self, demand: &Demand<'s>, value: &Value) -> bool {
        !demand.has_false && demand.conjuncts.iter().all(|keywords| self.validator.satisfies(keywords, value))
    }

    fn listed(&mut self, values: &'s [Value], demand: &Demand<'s>) -> Result<Value, GaveUp> {
        let valid: Vec<_> = values.iter().filter(|value| self.accept(demand, value)).collect();
        if valid.is_empty() {
            return Err(GaveUp::Unsatisfiable);
        }
        let value = valid[self.rng.random_range(0..valid.len())].clone();
        self.charge_text(value.as_str().map_or(0, str::len))?;
        Ok(value)
    }

    /// Chooses branches until none is open, then makes a value.
    fn branch(&mut self, mut demand: Demand<'s>, depth: usize) -> Result<Value, GaveUp> {
        self.n_steps += 1;
        if self.n_steps > N_STEPS_LIMIT || self.validator.is_exhausted() {
            return Err(GaveUp::TooComplex);
        }
        if demand.has_false {
            return Err(GaveUp::Unsatisfiable);
        }
        let Some(branches) = demand.choices.pop() else { return self.plain(&demand, depth) };
        let mut order: Vec<&'s Value> = branches.iter().collect();
        order.shuffle(&mut self.rng);
        if depth >= SOFT_DEPTH {
            order.sort_by_key(|schema| self.complexity(schema));
        }
        let mut last = GaveUp::Unsatisfiable;
        for schema in order {
            let mut chosen = demand.clone();
            chosen.add(self.schema, schema);
            let attempt = match listed_values(&chosen) {
                Some(listed) => self.listed(listed, &chosen),
                None => self.branch(chosen, depth),
            };
            match attempt {
                Err(GaveUp::TooComplex) => return Err(GaveUp::TooComplex),
                Err(stop) => last = stop,
                Ok(value) => return Ok(value),
            }
        }
        Err(last)
    }

    /// Estimates how deep a schema nests, to find a way out of a recursion.
    fn complexity(&self, schema: &'s Value) -> usize {
        let mut demand = Demand::default();
        demand.add(self.schema, schema);
        let has = |keyword: &str| demand.values(keyword).next().is_some();
        let n_required = demand.values("required").filter_map(Value::as_array).map(Vec::len).sum::<usize>();
        let n_items = demand.counts("minItems").max().unwrap_or_default();
        let is_scalar = !demand.types().iter().any(|name| ["array", "object"].contains(name));
        if has("const") || has("enum") || is_scalar {
            0
        } else {
            1 + n_required + n_items + demand.choices.len()
        }
    }

    /// Makes a value of a demand without open choices.
    fn plain(&mut self, demand: &Demand<'s>, depth: usize) -> Result<Value, GaveUp> {
        let mut last = GaveUp::Unsatisfiable;
        for name in self.ordered_types(demand, depth) {
            let attempt = match name {
                "null" => Ok(Value::Null),
                "boolean" => Ok(Value::Bool(self.rng.random())),
                "integer" => number::draw(&demand.conjuncts, Kind::Integer, self.rng).map(Value::Number),
                "number" => number::draw(&demand.conjuncts, Kind::Number, self.rng).map(Value::Number),
                "string" => self.text(demand).map(Value::String),
                "array" => self.array(demand, depth),
                _ => self.object(demand, depth),
            };
            match attempt {
                Err(GaveUp::TooComplex) => return Err(GaveUp::TooComplex),
                Err(stop) => last = stop,
                Ok(value) => return Ok(value),
            }
        }
        Err(last)
    }

    /// Returns the allowed types in the order of trying: first those that the schema's keywords are about; null last,
    /// but sometimes first.
    fn ordered_types(&mut self, demand: &Demand<'s>, depth: usize) -> Vec<&'static str> {
        let mut types = demand.types();
        types.shuffle(&mut self.rng);
        let has = |keywords: &[&str]| keywords.iter().any(|keyword| demand.values(keyword).next().is_some());
        if demand.needs_test && !has(&["type"]) {
            // Only draws show which types `not` and `oneOf` leave.
            return types;
        }
        let is_deep = depth >= SOFT_DEPTH;
        let is_typed = has(&["type"]);
        let favours_null = is_deep || is_typed && types.len() > 1 && self.rng.random_range(0..8) == 0;
        types.sort_by_key(|name| match *name {
            "null" => {
                if favours_null && is_typed {
                    0
                } else {
                    9
                }
            }
            _ if is_typed => {
                if is_deep && ["array", "object"].contains(name) {
                    2
                } else {
                    1
                }
            }
            "object" if has(&["properties", "required", "additionalProperties", "minProperties"]) => 1,
            "array" if has(&["items", "prefixItems", "minItems", "uniqueItems"]) => 2,
            "string" if has(&["pattern", "format", "minLength", "maxLength"]) => 3,
            "number"
                if has(&["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"]) =>
            {
                3
            }
            "string" => 4,
            "number" | "boolean" => 5,
            _ => 6,
        });
        types
    }

    fn text(&mut self, demand: &Demand<'s>) -> Result<String, GaveUp> {
        let lengths = demand.size("minLength", "maxLength")?;
        let sources = demand.values("pattern").filter_map(Value::as_str);
        let patterns: Vec<&Pattern> = sources.filter_map(|source| self.schema.patterns.get(source)).collect();
        let matches = |text: &str| patterns.iter().all(|pattern| pattern.matches(text));
        let format = demand.values("format").filter_map(Value::as_str).next();
        let mut drawn = None;
        for _ in 0..N_RETRIES {
            let Some(text) = format.and_then(|format| format::text(format, self.rng)) else { break };
            if (lengths.min..=lengths.max).contains(&text.len()) && matches(&text) {
                drawn = Some(text);
                break;
            }
        }
        let text = match (drawn, patterns.first()) {
            (Some(text), _) => text,
            (None, Some(pattern)) => {
                pattern.generate_within(lengths, matches, self.rng).ok_or(GaveUp::Unsatisfiable)?
            }
            (None, None) if format.is_some_and(|format| format::text(format, self.rng).is_some()) => {
                return Err(GaveUp::Unsatisfiable);
            }
            (None, None) => words::text(self.rng, lengths.min, lengths.max.min(lengths.min.max(OPEN_LENGTH))),
        };
        self.charge_text(text.len())?;
        Ok(text)
    }

    fn charge_text(&mut self, n_bytes: usize) -> Result<(), GaveUp> {
        self.n_text_bytes += n_bytes;
        if self.n_text_bytes > TEXT_LIMIT { Err(GaveUp::TooComplex) } else { Ok(()) }
    }

    fn array(&mut self, demand: &Demand<'s>, depth: usize) -> Result<Value, GaveUp> {
        let Lengths { min, max } = demand.size("minItems", "maxItems")?;
        let is_unique = demand.values("uniqueItems").any(|value| value == &Value::Bool(true));
        let prefixes = demand.values("prefixItems").chain(demand.values("items")).filter_map(Value::as_array);
        let n_prefix = prefixes.map(Vec::len).max().unwrap_or_default();
        let n_items = if depth >= SOFT_DEPTH {
            min
        } else {
            let n_least = min.max(n_prefix.max(1)).min(max);
            self.rng.random_range(n_least..=n_least.saturating_add(N_OPEN - 1).min(max.max(n_least)))
        };
        let mut items: Vec<Value> = Vec::new();
        while items.len() < n_items {
            let schemas: Vec<_> =
                demand.conjuncts.iter().filter_map(|keywords| item_schema(keywords, items.len())).collect();
            let item = if is_unique {
                self.unlike(&items, &schemas, depth + 1)
            } else {
                self.value(&schemas, depth + 1)
            };
            match item {
                Ok(item) => items.push(item),
                Err(GaveUp::Unsatisfiable | GaveUp::TooDeep) if items.len() >= min => break,
                Err(stop) => return Err(stop),
            }
        }
        Ok(Value::Array(items))
    }

    /// Makes a value that is not among `others`.
    fn unlike(&mut self, others: &[Value], schemas: &[&'s Value], depth: usize) -> Result<Value, GaveUp> {
        for _ in 0..N_UNIQUE_RETRIES {
            let value = self.value(schemas, depth)?;
            if !others.iter().any(|other| equal(other, &value)) {
                return Ok(value);
            }
        }
        Err(GaveUp::Unsatisfiable)
    }

    fn object(&mut self, demand: &Demand<'s>, depth: usize) -> Result<Value, GaveUp> {
        let size = demand.size("minProperties", "maxProperties")?;
        let mut fields = Map::new();
        for (name, is_required) in self.property_names(demand, size, depth)? {
            let schemas = property_schemas(demand, name);
            match self.value(&schemas, depth + 1) {
                Ok(value) => drop(fields.insert(name.to_owned(), value)),
                Err(GaveUp::Unsatisfiable | GaveUp::TooDeep) if !is_required => {}
                Err(stop) => return Err(stop),
            }
        }
        let is_free = demand.values("properties").next().is_none();
        let n_wanted = if is_free && fields.is_empty() && depth < SOFT_DEPTH {
            self.rng.random_range(1..=N_OPEN).max(size.min).min(size.max)
        } else {
            size.min
        };
        while fields.len() < n_wanted {
            let mut name = words::key(self.rng).to_owned();
            if fields.contains_key(&name)
                || demand.values("properties").any(|known| known.get(&name).is_some())
            {
                name = format!("{name}_{}", fields.len() + 1);
            }
            let schemas = property_schemas(demand, &name);
            match self.value(&schemas, depth + 1) {
                Ok(value) => drop(fields.insert(name, value)),
                Err(GaveUp::Unsatisfiable | GaveUp::TooDeep) if fields.len() >= size.min => break,
                Err(stop) => return Err(stop),
            }
        }
        Ok(Value::Object(fields))
    }

    /// Returns the properties to make, in the schema's order, each with whether it is required.
    fn property_names(
        &mut self,
        demand: &Demand<'s>,
        size: Lengths,
        depth: usize,
    ) -> Result<Vec<(&'s str, bool)>, GaveUp> {
        let required =
            demand.values("required").filter_map(Value::as_array).flatten().filter_map(Value::as_str);
        let required: Vec<&str> = required.collect();
        let known = demand.values("properties").filter_map(Value::as_object).flat_map(Map::keys);
        let mut names: Vec<(&'s str, bool)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for name in
            known.map(String::as_str).chain(required.iter().copied()).filter(|name| seen.insert(*name))
        {
            names.push((name, required.contains(&name)));
        }
        let n_required = names.iter().filter(|(_, is_required)| *is_required).count();
        if n_required > size.max {
            return Err(GaveUp::Unsatisfiable);
        }
        let mut n_optional_room = size.max - n_required;
        let mut n_optional_needed = size.min.saturating_sub(n_required);
        names.retain(|(_, is_required)| {
            let is_likely = depth < SOFT_DEPTH && self.rng.random_range(0..4) > 0;
            let is_chosen = *is_required || n_optional_room > 0 && (is_likely || n_optional_needed > 0);
            if is_chosen && !is_required {
                n_optional_room -= 1;
                n_optional_needed = n_optional_needed.saturating_sub(1);
            }
            is_chosen
        });
        Ok(names)
    }
}

/// Returns the values of the first `const` or `enum`.
fn listed_values<'s>(demand: &Demand<'s>) -> Option<&'s [Value]> {
    let constant = demand.values("const").next().map(std::slice::from_ref);
    constant.or_else(|| demand.values("enum").filter_map(Value::as_array).map(Vec::as_slice).next())
}

/// Returns the schemas of a property from all schemas.
fn property_schemas<'s>(demand: &Demand<'s>, name: &str) -> Vec<&'s Value> {
    demand.conjuncts.iter().filter_map(|keywords| property_schema(keywords, name)).collect()
}
