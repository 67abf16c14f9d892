//! Rules of HTTPRoutes: what they match, change and send where.

use std::cmp::Reverse;

use inference_api::gateway::{
    BackendRef, HeaderModifier, HttpRoute, HttpRouteFilter, HttpRouteMatch, HttpRouteRule, PathMatch,
    PathMatchKind, PathModifier, PathModifierKind, RequestMirror, RequestRedirect, UrlRewrite, ValueMatch,
};
use inference_api::keys;
use inference_api::remark::Remark;

use crate::error::TranslateError;
use crate::plan::backend::{self, Unresolved};
use crate::plan::index::{self, Index};
use crate::plan::traffic::Traffic;
use crate::plan::{Cluster, Plan};

/// Status of a request whose backend does not exist (Gateway API, HTTPRouteRule).
const NO_BACKEND: u16 = 500;

/// One match of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub name: String,
    pub host: String,
    pub matcher: Matcher,
    pub action: RouteAction,
    /// Changes of requests' headers.
    pub request_headers: HeaderModifier,
    /// Changes of responses' headers.
    pub response_headers: HeaderModifier,
    /// Host that replaces the request's.
    pub host_rewrite: Option<String>,
    pub path_rewrite: Option<PathChange>,
    /// Backends that get copies of the requests.
    pub mirrors: Vec<Mirror>,
    pub traffic: Traffic,
}

/// A condition on requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matcher {
    pub path: PathMatch,
    pub headers: Vec<ValueMatch>,
    pub query_params: Vec<ValueMatch>,
    pub method: Option<String>,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// One of the clusters; at least one weight is above 0.
    Forward(Vec<Weighted>),
    Redirect(RequestRedirect),
    /// A response of this status.
    Fixed(u16),
}

/// A target of requests, and its share of them relative to the sum of all weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighted {
    /// Index into [`Plan::clusters`]; `None` if the backend does not exist.
    pub cluster_idx: Option<usize>,
    pub weight: u32,
    /// Changes of the requests that it gets, and of their responses.
    pub changes: Changes,
}

/// Changes of requests to one backend, before those of the rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub request_headers: HeaderModifier,
    pub response_headers: HeaderModifier,
    /// Host that replaces the request's.
    pub host_rewrite: Option<String>,
}

/// A change of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    Full(String),
    /// Replaces the prefix that the match names.
    Prefix(String),
}

/// A target of copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub cluster_idx: usize,
    /// Share of the requests.
    pub per_million: u32,
}

impl Route {
    /// Sort key: exact before regular expression before prefix, then the longer path first, a method, more headers, more
    /// query parameters (Gateway API, HTTPRouteRule; Envoy Gateway's order for regular expressions).
    pub(super) fn precedence(&self) -> impl Ord + use<> {
        let Matcher { path, headers, query_params, method } = &self.matcher;
        let kind = match path.kind {
            PathMatchKind::Exact => 0,
            PathMatchKind::RegularExpression => 1,
            PathMatchKind::PathPrefix => 2,
        };
        (kind, Reverse((path.value.len(), method.is_some(), headers.len(), query_params.len())))
    }

    /// Indices of the clusters that requests are sent to.
    pub fn cluster_idxs(&self) -> impl Iterator<Item = usize> {
        let weighted = match &self.action {
            RouteAction::Forward(weighted) => weighted.as_slice(),
            RouteAction::Redirect(_) | RouteAction::Fixed(_) => &[],
        };
        weighted.iter().filter_map(|target| target.cluster_idx)
    }
}

/// Conditions of the rule; a request that fulfils one is taken.
pub(super) fn matchers(rule: &HttpRouteRule) -> Vec<Matcher> {
    let everything = || PathMatch { kind: PathMatchKind::PathPrefix, value: "/".to_owned() };
    let matcher = |matcher: &HttpRouteMatch| {
        let HttpRouteMatch { path, headers, query_params, method } = matcher.clone();
        Matcher { path: path.unwrap_or_else(everything), headers, query_params, method }
    };
    match rule.matches.as_slice() {
        [] => vec![matcher(&HttpRouteMatch::default())],
        matches => matches.iter().map(matcher).collect(),
    }
}

