//! Carries plans out. What fails is tried again, and a newer plan replaces an older one.
//!
//! Several controllers may write at a time without an election: each write says what an object should be, and one that is
//! based on an old version is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{StreamExt as _, stream};
use inference_api::object::ObjectKey;
use kube::api::{Api, ApiResource, DeleteParams, Patch as Body, PatchParams, PostParams, Preconditions};
use kube::core::DynamicObject;
use kube::{Client, Error};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::certificates::{Authority, CertificateError};
use crate::cluster::Kind;
use crate::metrics::{Metrics, Outcome, Verb};
use crate::names;
use crate::objects;
use crate::plan::{APPLIED, Part, Patch, Plan, Work};
use crate::sweep::{Identity, MANAGER};

/// Writes at a time: what is made for 200 new pools is there within seconds.
const CONCURRENT: usize = 8;
/// Pause before writes that have failed are tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Time for which an object must be unwanted before it is deleted. A pool that is made again keeps its picker, and an
/// object that another controller has just made is known to have a pool by then.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time within which a watch shows what was written. Before that, plans ask for it again.
const LAG: Duration = Duration::from_secs(2);

/// Carries out the newest work.
pub struct Writer {
    client: Client,
    namespace: String,
    metrics: Arc<Metrics>,
    clock: fn() -> SystemTime,
    /// Unwanted objects, and since when they are.
    unwanted: BTreeMap<Identity, Instant>,
    /// Objects that were applied and that watches may not show yet, each with the time and its digest.
    written: BTreeMap<Identity, (Instant, Value)>,
}

/// One write to the API server.
#[derive(Clone, Copy, Debug)]
enum Change<'a> {
    /// Make the object unless it exists.
    Create(&'a Value),
    /// Make the object have these fields.
    Apply(&'a Value),
    /// Change the object if it is the version that the patch names.
    Patch(&'a Patch),
    /// Delete the object if it is this one.
    Delete(&'a Value),
}

// === impl Writer ===

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("unwanted", &self.unwanted).finish_non_exhaustive()
    }
}

impl Writer {
    /// A writer for a controller in `namespace`; certificates are dated by `clock`.
    #[must_use]
    pub fn new(client: Client, namespace: String, metrics: Arc<Metrics>, clock: fn() -> SystemTime) -> Self {
        Self { client, namespace, metrics, clock, unwanted: BTreeMap::new(), written: BTreeMap::new() }
    }

    /// Carries out the newest work until `stop`.
    pub async fn run(mut self, mut work: watch::Receiver<Option<Arc<Work>>>, stop: CancellationToken) {
        loop {
            let newest = work.borrow_and_update().clone();
            let again = match newest.as_deref() {
                None => None,
                Some(Work::Authority) => self.make_authority().await,
                Some(Work::Plan(plan, authority)) => self.carry_out(plan, authority).await,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = work.changed() => if changed.is_err() { return },
                () = after(again) => {}
            }
        }
    }

    /// Returns the time after which something is left to do, if anything is.
    async fn make_authority(&self) -> Option<Duration> {
        let name = names::authority(&self.namespace);
        let made = self.made(&name, Authority::secret(&name, None, (self.clock)()));
        let has_failed = match &made {
            None => true,
            Some(secret) => !self.write(Change::Create(secret)).await,
        };
        has_failed.then_some(RETRY)
    }

    /// Returns the time after which something is left to do, if anything is.
    async fn carry_out(&mut self, plan: &Plan, authority: &Authority) -> Option<Duration> {
        let Plan { renews, sign, apply, patches, unwanted, problems: _ } = plan;
        let now = Instant::now();
        self.written.retain(|_, (at, _)| now.duration_since(*at) < LAG);
        let secrets = self.secrets((*renews, sign), authority);
        let due = self.overdue(unwanted, now);
        let mut has_failed = secrets.contains(&None);
        let is_new = |object: &&Value| {
            let written = self.written.get(&Identity::of(object));
            written.is_none_or(|(_, digest)| *digest != object["metadata"]["annotations"][APPLIED])
        };
        let (bindings, others): (Vec<&Value>, Vec<&Value>) = secrets
            .iter()
            .flatten()
            .chain(apply.iter().filter(is_new))
            .partition(|object| Kind::of(object) == Some(Kind::RoleBinding));
        let steps = [
            others.into_iter().map(Change::Apply).collect::<Vec<_>>(),
            // The API server looks at the Role of each.
            bindings.into_iter().map(Change::Apply).collect(),
            patches.iter().map(Change::Patch).collect(),
            due.iter().copied().map(Change::Delete).collect(),
        ];
        for changes in steps {
            let writes: Vec<_> = changes.iter().map(|change| self.write(*change)).collect();
            let written: Vec<bool> = stream::iter(writes).buffered(CONCURRENT).collect().await;
            has_failed |= written.contains(&false);
            for (change, _) in changes.into_iter().zip(written).filter(|(_, is_written)| *is_written) {
                self.remember(change);
            }
        }
        let rest = (due.len() < unwanted.len()).then_some(PATIENCE);
        let unseen = (!self.written.is_empty()).then_some(LAG);
        has_failed.then_some(RETRY).or(unseen).or(rest)
    }

    /// Notes what was applied, until a watch shows it.
    fn remember(&mut self, change: Change<'_>) {
        match change {
            Change::Apply(object) => {
                let digest = object["metadata"]["annotations"][APPLIED].clone();
                self.written.insert(Identity::of(object), (Instant::now(), digest));
            }
            Change::Create(_) | Change::Patch(_) | Change::Delete(_) => {}
        }
    }

    /// The Secrets to write; `None` for one that cannot be made.
    fn secrets(
        &self,
        (renews, sign): (bool, &[(ObjectKey, String)]),
        authority: &Authority,
    ) -> Vec<Option<Value>> {
        let now = (self.clock)();
        let name = names::authority(&self.namespace);
        let is_new = |key: &ObjectKey| !self.written.contains_key(&Identity::of(&objects::secret(key)));
        let renewed = (renews && is_new(&name))
            .then(|| self.made(&name, Authority::secret(&name, Some(authority), now)));
        let signed = sign.iter().filter(|(key, _)| is_new(key));
        let signed = signed.map(|(key, host)| self.made(key, authority.signed_secret(key, host, now)));
        renewed.into_iter().chain(signed).collect()
    }

    fn made(&self, name: &ObjectKey, secret: Result<Value, CertificateError>) -> Option<Value> {
        let secret = secret.inspect_err(|error| {
            warn!(secret = %name, error = error as &dyn std::error::Error, "Cannot make a certificate");
            self.metrics.count(Verb::Apply, Outcome::Failed);
        });
        secret.ok()
    }

    /// Objects that have been unwanted for long enough.
    fn overdue<'a>(&mut self, unwanted: &'a [Value], now: Instant) -> Vec<&'a Value> {
        let identities: Vec<Identity> = unwanted.iter().map(Identity::of).collect();
        self.unwanted.retain(|identity, _| identities.contains(identity));
        let since = identities.into_iter().map(|identity| *self.unwanted.entry(identity).or_insert(now));
        let due = since.zip(unwanted).filter(|(since, _)| now.duration_since(*since) >= PATIENCE);
        due.map(|(_, object)| object).collect()
    }

    /// Returns false if the write must be tried again.
    async fn write(&self, change: Change<'_>) -> bool {
        let outcome = match self.send(change).await {
            Ok(()) => Outcome::Written,
            // The object is gone, or there is a newer version, of which a watch tells.
            Err(Error::Api(status))
                if change.may_come_late() && (status.code == 404 || status.code == 409) =>
            {
                Outcome::Late
            }
            Err(error) => {
                warn!(object = %change.name(), error = said(&error), "{}", change.complaint(&error));
                Outcome::Failed
            }
        };
        if let (Outcome::Written, Change::Create(_) | Change::Apply(_) | Change::Delete(_)) =
            (outcome, change)
        {
            info!(object = %change.name(), "{}", change.done());
        }
        self.metrics.count(change.verb(), outcome);
        outcome != Outcome::Failed
    }

    async fn send(&self, change: Change<'_>) -> Result<(), Error> {
        let params = || PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match change {
            Change::Create(object) => {
                let (api, _) = self.api(object);
                let object: DynamicObject =
                    serde_json::from_value(object.clone()).map_err(Error::SerdeError)?;
                let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
                api.create(&params, &object).await.map(drop)
            }
            Change::Apply(object) => {
                let (api, name) = self.api(object);
                api.patch(&name, &params().force(), &Body::Apply(object)).await.map(drop)
            }
            Change::Patch(Patch { kind, key, part, body }) => {
                let api = self.namespaced(*kind, &key.namespace);
                match part {
                    Part::Metadata => api.patch(&key.name, &params(), &Body::Merge(body)).await.map(drop),
                    Part::Status => {
                        api.patch_status(&key.name, &params(), &Body::Merge(body)).await.map(drop)
                    }
                }
            }
            Change::Delete(object) => {
                let (api, name) = self.api(object);
                let uid = object["metadata"]["uid"].as_str().map(str::to_owned);
                let this = Preconditions { uid, resource_version: None };
                api.delete(&name, &DeleteParams::background().preconditions(this)).await.map(drop)
            }
        }
    }

    /// The interface for an object of the controller's, and the object's name.
    fn api(&self, object: &Value) -> (Api<DynamicObject>, String) {
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
        let kind = Kind::of(object).expect("plans have objects of the controller's kinds");
        (self.namespaced(kind, text("namespace")), text("name").to_owned())
    }

    fn namespaced(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::from_gvk(&kind.resource()))
    }
}

