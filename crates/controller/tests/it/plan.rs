//! Plans: what is missing, what is in the way, and when there is nothing to do.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::time::{Duration, SystemTime};

use controller::certificates::Authority;
use controller::cluster::{Cluster, Kind};
use controller::names;
use controller::plan::{Part, Plan, View};
use controller::routes::MARK;
use controller::setup::Setup;
use expect_test::expect_file;
use inference_api::condition::accepted;
use inference_api::object::ObjectKey;
use kube::runtime::watcher::Event;
use pool_index::snapshot::ModelStatus;
use serde_json::{Value, json};

use crate::fixtures::{alpha_pool, place, v1_pool};

const HERE: &str = "envoy-gateway-system";
const DAY: Duration = Duration::from_secs(24 * 3600);

fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn setup() -> Setup {
    Setup { image: "epp:1".to_owned(), replicas: None, arguments: Vec::new(), explains: false }
}

/// A cluster with an authority and these objects, and the authority.
struct Scene {
    cluster: Cluster,
    authority: Authority,
    now: SystemTime,
}

impl Scene {
    fn new(objects: &[Value]) -> Self {
        let secret = Authority::secret(&names::authority(HERE), None, epoch()).unwrap();
        let authority = Authority::read(&secret).unwrap();
        let mut scene = Self { cluster: Cluster::default(), authority, now: epoch() };
        for object in objects.iter().chain([&secret]) {
            scene.hold(object);
        }
        scene
    }

    fn hold(&mut self, object: &Value) {
        let kind = Kind::of(object).unwrap();
        self.cluster.apply(kind, Event::Apply(serde_json::from_value(object.clone()).unwrap()));
    }

    fn plan(&self, setup: &Setup) -> Plan {
        let facts = self.cluster.facts(&place(), &self.authority.certificates);
        let models = facts.models.iter().map(|model| {
            let pool = ObjectKey::new("default", "qwen");
            let status =
                ModelStatus { model_name: model.model_name.clone(), pool, accepted: accepted::yes() };
            (model.meta.key(), status)
        });
        let models: BTreeMap<ObjectKey, ModelStatus> = models.collect();
        let Self { cluster, authority, now } = self;
        Plan::new(View { cluster, facts: &facts, models: &models, authority, now: *now }, setup)
    }

    /// Does what the plan says, as an API server would.
    fn carry_out(&mut self, plan: &Plan) {
        for (key, host) in &plan.sign {
            let secret = self.authority.signed_secret(key, host, self.now).unwrap();
            self.hold(&secret);
        }
        for object in &plan.apply {
            let mut object = object.clone();
            leave_out_false(&mut object);
            object["metadata"]["uid"] = json!("1");
            object["status"] = json!({ "made": "by the API server" });
            self.hold(&object);
        }
        for patch in &plan.patches {
            let mut object = self.cluster.newest(patch.kind, &patch.key).unwrap().clone();
            match patch.part {
                Part::Status => object["status"] = patch.body["status"].clone(),
                Part::Metadata => {
                    object["metadata"]["annotations"] = patch.body["metadata"]["annotations"].clone();
                }
            }
            self.hold(&object);
        }
    }

    /// The mark that the one route should have; it must not have it yet.
    fn mark(&self) -> Value {
        let plan = self.plan(&setup());
        let patch = plan.patches.iter().find(|patch| patch.kind == Kind::HttpRoute).unwrap();
        patch.body["metadata"]["annotations"][MARK].clone()
    }
}

/// The API server does not show fields of objects that are false.
fn leave_out_false(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| *field != json!(false));
            fields.values_mut().for_each(leave_out_false);
        }
        Value::Array(items) => items.iter_mut().for_each(leave_out_false),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn routed() -> Vec<Value> {
    let gateway_api = "gateway.networking.k8s.io/v1";
    vec![
        json!({
            "apiVersion": gateway_api, "kind": "GatewayClass", "metadata": { "name": "eg" },
            "spec": { "controllerName": "gateway.envoyproxy.io/gatewayclass-controller" },
        }),
        json!({
            "apiVersion": gateway_api, "kind": "Gateway", "metadata": { "name": "gw", "namespace": "default" },
            "spec": { "gatewayClassName": "eg", "listeners": [] },
        }),
        json!({
            "apiVersion": gateway_api, "kind": "HTTPRoute", "metadata": { "name": "r", "namespace": "default" },
            "spec": {
                "parentRefs": [{ "name": "gw" }],
                "rules": [{ "backendRefs": [
                    { "group": "inference.networking.x-k8s.io", "kind": "InferencePool", "name": "qwen" },
                ] }],
            },
        }),
        alpha_pool(),
        model("m", "m"),
    ]
}