/// The route of a rule for each of its conditions, still without condition and host. Its clusters are added to `plan`.
pub(super) fn rule(
    route: &HttpRoute,
    (rule_idx, rule): (usize, &HttpRouteRule),
    index: &Index<'_>,
    plan: &mut Plan,
) -> Result<Route, TranslateError> {
    let path = format!("spec.rules[{rule_idx}]");
    let mut adder = Adder {
        route,
        name: format!("httproute/{}/rule/{rule_idx}", route.meta.key()),
        n_backends: rule.backend_refs.len(),
        index,
        plan,
    };
    let action = adder.forward(rule, &path)?;
    let mut planned = Route {
        name: adder.name.clone(),
        host: String::new(),
        matcher: matchers(rule).remove(0),
        action,
        request_headers: HeaderModifier::default(),
        response_headers: HeaderModifier::default(),
        host_rewrite: None,
        path_rewrite: None,
        mirrors: Vec::new(),
        traffic: Traffic::default(),
    };
    for (idx, filter) in rule.filters.iter().enumerate() {
        let path = format!("{path}.filters[{idx}]");
        adder.filter(&mut planned, filter, (rule, &path))?;
    }
    Ok(planned)
}

/// Adds the clusters of one rule.
struct Adder<'a, 'i> {
    route: &'a HttpRoute,
    name: String,
    n_backends: usize,
    index: &'a Index<'i>,
    plan: &'a mut Plan,
}

impl Adder<'_, '_> {
    fn error(&self, path: String, message: String) -> TranslateError {
        index::error(self.route.kind.as_str(), &self.route.meta, path, message)
    }

    fn forward(&mut self, rule: &HttpRouteRule, path: &str) -> Result<RouteAction, TranslateError> {
        let mut targets = Vec::new();
        for (idx, backend) in rule.backend_refs.iter().enumerate() {
            let path = format!("{path}.backendRefs[{idx}]");
            let changes = self.changes(&backend.filters, &path)?;
            let weight = backend.weight.unwrap_or(1);
            let name = match self.n_backends {
                1 => self.name.clone(),
                _ => format!("{}/backend/{idx}", self.name),
            };
            let cluster_idx = self.cluster(name, backend, &path)?;
            if weight > 0 {
                targets.push(Weighted { cluster_idx, weight, changes });
            }
        }
        let exists = targets.iter().any(|target| target.cluster_idx.is_some());
        Ok(if exists { RouteAction::Forward(targets) } else { RouteAction::Fixed(NO_BACKEND) })
    }

    /// The changes that a backend's own filters ask for: those that Envoy Gateway knows there.
    fn changes(&self, filters: &[HttpRouteFilter], path: &str) -> Result<Changes, TranslateError> {
        let mut changes = Changes::default();
        for (idx, filter) in filters.iter().enumerate() {
            let path = format!("{path}.filters[{idx}]");
            let HttpRouteFilter {
                kind, request_header_modifier, response_header_modifier, url_rewrite, ..
            } = filter;
            match (kind.as_str(), request_header_modifier, response_header_modifier, url_rewrite) {
                ("RequestHeaderModifier", Some(modifier), _, _) => changes.request_headers = modifier.clone(),
                ("ResponseHeaderModifier", _, Some(modifier), _) => {
                    changes.response_headers = modifier.clone();
                }
                ("URLRewrite", _, _, Some(UrlRewrite { hostname: Some(hostname), path: None })) => {
                    changes.host_rewrite = Some(hostname.clone());
                }
                (kind, _, _, _) => {
                    let message = format!(
                        "{kind} of one backend is not supported, only header modifiers and URLRewrite of a hostname are, and without \
                         it requests would differ: move it to the rule"
                    );
                    return Err(self.error(format!("{path}.type"), message));
                }
            }
        }
        Ok(changes)
    }

    /// Adds the cluster of a backend; `None` if the backend does not exist, which gets a remark.
    fn cluster(
        &mut self,
        name: String,
        backend: &BackendRef,
        path: &str,
    ) -> Result<Option<usize>, TranslateError> {
        match backend::resolve(backend, self.route, self.index) {
            Ok(backend) => {
                self.plan.clusters.push(Cluster { name, backend, traffic: Traffic::default() });
                Ok(Some(self.plan.clusters.len() - 1))
            }
            Err(Unresolved::Missing { field, what }) => {
                let effect = match backend.group.as_str() {
                    keys::AI_GATEWAY_GROUP => {
                        format!("these requests go to it, and here they get {NO_BACKEND}")
                    }
                    _ => format!("these requests get {NO_BACKEND}, as here: {what}"),
                };
                let field = format!("{path}.{field}");
                self.plan.remarks.push(Remark::new(
                    self.route.kind.as_str(),
                    self.route.meta.key(),
                    field,
                    effect,
                ));
                Ok(None)
            }
            Err(Unresolved::Invalid { field, what }) => Err(self.error(format!("{path}.{field}"), what)),
        }
    }

