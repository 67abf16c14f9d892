//! The configuration that the objects ask for, checked: listeners with their routes in order of precedence, and
//! clusters.

mod listener;
mod route;
mod backend;
mod policy;
mod traffic;
mod index;

use inference_api::gateway::HttpRoute;
use inference_api::kinds::Object;
use inference_api::object::ObjectKey;
use inference_api::pool::FailureMode;
use inference_api::remark::Remark;

pub use crate::plan::backend::{Backend, Names, PodPort};
pub use crate::plan::listener::Listener;
pub use crate::plan::route::{Changes, Matcher, Mirror, PathChange, Route, RouteAction, Weighted};
pub use crate::plan::traffic::{ClientTraffic, Traffic};

use crate::error::TranslateError;
use crate::plan::index::Index;
use crate::plan::policy::Policies;

/// Host of a route that names none.
pub const ANY_HOST: &str = "*";

/// Everything that Envoy must do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Listeners in the order of the manifests.
    pub listeners: Vec<Listener>,
    /// One cluster per backend of a rule of an HTTPRoute, in the order of the manifests.
    pub clusters: Vec<Cluster>,
    /// Requests of the objects that have no effect, in the objects' order.
    pub remarks: Vec<Remark>,
}

/// One backend of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Envoy Gateway's name: `httproute/<namespace>/<route>/rule/<index>`, and `/backend/<index>` if there are several.
    pub name: String,
    pub backend: Backend,
    pub traffic: Traffic,
}

/// A pool that at least one rule sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedPool<'a> {
    pub key: &'a ObjectKey,
    pub failure_mode: FailureMode,
    pub names: Names,
}

impl Plan {
    /// Plans what the Gateway API objects among `objects` ask for; other kinds are looked up or ignored.
    ///
    /// # Errors
    /// The first field that asks for something that cannot be left out and is not translated.
    pub fn new(objects: &[Object]) -> Result<Self, TranslateError> {
        let index = Index::new(objects)?;
        let mut plan = Self::default();
        let policies = Policies::new(&index, &mut plan.remarks);
        plan.listeners = listener::listeners(&index, &mut plan.remarks)?;
        for route in &index.routes {
            plan.add_route(route, &index, &policies)?;
        }
        for listener in &mut plan.listeners {
            listener.client = policies.client(&listener.gateway, &listener.name);
            listener.routes.sort_by_key(Route::precedence);
        }
        Ok(plan)
    }

    /// Pools that at least one rule sends to, each once, in the order of the manifests.
    #[must_use]
    pub fn pools(&self) -> Vec<PlannedPool<'_>> {
        let mut pools: Vec<PlannedPool<'_>> = Vec::new();
        for cluster in &self.clusters {
            if let Backend::Pool { key, failure_mode, names, .. } = &cluster.backend
                && !pools.iter().any(|pool| pool.key == key)
            {
                pools.push(PlannedPool { key, failure_mode: *failure_mode, names: *names });
            }
        }
        pools
    }

    fn add_route(
        &mut self,
        route: &HttpRoute,
        index: &Index<'_>,
        policies: &Policies<'_>,
    ) -> Result<(), TranslateError> {
        let parents = listener::parents(route, (index, &self.listeners), &mut self.remarks);
        for (rule_idx, rule) in route.spec.rules.iter().enumerate() {
            let n_before = self.clusters.len();
            let planned = route::rule(route, (rule_idx, rule), index, self)?;
            let mut of_clusters: Option<Traffic> = None;
            for (listener_idx, hosts) in &parents {
                let listener = &mut self.listeners[*listener_idx];
                for host in hosts {
                    let traffic = policies.traffic((route, rule), (&listener.gateway, &host.section));
                    let traffic = traffic.with_rule(rule);
                    match &of_clusters {
                        Some(first) if !first.is_same_cluster(&traffic) => {
                            let effect = "the proxy of each parent has clusters with the settings of its own policy, and \
                                          here those of the first parent count";
                            let field = format!("spec.rules[{rule_idx}].backendRefs");
                            self.remarks.push(Remark::new(
                                route.kind.as_str(),
                                route.meta.key(),
                                field,
                                effect,
                            ));
                        }
                        Some(_) => {}
                        None => of_clusters = Some(traffic.clone()),
                    }
                    let suffix = host.name.replace('.', "_");
                    for (match_idx, matcher) in route::matchers(rule).into_iter().enumerate() {
                        listener.routes.push(Route {
                            name: format!("{}/match/{match_idx}/{suffix}", planned.name),
                            host: host.name.clone(),
                            matcher,
                            traffic: traffic.clone(),
                            ..planned.clone()
                        });
                    }
                }
            }
            self.add_traffic(n_before, &of_clusters.unwrap_or_default(), (route, rule_idx));
        }
        Ok(())
    }

    /// Gives the clusters of a rule, which begin at `first_idx`, their settings.
    fn add_traffic(&mut self, first_idx: usize, traffic: &Traffic, (route, rule_idx): (&HttpRoute, usize)) {
        for cluster in &mut self.clusters[first_idx..] {
            cluster.traffic = traffic.clone();
            if let (Backend::Pool { key, .. }, Some(_)) = (&cluster.backend, &traffic.load_balancer) {
                let effect = format!(
                    "the picker of InferencePool {key} chooses, as here, and not the load balancer of a policy"
                );
                let field = format!("spec.rules[{rule_idx}].backendRefs");
                self.remarks.push(Remark::new(route.kind.as_str(), route.meta.key(), field, effect));
            }
        }
    }
}