fn model(name: &str, target: &str) -> Value {
    json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModel",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "modelName": name, "poolRef": { "name": "qwen" }, "targetModels": [{ "name": target }] },
    })
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    objects.iter().filter_map(|object| object["kind"].as_str()).collect()
}

#[test]
fn a_plan_that_is_carried_out_leaves_nothing_to_do() {
    let mut scene = Scene::new(&routed());
    let first = scene.plan(&setup());
    assert_eq!(
        kinds(&first.apply),
        ["Service", "ServiceAccount", "Service", "Role", "RoleBinding", "Deployment"]
    );
    assert_eq!((first.sign.len(), first.patches.len()), (1, 3));
    scene.carry_out(&first);
    assert_eq!(scene.plan(&setup()), Plan::default());

    // Controls: what changes is applied again, by somebody's hand or by another wish.
    let key = ObjectKey::new("default", "qwen-pods");
    let mut service = scene.cluster.newest(Kind::Service, &key).unwrap().clone();
    service["spec"]["selector"] = json!({ "app": "other" });
    scene.hold(&service);
    assert_eq!(kinds(&scene.plan(&setup()).apply), ["Service"]);
    scene.carry_out(&scene.plan(&setup()));
    let two = Setup { replicas: NonZeroU16::new(2), ..setup() };
    let plan = scene.plan(&two);
    assert_eq!(
        (kinds(&plan.apply), plan.apply[0]["spec"]["replicas"].clone()),
        (vec!["Deployment"], json!(2))
    );
    // A wish that goes is applied again as well: the field is the API server's from then on.
    scene.carry_out(&plan);
    let plan = scene.plan(&setup());
    assert_eq!((kinds(&plan.apply), plan.apply[0]["spec"].get("replicas")), (vec!["Deployment"], None));
}

#[test]
fn the_deployment_of_a_managed_picker() {
    let plan = Scene::new(&routed()).plan(&setup());
    let mut deployment = plan.apply.last().unwrap().clone();
    deployment["metadata"].as_object_mut().unwrap().remove("annotations");
    let text = serde_json::to_string_pretty(&deployment).unwrap() + "\n";
    expect_file!["golden/deployment.json"].assert_eq(&text);
    let explaining = Scene::new(&routed()).plan(&Setup { explains: true, ..setup() });
    let arguments = &explaining.apply.last().unwrap()["spec"]["template"]["spec"]["containers"][0]["args"];
    assert_eq!(arguments.as_array().unwrap().last().unwrap(), "--explain-to-clients");
}

/// The golden file of the test before is the control: without the setting there is no such argument.
#[test]
fn the_operators_arguments_come_after_the_controllers_own() {
    let operators = Setup { arguments: vec!["--grace-period=30s".to_owned()], explains: true, ..setup() };
    let plan = Scene::new(&routed()).plan(&operators);
    let arguments = &plan.apply.last().unwrap()["spec"]["template"]["spec"]["containers"][0]["args"];
    let last = &arguments.as_array().unwrap()[arguments.as_array().unwrap().len() - 2..];
    assert_eq!(last, ["--explain-to-clients", "--grace-period=30s"]);
}

/// Both would get the Service `qwen-pods`.
#[test]
fn of_two_pools_with_one_name_the_newer_version_counts() {
    let mut scene = Scene::new(&[alpha_pool(), v1_pool()]);
    let services = |plan: &Plan| -> Vec<usize> {
        let services = plan.apply.iter().filter(|object| object["metadata"]["name"] == "qwen-pods");
        services.map(|service| service["spec"]["ports"].as_array().unwrap().len()).collect()
    };
    let plan = scene.plan(&setup());
    assert_eq!(services(&plan), [2]);
    scene.carry_out(&plan);
    assert_eq!(services(&scene.plan(&setup())), Vec::<usize>::new());
}

#[test]
fn what_no_pool_asks_for_is_unwanted_unless_a_pool_cannot_be_read() {
    let mut scene = Scene::new(&routed());
    scene.carry_out(&scene.plan(&setup()));
    let pool = serde_json::from_value(alpha_pool()).unwrap();
    scene.cluster.apply(Kind::PoolV1Alpha2, Event::Delete(pool));
    let unwanted = scene.plan(&setup()).unwanted;
    assert_eq!(unwanted.len(), 7, "{:?}", kinds(&unwanted));
    assert!(unwanted.iter().all(|object| object["metadata"]["name"] != "warmpath-authority"));
    // A pool that has never been good may ask for any of it.
    let mut bad = alpha_pool();
    bad["spec"]["targetPortNumber"] = 0.into();
    scene.hold(&bad);
    assert_eq!(scene.plan(&setup()).unwanted, Vec::<Value>::new());
}