// === impl Change ===

impl Change<'_> {
    fn verb(self) -> Verb {
        match self {
            Self::Create(_) => Verb::Create,
            Self::Apply(_) => Verb::Apply,
            Self::Patch(_) => Verb::Patch,
            Self::Delete(_) => Verb::Delete,
        }
    }

    /// True if the object may have changed since the plan was made. An object that is applied has no version.
    fn may_come_late(self) -> bool {
        match self {
            Self::Create(_) | Self::Patch(_) | Self::Delete(_) => true,
            Self::Apply(_) => false,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Create(object) | Self::Apply(object) | Self::Delete(object) => {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let metadata = &object["metadata"];
                format!(
                    "{} {}/{}",
                    text(&object["kind"]),
                    text(&metadata["namespace"]),
                    text(&metadata["name"])
                )
            }
            Self::Patch(Patch { kind, key, .. }) => format!("{kind} {key}"),
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Create(_) => "Created",
            Self::Apply(_) => "Applied",
            Self::Patch(_) => "Changed",
            Self::Delete(_) => "Deleted, no pool asks for it",
        }
    }

    fn complaint(self, error: &Error) -> &'static str {
        match error {
            Error::Api(status) if status.code == 403 => {
                "The API server forbids a write: the controller's ClusterRole must allow it"
            }
            _ => "Cannot write an object, trying again",
        }
    }
}

/// The error without what the API server says around it.
fn said(error: &Error) -> String {
    match error {
        Error::Api(status) => format!("{} ({})", status.message, status.code),
        error => error.to_string(),
    }
}

async fn after(pause: Option<Duration>) {
    match pause {
        Some(pause) => sleep(pause).await,
        None => std::future::pending().await,
    }
}
