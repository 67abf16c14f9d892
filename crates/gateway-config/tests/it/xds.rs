//! Edits of what Envoy Gateway 1.9.1 sent for the tutorial, compared with the local files.

mod division;

use envoy_proto::XDS_DESCRIPTORS;
use envoy_proto::envoygateway::extension::{
    PostClusterModifyRequest, PostRouteModifyRequest, PostTranslateModifyRequest,
};
use envoy_proto::google::protobuf::{DescriptorProto, FileDescriptorProto};
use expect_test::expect_file;
use gateway_config::attachment::{Responses, Share};
use gateway_config::error::Malformed;
use gateway_config::render::{Bindings, Rendered};
use gateway_config::xds::{Editor, Picker, Pool, Resources, Trust};
use inference_api::object::ObjectKey;
use inference_api::pool::{AppProtocol, BodyMode, FailureMode};
use prost::Message as _;
use prost::bytes::Bytes;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

use crate::fixtures::{bindings, plan, tutorial};

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
pub(crate) const LISTENER: &str = "envoy.config.listener.v3.Listener";
const ROUTE: &str = "envoy.config.route.v3.Route";
const ROUTES: &str = "envoy.config.route.v3.RouteConfiguration";
const RULE: &str = "httproute/default/qwen-backend/rule/0";
pub(crate) const LLM_GW: &str = "default/qwen-inference-gateway/llm-gw";

/// Recorded requests.
fn recorded_route() -> Bytes {
    let bytes = include_bytes!("../fixtures/envoy-gateway-1.9.1/PostRouteModify.request.binpb");
    PostRouteModifyRequest::decode(&bytes[..]).unwrap().route.unwrap()
}

fn recorded_cluster() -> Bytes {
    let bytes = include_bytes!("../fixtures/envoy-gateway-1.9.1/PostClusterModify.request.binpb");
    PostClusterModifyRequest::decode(&bytes[..]).unwrap().cluster.unwrap()
}

fn recorded_translation() -> Resources {
    let bytes = include_bytes!("../fixtures/envoy-gateway-1.9.1/PostTranslateModify.request.binpb");
    let request = PostTranslateModifyRequest::decode(&bytes[..]).unwrap();
    assert!(request.secrets.is_empty());
    Resources {
        clusters: request.clusters,
        listeners: request.listeners,
        route_configurations: request.routes,
    }
}

pub(crate) fn trust(certificates: &str) -> Trust {
    let host = "epp-default-inference-gateway-ext-proc.envoy-gateway-system.svc".to_owned();
    Trust::Authority { host, certificates: certificates.to_owned() }
}

pub(crate) fn pool() -> Pool {
    Pool {
        key: ObjectKey::new("default", "vllm-qwen-pool"),
        failure_mode: FailureMode::FailClose,
        responses: Responses::Observed(Share::TWENTIETH),
        app_protocol: AppProtocol::Http,
        pods: "vllm-qwen-pool-pods.default.svc.cluster.local.".to_owned(),
        ports: vec![8000],
        picker: Picker {
            address: "epp-default-inference-gateway-ext-proc.envoy-gateway-system.svc.cluster.local."
                .to_owned(),
            port: 9002,
            trust: trust("-----BEGIN CERTIFICATE-----"),
        },
    }
}

/// Extensions in Envoy Gateway's listeners, as messages without fields: JSON shows every extension.
const STRANGE: [(&str, &str); 2] = [
    ("envoy.extensions.filters.http.health_check.v3", "HealthCheck"),
    ("envoy.extensions.filters.http.router.v3", "Router"),
];

fn descriptors() -> DescriptorPool {
    let mut descriptors = DescriptorPool::decode(XDS_DESCRIPTORS).unwrap();
    for (package, name) in STRANGE {
        let message = DescriptorProto { name: Some(name.to_owned()), ..DescriptorProto::default() };
        let file = FileDescriptorProto {
            name: Some(format!("{package}.proto")),
            package: Some(package.to_owned()),
            message_type: vec![message],
            ..FileDescriptorProto::default()
        };
        descriptors.add_file_descriptor_proto(file).unwrap();
    }
    descriptors
}