#[test]
fn a_route_is_marked_again_when_what_is_attached_changes() {
    let scene = Scene::new(&routed());
    let plain = scene.mark();
    assert!(plain.is_string());
    let with = |object: &Value| {
        let mut objects = routed();
        objects.push(object.clone());
        let mut other = Scene::new(&objects);
        other.authority = scene.authority.clone();
        other.mark()
    };
    // Its picker becomes somebody else's; its responses must go through the picker.
    let service = |name: &str| json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default" } });
    assert_ne!(with(&service("ext-proc")), plain);
    assert_ne!(with(&model("n", "renamed")), plain);
    let rewrite = |group: &str, target: &str| {
        json!({
            "apiVersion": format!("{group}/v1alpha2"), "kind": "InferenceModelRewrite",
            "metadata": { "name": "w", "namespace": "default" },
            "spec": { "poolRef": { "name": "qwen" }, "rules": [{
                "matches": [{ "model": { "value": "m" } }], "targets": [{ "modelRewrite": target }],
            }] },
        })
    };
    for group in ["inference.networking.x-k8s.io", "llm-d.ai"] {
        assert_ne!(with(&rewrite(group, "renamed")), plain, "{group}");
        assert_eq!(with(&rewrite(group, "m")), plain, "{group}");
    }
    // The hooks read weights in the route: they may have known older ones.
    let weighted = |weight: u32| {
        let mut objects = routed();
        let route = objects.iter_mut().find(|object| object["kind"] == "HTTPRoute").unwrap();
        let backends = route["spec"]["rules"][0]["backendRefs"].as_array_mut().unwrap();
        backends.push(json!({ "name": "s", "port": 80, "weight": weight }));
        let mut other = Scene::new(&objects);
        other.authority = scene.authority.clone();
        other.mark()
    };
    assert_ne!(weighted(1), plain);
    assert_ne!(weighted(2), weighted(1));
    // Another authority signs.
    assert_ne!(Scene::new(&routed()).mark(), plain);
    // Controls: what is not attached to it.
    assert_eq!(with(&service("other")), plain);
    assert_eq!(with(&model("n", "n")), plain);
}

#[test]
fn certificates_are_renewed_before_they_end() {
    let mut scene = Scene::new(&routed());
    scene.carry_out(&scene.plan(&setup()));
    let due = |scene: &mut Scene, days: u32| {
        scene.now = epoch() + days * DAY;
        let plan = scene.plan(&setup());
        (plan.sign.len(), plan.renews)
    };
    assert_eq!(due(&mut scene, 59), (0, false));
    assert_eq!(due(&mut scene, 61), (1, false));
    scene.carry_out(&scene.plan(&setup()));
    assert_eq!(due(&mut scene, 62), (0, false));
    assert!(!due(&mut scene, 3284).1);
    assert!(due(&mut scene, 3286).1);
}

#[test]
fn a_renewed_authority_vouches_for_what_the_one_before_has_signed() {
    let mut scene = Scene::new(&routed());
    scene.carry_out(&scene.plan(&setup()));
    let name = names::authority(HERE);
    let renewed = |before: Option<&Authority>| Authority::secret(&name, before, epoch() + DAY).unwrap();
    let secret = renewed(Some(&scene.authority));
    let read = Authority::read(&secret).unwrap();
    assert_eq!(read.certificates.matches("BEGIN").count(), 2);
    // A third one does not keep the first.
    let third = Authority::read(&renewed(Some(&read))).unwrap();
    assert_eq!(third.certificates.matches("BEGIN").count(), 2);
    scene.authority = read;
    assert_eq!(scene.plan(&setup()).sign.len(), 0);
    // Control: one that somebody has made anew vouches for nothing.
    scene.authority = Authority::read(&renewed(None)).unwrap();
    assert_eq!(scene.plan(&setup()).sign.len(), 1);
}

#[test]
fn an_authority_that_was_edited_is_refused() {
    let mut secret = Authority::secret(&names::authority(HERE), None, epoch()).unwrap();
    secret["data"]["tls.key"] = json!("bm90IGEga2V5");
    let error = Authority::read(&secret).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Secret envoy-gateway-system/warmpath-authority is no authority: delete it to have another one made"
    );
}