    fn filter(
        &mut self,
        planned: &mut Route,
        filter: &HttpRouteFilter,
        (rule, path): (&HttpRouteRule, &str),
    ) -> Result<(), TranslateError> {
        let HttpRouteFilter {
            kind,
            request_header_modifier,
            response_header_modifier,
            url_rewrite,
            request_redirect,
            request_mirror,
        } = filter;
        let missing = |field: &str| self.error(path.to_owned(), format!("{kind} needs {field}"));
        match kind.as_str() {
            "RequestHeaderModifier" => {
                planned.request_headers =
                    request_header_modifier.clone().ok_or_else(|| missing("requestHeaderModifier"))?;
            }
            "ResponseHeaderModifier" => {
                planned.response_headers =
                    response_header_modifier.clone().ok_or_else(|| missing("responseHeaderModifier"))?;
            }
            "URLRewrite" => {
                let rewrite = url_rewrite.as_ref().ok_or_else(|| missing("urlRewrite"))?;
                planned.host_rewrite.clone_from(&rewrite.hostname);
                planned.path_rewrite = rewrite
                    .path
                    .as_ref()
                    .map(|modifier| self.path_change(modifier, rule, &format!("{path}.urlRewrite.path")))
                    .transpose()?;
            }
            "RequestRedirect" => {
                let redirect = request_redirect.clone().ok_or_else(|| missing("requestRedirect"))?;
                let path = format!("{path}.requestRedirect.path");
                planned.path_rewrite = redirect
                    .path
                    .as_ref()
                    .map(|modifier| self.path_change(modifier, rule, &path))
                    .transpose()?;
                planned.action = RouteAction::Redirect(redirect);
            }
            "RequestMirror" => {
                let mirror = request_mirror.as_ref().ok_or_else(|| missing("requestMirror"))?;
                let path = format!("{path}.requestMirror");
                planned.mirrors.extend(self.mirror(mirror, planned.mirrors.len(), &path)?);
            }
            other => {
                let message = format!(
                    "{other} is not supported, and without it requests and responses would differ: remove it"
                );
                return Err(self.error(format!("{path}.type"), message));
            }
        }
        Ok(())
    }

    fn mirror(
        &mut self,
        mirror: &RequestMirror,
        mirror_idx: usize,
        path: &str,
    ) -> Result<Option<Mirror>, TranslateError> {
        let RequestMirror { backend_ref, percent, fraction } = mirror;
        let name = format!("{}-mirror-{mirror_idx}", self.name);
        let cluster_idx = self.cluster(name, backend_ref, &format!("{path}.backendRef"))?;
        let per_million = match (percent, fraction) {
            (Some(percent), _) => percent.saturating_mul(10_000),
            (None, Some(fraction)) => {
                let denominator = u64::from(fraction.denominator.unwrap_or(100)).max(1);
                let share = u64::from(fraction.numerator) * 1_000_000 / denominator;
                u32::try_from(share).unwrap_or(1_000_000)
            }
            (None, None) => 1_000_000,
        };
        let per_million = per_million.min(1_000_000);
        Ok(cluster_idx.map(|cluster_idx| Mirror { cluster_idx, per_million }))
    }

    fn path_change(
        &self,
        modifier: &PathModifier,
        rule: &HttpRouteRule,
        path: &str,
    ) -> Result<PathChange, TranslateError> {
        let PathModifier { kind, replace_full_path, replace_prefix_match } = modifier;
        match (kind, replace_full_path, replace_prefix_match) {
            (PathModifierKind::ReplaceFullPath, Some(full), _) => Ok(PathChange::Full(full.clone())),
            (PathModifierKind::ReplacePrefixMatch, _, Some(prefix)) => {
                let is_prefix = |matcher: &Matcher| matcher.path.kind == PathMatchKind::PathPrefix;
                if !matchers(rule).iter().all(is_prefix) {
                    let message = "ReplacePrefixMatch needs a match of type PathPrefix".to_owned();
                    return Err(self.error(path.to_owned(), message));
                }
                Ok(PathChange::Prefix(prefix.clone()))
            }
            (_, _, _) => Err(self.error(path.to_owned(), format!("{kind:?} has no value"))),
        }
    }
}