pub(crate) fn message(name: &str, bytes: &[u8]) -> DynamicMessage {
    DynamicMessage::decode(descriptors().get_message_by_name(name).unwrap(), bytes).unwrap()
}

/// Protobuf's JSON form, in which fields without descriptors are left out.
pub(crate) fn json(message: &DynamicMessage) -> Value {
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    message.serialize_with_options(serde_json::value::Serializer, &options).unwrap()
}

/// The configuration that Envoy Gateway has after all hooks.
pub(crate) fn hooked(editor: &Editor, pool: &Pool) -> Resources {
    editor.translation(with_answers(editor, pool)).unwrap()
}

/// The translation that Envoy Gateway sends after the first two hooks: their answers are in it.
fn with_answers(editor: &Editor, pool: &Pool) -> Resources {
    let route = editor.route(&recorded_route(), pool).unwrap();
    with_edited(&route, editor.cluster(&recorded_cluster(), pool).unwrap())
}

fn with_edited(edited: &[u8], cluster: Vec<u8>) -> Resources {
    let mut sent = recorded_translation();
    let plain = recorded_cluster();
    let idx = sent.clusters.iter().position(|other| *other == plain).unwrap();
    sent.clusters[idx] = cluster.into();
    let plain = recorded_route();
    let idx = named(ROUTES, &sent.route_configurations, LLM_GW);
    let mut routes = message(ROUTES, &sent.route_configurations[idx]);
    let hosts = routes.get_field_by_name_mut("virtual_hosts").unwrap().as_list_mut().unwrap();
    let host = hosts[0].as_message_mut().unwrap();
    let listed = host.get_field_by_name_mut("routes").unwrap().as_list_mut().unwrap();
    let name = |bytes: &[u8]| json(&message(ROUTE, bytes))["name"].clone();
    assert_eq!(json(listed[0].as_message().unwrap())["name"], name(&plain));
    listed[0] = prost_reflect::Value::Message(message(ROUTE, edited));
    sent.route_configurations[idx] = routes.encode_to_vec().into();
    sent
}

pub(crate) fn named(kind: &str, messages: &[Bytes], name: &str) -> usize {
    let is_named = |bytes: &Bytes| json(&message(kind, bytes))["name"] == name;
    messages.iter().position(is_named).unwrap_or_else(|| panic!("{name} is missing"))
}

pub(crate) fn manager(resources: &Resources, listener: &str) -> Value {
    let listener = &resources.listeners[named(LISTENER, &resources.listeners, listener)];
    json(&message(LISTENER, listener))["default_filter_chain"]["filters"][0]["typed_config"].clone()
}

/// `value` without the fields that have their default, which protobuf leaves out.
fn without_defaults(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .filter(|(_, value)| !matches!(value, Value::Bool(false)) && *value != "NONE")
            .map(|(key, value)| (key.clone(), without_defaults(value)))
            .collect(),
        Value::Array(values) => values.iter().map(without_defaults).collect(),
        other => other.clone(),
    }
}

fn without(value: &Value, keys: &[&str]) -> Value {
    let mut value = value.clone();
    for key in keys {
        value.as_object_mut().unwrap().shift_remove(*key).unwrap_or_else(|| panic!("no {key}"));
    }
    value
}

pub(crate) fn assert_same(found: &Value, local: &Value) {
    let sorted = |value: &Value| serde_json::to_string_pretty(&sort(value)).unwrap();
    assert_eq!(sorted(&without_defaults(found)), sorted(&without_defaults(local)));
}

