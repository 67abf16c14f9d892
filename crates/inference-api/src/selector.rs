//! Selectors of objects by their labels.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Conditions that labels must meet, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    #[serde(default)]
    pub match_expressions: Vec<LabelExpression>,
}

/// A condition for one label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct LabelExpression {
    key: String,
    operator: LabelOperator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// True if the labels meet all conditions. A selector without conditions selects everything.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        matches((&self.match_labels, &self.match_expressions), labels)
    }
}

/// True if the labels meet the conditions of a selector.
pub(crate) fn matches(
    (pairs, expressions): (&BTreeMap<String, String>, &[LabelExpression]),
    labels: &BTreeMap<String, String>,
) -> bool {
    let fits = |LabelExpression { key, operator, values }: &LabelExpression| {
        let value = labels.get(key);
        match operator {
            LabelOperator::In => value.is_some_and(|value| values.contains(value)),
            LabelOperator::NotIn => value.is_none_or(|value| !values.contains(value)),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
        }
    };
    pairs.iter().all(|(key, value)| labels.get(key) == Some(value)) && expressions.iter().all(fits)
}
