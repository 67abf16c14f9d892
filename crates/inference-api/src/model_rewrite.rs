//! InferenceModelRewrite: the models that serve requests for other models, or for any.

use serde::Deserialize;

use crate::field::FieldError;
use crate::object::{ObjectKey, ObjectMeta};
use crate::pool::{InferenceModel, PoolRef, TargetModel, check_targets};

/// Rules of a pool, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceModelRewrite {
    pub meta: ObjectMeta,
    /// The pool, which is in the rewrite's namespace.
    pub pool: ObjectKey,
    pub rules: Vec<RewriteRule>,
}

/// The targets of some requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteRule {
    /// Models that requests ask for. Empty: the rule is generic and takes every model that no other rule names.
    pub models: Vec<String>,
    /// Models that serve them. Empty: their names stay.
    pub targets: Vec<TargetModel>,
}

impl InferenceModelRewrite {
    /// True if a model has another name in the engines than for clients.
    #[must_use]
    pub fn renames(&self) -> bool {
        self.rules.iter().any(|RewriteRule { models, targets }| match models.as_slice() {
            [] => !targets.is_empty(),
            models => models.iter().any(|model| targets.iter().any(|target| target.name != *model)),
        })
    }
}

/// True if a model of `pool` has another name in the engines than for clients: the picker must restore it in responses.
pub fn renames<'a>(
    pool: &ObjectKey,
    models: impl IntoIterator<Item = &'a InferenceModel>,
    rewrites: impl IntoIterator<Item = &'a InferenceModelRewrite>,
) -> bool {
    models.into_iter().any(|model| model.pool == *pool && model.renames())
        || rewrites.into_iter().any(|rewrite| rewrite.pool == *pool && rewrite.renames())
}

// === wire form ===

#[derive(Deserialize)]
pub(crate) struct RewriteV1Alpha2 {
    metadata: ObjectMeta,
    spec: RewriteSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RewriteSpec {
    pool_ref: PoolRef,
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
struct RawRule {
    #[serde(default)]
    matches: Vec<RawMatch>,
    #[serde(default)]
    targets: Vec<RawTarget>,
}

#[derive(Deserialize)]
struct RawMatch {
    model: ModelMatch,
}

#[derive(Deserialize)]
struct ModelMatch {
    #[serde(rename = "type", default)]
    _kind: ModelMatchKind,
    value: String,
}

/// The API knows one way to compare names.
#[derive(Default, Deserialize)]
enum ModelMatchKind {
    #[default]
    Exact,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTarget {
    model_rewrite: String,
    weight: Option<u32>,
}

// === checks ===

impl TryFrom<RewriteV1Alpha2> for InferenceModelRewrite {
    type Error = FieldError;

    fn try_from(RewriteV1Alpha2 { metadata, spec }: RewriteV1Alpha2) -> Result<Self, FieldError> {
        let RewriteSpec { pool_ref, rules } = spec;
        let pool = pool_ref.into_pool(&metadata)?;
        let rules = rules.into_iter().enumerate().map(|(rule_idx, rule)| checked(rule_idx, rule));
        Ok(Self { meta: metadata, pool, rules: rules.collect::<Result<_, _>>()? })
    }
}

fn checked(rule_idx: usize, RawRule { matches, targets }: RawRule) -> Result<RewriteRule, FieldError> {
    let path = format!("spec.rules[{rule_idx}]");
    let models: Vec<String> = matches.into_iter().map(|matcher| matcher.model.value).collect();
    if let Some(match_idx) = models.iter().position(String::is_empty) {
        let field = format!("{path}.matches[{match_idx}].model.value");
        return Err(FieldError::new(field, "an empty name is not the name of a model"));
    }
    let target = |RawTarget { model_rewrite: name, weight }| TargetModel { name, weight };
    let targets: Vec<TargetModel> = targets.into_iter().map(target).collect();
    if let Some(target_idx) = targets.iter().position(|target| target.name.is_empty()) {
        let field = format!("{path}.targets[{target_idx}].modelRewrite");
        return Err(FieldError::new(field, "an empty name is not the name of a model"));
    }
    check_targets(&format!("{path}.targets"), &targets)?;
    Ok(RewriteRule { models, targets })
}