/// `value` with its keys in order.
fn sort(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().map(|(key, value)| (key.clone(), sort(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            entries.into_iter().collect()
        }
        Value::Array(values) => values.iter().map(sort).collect(),
        other => other.clone(),
    }
}

#[test]
fn both_ways_give_the_same_filters_policies_and_pickers() {
    let plan = plan(&tutorial()).unwrap();
    let shares = [Share::TWENTIETH, Share::ALL, Share::NONE].map(Responses::Observed);
    for responses in shares.into_iter().chain([Responses::Through]) {
        let local = Rendered::new(&plan, &Bindings { responses, ..bindings(&plan) }).unwrap();
        let local = &local.static_equivalent["static_resources"];
        let local_manager = &local["listeners"][1]["default_filter_chain"]["filters"][0]["typed_config"];
        let resources = hooked(&Editor::new(true), &Pool { responses, ..pool() });

        let found = manager(&resources, LLM_GW);
        let filters = found["http_filters"].as_array().unwrap();
        let local_filters = local_manager["http_filters"].as_array().unwrap();
        assert_eq!(filters.len(), local_filters.len());
        for (found, local) in filters.iter().zip(local_filters).take(filters.len() - 1) {
            assert_same(found, local);
        }
        assert_eq!(filters.last().unwrap()["name"], "envoy.filters.http.router");
        assert_same(
            &found["early_header_mutation_extensions"],
            &local_manager["early_header_mutation_extensions"],
        );
        assert_eq!(
            found.get("always_set_request_id_in_response"),
            local_manager.get("always_set_request_id_in_response")
        );

        let idx = named(ROUTES, &resources.route_configurations, LLM_GW);
        let routes = json(&message(ROUTES, &resources.route_configurations[idx]));
        let local_routes = &local_manager["route_config"];
        assert_eq!(routes.get("response_headers_to_add"), local_routes.get("response_headers_to_add"));
        let of_host = |config: &Value| config["virtual_hosts"][0]["routes"].as_array().unwrap().clone();
        let (routes, local_routes) = (of_host(&routes), of_host(local_routes));
        assert_eq!(routes.len(), local_routes.len(), "{responses}");
        for (route, local_route) in routes.iter().zip(&local_routes) {
            assert_same(&route["match"]["runtime_fraction"], &local_route["match"]["runtime_fraction"]);
            assert_same(&route["typed_per_filter_config"], &local_route["typed_per_filter_config"]);
            assert_same(&route["route"]["retry_policy"], &local_route["route"]["retry_policy"]);
            assert_eq!(route["route"]["cluster"], local_route["route"]["cluster"]);
        }

        let cluster = |name: &str| {
            json(&message(CLUSTER, &resources.clusters[named(CLUSTER, &resources.clusters, name)]))
        };
        let local_cluster = |name: &str| {
            let mut clusters = local["clusters"].as_array().unwrap().iter();
            clusters.find(|cluster| cluster["name"] == name).unwrap()
        };
        let pods = "httproute/default/qwen-backend/rule/0";
        let by_name = ["type", "load_assignment", "dns_refresh_rate", "ignore_health_on_host_removal"];
        let found = without(&without(&cluster(pods), &by_name), &["metadata"]);
        assert_same(&found, &without(local_cluster(pods), &by_name[..2]));
        let picker = "envoy.clusters.endpointpicker_vllm-qwen-pool_default_ext_proc";
        let found = without(&without(&cluster(picker), &by_name), &["transport_socket"]);
        assert_same(&found, &without(local_cluster(picker), &by_name[..2]));
    }
}

#[test]
fn the_tutorial_on_kubernetes() {
    let resources = hooked(&Editor::new(false), &pool());
    let kinds = [
        (CLUSTER, &resources.clusters),
        (LISTENER, &resources.listeners),
        (ROUTES, &resources.route_configurations),
    ];
    let mut text = String::new();
    for (kind, messages) in kinds {
        for bytes in messages {
            let value = sort(&json(&message(kind, bytes)));
            text += &format!("{kind} {}\n", serde_json::to_string_pretty(&value).unwrap());
        }
    }
    expect_file!["golden/tutorial-xds.txt"].assert_eq(&text);
}

/// The recorded messages have fields that Warmpath has no descriptors for, at every depth that is edited.
#[test]
fn unknown_fields_survive() {
    let unknown = |message: &DynamicMessage| -> Vec<u32> {
        let mut numbers: Vec<u32> = message.unknown_fields().map(|field| field.number()).collect();
        numbers.sort_unstable();
        numbers
    };
    let editor = Editor::new(true);
    let (plain, edited) = (
        message(ROUTE, &recorded_route()),
        message(ROUTE, &editor.route(&recorded_route(), &pool()).unwrap()),
    );
    let in_route = |route: &DynamicMessage| {
        let of = |field| unknown(route.get_field_by_name(field).unwrap().as_ref().as_message().unwrap());
        [unknown(route), of("match"), of("route")]
    };
    assert_eq!(in_route(&plain), [vec![], vec![1], vec![8, 24, 25]]);
    assert_eq!(in_route(&edited), in_route(&plain));
    let hooked_routes = |editor| {
        let resources = hooked(editor, &pool());
        let idx = named(ROUTES, &resources.route_configurations, LLM_GW);
        let routes = message(ROUTES, &resources.route_configurations[idx]);
        let hosts = routes.get_field_by_name("virtual_hosts").unwrap().into_owned();
        let host = hosts.as_list().unwrap()[0].as_message().unwrap().clone();
        let routes = host.get_field_by_name("routes").unwrap().into_owned();
        routes
            .as_list()
            .unwrap()
            .iter()
            .map(|route| in_route(route.as_message().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(hooked_routes(&editor), [in_route(&plain), in_route(&plain)], "both routes of the pool");

    let plain = message(CLUSTER, &recorded_cluster());
    let edited = message(CLUSTER, &editor.cluster(&recorded_cluster(), &pool()).unwrap());
    assert_eq!(unknown(&plain), [5, 17, 27]);
    assert_eq!(unknown(&edited), unknown(&plain));

    let manager = |resources: &Resources| -> Vec<u32> {
        let listener = message(LISTENER, &resources.listeners[named(LISTENER, &resources.listeners, LLM_GW)]);
        let chain = listener.get_field_by_name("default_filter_chain").unwrap().into_owned();
        let filters = chain.as_message().unwrap().get_field_by_name("filters").unwrap().into_owned();
        let filter = filters.as_list().unwrap()[0].as_message().unwrap().clone();
        let any = filter.get_field_by_name("typed_config").unwrap().into_owned();
        let value = any.as_message().unwrap().get_field_by_name("value").unwrap().into_owned();
        let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        unknown(&message(name, value.as_bytes().unwrap()))
    };
    let before = manager(&recorded_translation());
    assert!(before.len() > 5, "{before:?}");
    assert_eq!(manager(&hooked(&editor, &pool())), before);
}

#[test]
fn edits_are_repeatable() {
    for explains in [true, false] {
        let (editor, other) = (Editor::new(explains), Editor::new(explains));
        let sent = with_answers(&editor, &pool());
        let once = editor.translation(sent.clone()).unwrap();
        assert!(once == other.translation(sent).unwrap(), "equal requests have equal answers");
        assert!(once == editor.translation(once.clone()).unwrap(), "nothing is added twice");
        let route = editor.route(&recorded_route(), &pool()).unwrap();
        assert!(route == other.route(&recorded_route(), &pool()).unwrap());
        let again = editor.route(&route, &pool()).unwrap();
        assert_eq!(json(&message(ROUTE, &again)), json(&message(ROUTE, &route)));
        let cluster = editor.cluster(&recorded_cluster(), &pool()).unwrap();
        assert!(cluster == other.cluster(&recorded_cluster(), &pool()).unwrap());
        let again = editor.cluster(&cluster, &pool()).unwrap();
        assert_eq!(json(&message(CLUSTER, &again)), json(&message(CLUSTER, &cluster)));
    }
}

/// An editor that knows a pool as it was attaches it as it is, whatever has changed.
#[test]
fn a_pool_that_changes_is_another_one() {
    let picker = |change: fn(&mut Picker)| {
        let mut pool = pool();
        change(&mut pool.picker);
        pool
    };
    let changed = [
        Pool { key: ObjectKey::new("default", "other"), ..pool() },
        Pool { failure_mode: FailureMode::FailOpen, ..pool() },
        Pool { responses: Responses::Observed(Share::ALL), ..pool() },
        Pool { responses: Responses::Through, ..pool() },
        Pool { app_protocol: AppProtocol::H2c, ..pool() },
        Pool { pods: "other".to_owned(), ..pool() },
        Pool { ports: vec![8000, 8001], ..pool() },
        picker(|picker| picker.address = "other".to_owned()),
        picker(|picker| picker.port = 9003),
        picker(|picker| picker.trust = trust("other")),
        picker(|picker| picker.trust = Trust::Any(BodyMode::FullDuplexStreamed)),
        picker(|picker| picker.trust = Trust::Any(BodyMode::Streamed)),
    ];
    let editor = Editor::new(true);
    let sent = with_answers(&editor, &pool());
    let before = editor.translation(sent.clone()).unwrap();
    for pool in &changed {
        let fresh = Editor::new(true);
        let cluster = editor.cluster(&recorded_cluster(), pool).unwrap();
        assert!(cluster == fresh.cluster(&recorded_cluster(), pool).unwrap(), "{pool:?}");
        let sent = with_answers(&fresh, pool);
        let after = editor.translation(sent.clone()).unwrap();
        assert!(after == fresh.translation(sent).unwrap(), "{pool:?}");
    }
    assert!(editor.translation(sent).unwrap() == before);
}

/// Without a marked route nothing changes, whatever clusters there are.
#[test]
fn what_leads_to_no_pool_stays_as_it_is() {
    let sent = recorded_translation();
    assert!(Editor::new(true).translation(sent.clone()).unwrap() == sent);
    let hooked = hooked(&Editor::new(true), &pool());
    let changed: Vec<usize> =
        (0..sent.listeners.len()).filter(|idx| sent.listeners[*idx] != hooked.listeners[*idx]).collect();
    assert_eq!(changed, [named(LISTENER, &sent.listeners, LLM_GW)]);
    assert_eq!(hooked.clusters.len(), sent.clusters.len() + 1);
}

#[test]
fn a_pool_that_fails_open_gets_a_larger_buffer() {
    let limit = |failure_mode| {
        let resources = hooked(&Editor::new(true), &Pool { failure_mode, ..pool() });
        let listener = &resources.listeners[named(LISTENER, &resources.listeners, LLM_GW)];
        json(&message(LISTENER, listener))["per_connection_buffer_limit_bytes"].clone()
    };
    assert_eq!(limit(FailureMode::FailOpen), 50 << 20);
    assert_eq!(limit(FailureMode::FailClose), 32 << 10, "Envoy Gateway's");
}

/// A strange picker's certificate is not verified, and its health is not asked for.
#[test]
fn a_strange_picker_is_reached_by_any_certificate() {
    let picker = |trust: Trust| {
        let pool = pool();
        let resources = hooked(&Editor::new(true), &Pool { picker: Picker { trust, ..pool.picker }, ..pool });
        json(&message(CLUSTER, resources.clusters.last().unwrap()))
    };
    let tls = |cluster: &Value| cluster["transport_socket"]["typed_config"]["common_tls_context"].clone();
    let strange = picker(Trust::Any(BodyMode::default()));
    assert_eq!((tls(&strange).get("validation_context"), strange.get("health_checks")), (None, None));
    let ours = picker(trust("PEM"));
    assert_eq!(tls(&ours)["validation_context"]["trusted_ca"]["inline_string"], "PEM");
    assert_eq!(ours["health_checks"].as_array().unwrap().len(), 1);
}

/// A server of Go's gRPC ends a connection on which pings come while it writes nothing.
#[test]
fn a_strange_picker_gets_no_pings_between_requests() {
    let keepalive = |trust: Trust| {
        let pool = pool();
        let resources = hooked(&Editor::new(true), &Pool { picker: Picker { trust, ..pool.picker }, ..pool });
        let cluster = json(&message(CLUSTER, resources.clusters.last().unwrap()));
        cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
            ["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
            .clone()
    };
    let before_a_request = serde_json::json!({ "connection_idle_interval": "5s", "timeout": "2s" });
    assert_eq!(keepalive(Trust::Any(BodyMode::default())), before_a_request);
    assert_eq!(keepalive(trust("PEM")), serde_json::json!({ "interval": "5s", "timeout": "2s" }));
}

#[test]
fn pods_that_speak_http2_are_spoken_to_in_it() {
    const OTHER: &[u8] = b"\x0a\x02\x08\x09";
    const AUTO: &[u8] = b"\x2a\x00";
    let editor = Editor::new(true);
    let options = |cluster: &[u8], app_protocol: AppProtocol| {
        let edited = editor.cluster(cluster, &Pool { app_protocol, ..pool() }).unwrap();
        json(&message(CLUSTER, &edited))["typed_extension_protocol_options"]
            ["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
            .clone()
    };
    let plain = recorded_cluster();
    let http2 = serde_json::json!({ "http2_protocol_options": {} });
    assert_eq!(options(&plain, AppProtocol::H2c)["explicit_http_config"], http2);
    // Other options of the cluster stay, also ones without descriptors. What said another protocol goes.
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    let (mut any, mut entry, mut limited) = (Vec::new(), Vec::new(), plain.to_vec());
    prost::encoding::string::encode(1, &format!("type.googleapis.com/{name}"), &mut any);
    prost::encoding::bytes::encode(2, &[OTHER, AUTO].concat(), &mut any);
    prost::encoding::string::encode(1, &name, &mut entry);
    prost::encoding::bytes::encode(2, &any, &mut entry);
    prost::encoding::bytes::encode(36, &entry, &mut limited);
    assert_eq!(options(&limited, AppProtocol::H2c)["explicit_http_config"], http2);
    let contains = |app_protocol: AppProtocol, part: &[u8]| {
        let edited = editor.cluster(&limited, &Pool { app_protocol, ..pool() }).unwrap();
        edited.windows(part.len()).any(|window| window == part)
    };
    assert!(contains(AppProtocol::H2c, OTHER) && !contains(AppProtocol::H2c, &[OTHER, AUTO].concat()));
    // Controls: without it, both clusters keep what they have.
    assert_eq!(options(&plain, AppProtocol::Http), Value::Null);
    assert!(contains(AppProtocol::Http, &[OTHER, AUTO].concat()));
}

#[test]
fn policies_of_the_user_stay() {
    let editor = Editor::new(true);
    let with = |name: &str, bytes: &[u8], part: Value| {
        let part =
            DynamicMessage::deserialize(descriptors().get_message_by_name(name).unwrap(), part).unwrap();
        [bytes, &part.encode_to_vec()].concat()
    };
    let policy = serde_json::json!({ "retry_on": "5xx", "num_retries": 7 });
    let route = with(ROUTE, &recorded_route(), serde_json::json!({ "route": { "retry_policy": policy } }));
    let edited = json(&message(ROUTE, &editor.route(&route, &pool()).unwrap()));
    assert_eq!(edited["route"]["retry_policy"], policy);
    let breakers = serde_json::json!({ "thresholds": [{ "max_requests": 5 }] });
    let cluster =
        with(CLUSTER, &recorded_cluster(), serde_json::json!({ "circuit_breakers": breakers.clone() }));
    let edited = json(&message(CLUSTER, &editor.cluster(&cluster, &pool()).unwrap()));
    assert_eq!(edited["circuit_breakers"]["thresholds"][1], breakers["thresholds"][0]);
}

#[test]
fn bytes_that_are_no_message_are_an_error() {
    let editor = Editor::new(true);
    for bytes in [&b"\x0a\xff"[..], b"\x0b", b"\x08"] {
        assert_eq!(editor.route(bytes, &pool()), Err(Malformed));
        assert_eq!(editor.cluster(bytes, &pool()), Err(Malformed));
        let resources = Resources { clusters: vec![Bytes::copy_from_slice(bytes)], ..Resources::default() };
        assert_eq!(editor.translation(resources), Err(Malformed));
    }
}
