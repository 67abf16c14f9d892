//! The work to do: the difference between the cluster and what its pools ask for.

use std::collections::BTreeMap;
use std::time::SystemTime;

use inference_api::keys;
use inference_api::object::ObjectKey;
use pool_index::snapshot::ModelStatus;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::certificates::{self, Authority};
use crate::cluster::{Cluster, Kind};
use crate::facts::Facts;
use crate::setup::Setup;
use crate::sweep::Identity;
use crate::{deployments, names, objects, pickers, routes, status, sweep};

/// Annotation of an object that the controller has made: the digest of all that it wants of it. If that changes, the
/// object is applied again, and fields that are not wanted any more go.
pub const APPLIED: &str = "inference.networking.x-k8s.io/applied";

/// Writes and deletions that are still to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Make the authority: nothing can be served without it.
    Authority,
    /// Carry out the plan, and sign with the authority.
    Plan(Plan, Authority),
}

/// Things to do, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// True if the authority is due for renewal.
    pub renews: bool,
    /// Certificates to sign, each as its Secret and its DNS name.
    pub sign: Vec<(ObjectKey, String)>,
    /// Objects to apply, those that others need first.
    pub apply: Vec<Value>,
    /// Changes of objects that the controller has not made.
    pub patches: Vec<Patch>,
    /// Objects to delete unless they are asked for again soon.
    pub unwanted: Vec<Value>,
    /// Pools that cannot be served as they ask, for people to read.
    pub problems: Vec<String>,
}

/// Facts that a plan is made from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub cluster: &'a Cluster,
    /// The cluster as the rules see it.
    pub facts: &'a Facts,
    /// Statuses by InferenceModel.
    pub models: &'a BTreeMap<ObjectKey, ModelStatus>,
    pub authority: &'a Authority,
    pub now: SystemTime,
}

/// A merge patch of one object.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    pub kind: Kind,
    pub key: ObjectKey,
    pub part: Part,
    pub body: Value,
}

/// The part of an object that a patch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Metadata,
    Status,
}

impl Plan {
    /// The plan for what is seen.
    #[must_use]
    pub fn new(view: View<'_>, setup: &Setup) -> Self {
        let View { cluster, facts, models: _, authority, now } = view;
        let mut plan = Self::default();
        let mut wanted = Wanted::default();
        for pool in &facts.pools {
            match objects::pods_service(pool, facts) {
                Ok(service) => wanted.insert(service),
                Err(taken) => plan.problems.push(taken.to_string()),
            }
            if let Err(value) = pool.picker_body_mode() {
                let (pool, annotation) = (pool.key(), keys::PICKER_BODY_MODE);
                plan.problems.push(format!(
                    "InferencePool {pool} has the annotation {annotation} with {value:?}: write `streamed` or `full-duplex-streamed`"
                ));
            }
        }
        let mut secrets = vec![names::authority(&facts.place.namespace)];
        for (picker, pools) in pickers::managed(facts) {
            let held = cluster.newest(Kind::Secret, &picker);
            if held.is_none_or(|secret| authority.is_due(secret, now)) {
                plan.sign.push((picker.clone(), names::host(&picker)));
            }
            pickers::around(&picker, &pools).into_iter().for_each(|object| wanted.insert(object));
            deployments::deployment(&picker, &pools, &facts.place, setup)
                .into_iter()
                .for_each(|object| wanted.insert(object));
            secrets.push(picker);
        }
        let held = cluster.newest(Kind::Secret, &names::authority(&facts.place.namespace));
        plan.renews = held.is_some_and(|secret| certificates::is_authority_due(secret, now));
        plan.patches = statuses(view);
        plan.patches.extend(marks(cluster, facts));
        if !cluster.hides_a_pool() {
            let kept: Vec<Value> =
                wanted.objects.iter().cloned().chain(secrets.iter().map(objects::secret)).collect();
            plan.unwanted = sweep::unwanted(cluster.made(), &kept).into_iter().cloned().collect();
        }
        plan.apply =
            wanted.objects.into_iter().map(stamped).filter(|object| !holds(cluster, object)).collect();
        plan
    }
}

/// Objects that pools ask for. Of several with one identity the last one counts: the one of the pool's newer version.
#[derive(Default)]
struct Wanted {
    objects: Vec<Value>,
    places: BTreeMap<Identity, usize>,
}

impl Wanted {
    fn insert(&mut self, object: Value) {
        let place = *self.places.entry(Identity::of(&object)).or_insert(self.objects.len());
        if place == self.objects.len() {
            self.objects.push(object);
        } else {
            self.objects[place] = object;
        }
    }
}

fn stamped(mut object: Value) -> Value {
    let digest = names::digest(&object.to_string());
    object["metadata"]["annotations"][APPLIED] = json!(digest);
    object
}

/// True if the cluster has everything that `wanted` says. What it says beyond is somebody else's.
fn holds(cluster: &Cluster, wanted: &Value) -> bool {
    let text = |name: &str| wanted["metadata"][name].as_str().unwrap_or_default();
    let key = ObjectKey::new(text("namespace"), text("name"));
    let held = Kind::of(wanted).and_then(|kind| cluster.newest(kind, &key));
    held.is_some_and(|held| contains(held, wanted))
}

/// The API server leaves out fields that are false.
fn contains(held: &Value, wanted: &Value) -> bool {
    match (held, wanted) {
        (Value::Object(held), Value::Object(wanted)) => wanted.iter().all(|(name, wanted)| {
            held.get(name).map_or(*wanted == Value::Bool(false), |held| contains(held, wanted))
        }),
        (Value::Array(held), Value::Array(wanted)) => {
            held.len() == wanted.len() && held.iter().zip(wanted).all(|(held, wanted)| contains(held, wanted))
        }
        (held, wanted) => held == wanted,
    }
}

fn statuses(view: View<'_>) -> Vec<Patch> {
    let View { cluster, facts, models, authority: _, now } = view;
    let now = rfc3339(now);
    let pools = facts.pools.iter().filter_map(|pool| {
        let (kind, key) = (Kind::pool(pool.version), pool.key());
        let newest = cluster.newest(kind, &key)?;
        let status = status::changed_pool(pool, facts, &newest["status"], &now)?;
        Some(of_status(kind, key, newest, &status))
    });
    let models = facts.models.iter().filter_map(|model| {
        let (kind, key) = (Kind::Model, model.meta.key());
        let newest = cluster.newest(kind, &key)?;
        let status = status::changed_model(model, &models.get(&key)?.accepted, &newest["status"], &now)?;
        Some(of_status(kind, key, newest, &status))
    });
    pools.chain(models).collect()
}

fn marks(cluster: &Cluster, facts: &Facts) -> impl Iterator<Item = Patch> {
    routes::marks(facts).into_iter().filter_map(|mark| {
        let newest = cluster.newest(Kind::HttpRoute, &mark.route)?;
        let body = mark.change(newest)?;
        Some(Patch { kind: Kind::HttpRoute, key: mark.route, part: Part::Metadata, body })
    })
}

/// Whole seconds, as in all times of the API.
fn rfc3339(time: SystemTime) -> String {
    let time = OffsetDateTime::from(time);
    time.replace_nanosecond(0).unwrap_or(time).format(&Rfc3339).unwrap_or_default()
}

/// A patch of a status. If somebody else has changed the object in the meantime, the API server refuses it.
fn of_status(kind: Kind, key: ObjectKey, newest: &Value, status: &Value) -> Patch {
    let version = &newest["metadata"]["resourceVersion"];
    let body = json!({ "metadata": { "resourceVersion": version }, "status": status });
    Patch { kind, key, part: Part::Status, body }
}
