//! Edits of rules that divide their requests among several backends.

use gateway_config::attachment::Responses;
use gateway_config::xds::{Division, Editor, Pool, Portion, Resources};
use inference_api::object::ObjectKey;
use prost::Message as _;
use prost_reflect::{DynamicMessage, ReflectMessage as _};
use serde_json::Value;

use super::{
    CLUSTER, LLM_GW, ROUTE, ROUTES, RULE, json, manager, message, named, pool, recorded_cluster,
    recorded_route, recorded_translation, with_edited,
};

/// The recorded rule with two pools, and beside them Services of this weight.
fn divided(others: u32) -> Division {
    let second = Pool {
        key: ObjectKey::new("default", "second"),
        responses: Responses::Through,
        pods: "second-pods.default.svc.cluster.local.".to_owned(),
        ..pool()
    };
    let portion = |idx: u32, weight: u32, pool: Option<Pool>| Portion {
        cluster: format!("{RULE}/backend/{idx}"),
        weight,
        pool,
    };
    let pools = vec![portion(0, 70, Some(pool())), portion(2, 20, Some(second)), portion(3, 5, None)];
    Division { rule: RULE.to_owned(), pools, others }
}

/// Routes of the rule after all hooks, and the clusters that its pools and Services have.
fn hooked_division(editor: &Editor, division: &Division) -> (Vec<Value>, Resources) {
    let route = editor.divided_route(&recorded_route(), division).unwrap();
    let cluster = editor.divided_cluster(&recorded_cluster(), division).unwrap();
    let resources = editor.translation(with_edited(&route, cluster)).unwrap();
    let idx = named(ROUTES, &resources.route_configurations, LLM_GW);
    let routes = json(&message(ROUTES, &resources.route_configurations[idx]));
    (routes["virtual_hosts"][0]["routes"].as_array().unwrap().clone(), resources)
}

/// Names, weights and configured filters of a route's weighted clusters.
fn portions(route: &Value) -> Vec<(&str, u64, Vec<&str>)> {
    let clusters = route["route"]["weighted_clusters"]["clusters"].as_array().unwrap().iter();
    let portion = clusters.map(|cluster| {
        let filters = cluster["typed_per_filter_config"].as_object().into_iter().flatten();
        let mut filters: Vec<&str> =
            filters.filter_map(|(name, _)| name.split("endpointpicker/").nth(1)).collect();
        filters.sort_unstable();
        (cluster["name"].as_str().unwrap(), cluster["weight"].as_u64().unwrap(), filters)
    });
    portion.collect()
}

#[test]
fn a_rule_divides_its_requests_among_its_pools_and_services() {
    let editor = Editor::new(true);
    let (routes, resources) = hooked_division(&editor, &divided(5));
    let [reporting, plain] = routes.as_slice() else { panic!("one of the pools reports a share") };
    let name = |idx: u32| format!("{RULE}/backend/{idx}");
    let (first, second, missing) = (name(0), name(2), name(3));
    let own = ["vllm-qwen-pool_default_ext_proc", "vllm-qwen-pool_default_ext_proc/observer"];
    for (route, n_filters) in [(reporting, 2), (plain, 1)] {
        let wanted = [
            (RULE, 5, vec![]),
            (&*first, 70, own[..n_filters].to_vec()),
            (&*second, 20, vec!["second_default_ext_proc"]),
            (&*missing, 5, vec![]),
        ];
        assert_eq!(portions(route), wanted);
    }
    assert_eq!((plain["route"].get("cluster"), plain.get("typed_per_filter_config")), (None, None));
    assert!(plain["route"]["retry_policy"].is_object());

    let cluster =
        |name: &str| json(&message(CLUSTER, &resources.clusters[named(CLUSTER, &resources.clusters, name)]));
    for (name, pods) in [(&first, "vllm-qwen-pool-pods"), (&second, "second-pods")] {
        let endpoints = &cluster(name)["load_assignment"]["endpoints"][0]["lb_endpoints"][0];
        let host = &endpoints["endpoint"]["address"]["socket_address"]["address"];
        assert_eq!(host, &format!("{pods}.default.svc.cluster.local."));
    }
    assert_eq!(cluster(RULE), json(&message(CLUSTER, &recorded_cluster())), "the Services' stays");
    let filters = manager(&resources, LLM_GW)["http_filters"].as_array().unwrap().len();
    let before = manager(&recorded_translation(), LLM_GW)["http_filters"].as_array().unwrap().len();
    assert_eq!((filters, resources.clusters.len()), (before + 3, recorded_translation().clusters.len() + 4));
    assert!(editor.translation(resources.clone()).unwrap() == resources, "nothing is added twice");
    // Controls: without Services, the rule's own cluster has nobody to serve; a pool alone needs no weights.
    let (routes, resources) = hooked_division(&editor, &divided(0));
    assert_eq!(portions(&routes[0]).len(), 3);
    assert!(resources.clusters.iter().all(|bytes| json(&message(CLUSTER, bytes))["name"] != RULE));
    let alone = Division { pools: divided(0).pools[..1].to_vec(), ..divided(0) };
    assert_eq!(editor.divided_route(&recorded_route(), &alone), editor.route(&recorded_route(), &pool()));
    assert_eq!(
        editor.divided_cluster(&recorded_cluster(), &alone),
        editor.cluster(&recorded_cluster(), &pool())
    );
}

#[test]
fn each_pool_of_a_divided_rule_reports_the_bodies_of_a_share() {
    let (routes, _) = hooked_division(&Editor::new(true), &divided(5));
    let observed = |route: &Value| {
        let clusters = route["route"]["weighted_clusters"]["clusters"].as_array().unwrap().clone();
        let is_observed = |cluster: Value| {
            let filters = cluster["typed_per_filter_config"].as_object().cloned().unwrap_or_default();
            filters.keys().any(|name| name.ends_with("/observer"))
        };
        clusters.into_iter().map(is_observed).collect::<Vec<bool>>()
    };
    assert_eq!(routes[0]["match"]["runtime_fraction"]["default_value"]["numerator"], 50_000);
    assert_eq!(observed(&routes[0]), [false, true, false, false]);
    assert_eq!(observed(&routes[1]), [false; 4]);
}

/// Envoy Gateway makes a cluster for each backend if one is missing, and forgets those of pools in the route.
#[test]
fn clusters_of_single_backends_are_attached_to_their_pools() {
    let editor = Editor::new(true);
    let division = divided(0);
    let part = |cluster: &str| {
        let mut message = message(CLUSTER, &recorded_cluster());
        message.set_field_by_name("name", prost_reflect::Value::String(cluster.to_owned()));
        message.encode_to_vec()
    };
    let Portion { cluster, weight: _, pool } = division.pools[1].clone();
    let cluster = part(&cluster);
    let own = editor.divided_cluster(&cluster, &division).unwrap();
    assert!(own == editor.cluster(&cluster, &pool.unwrap()).unwrap());
    let service = part(&format!("{RULE}/backend/1"));
    assert_eq!(editor.divided_cluster(&service, &division).unwrap(), service, "a Service's");
    let mut route = message(ROUTE, &recorded_route());
    let action = route.get_field_by_name_mut("route").unwrap().as_message_mut().unwrap();
    action.clear_field_by_name("cluster");
    let missing = serde_json::json!({
        "weighted_clusters": { "clusters": [{ "name": "invalid-backend-cluster", "weight": 9 }] },
    });
    let missing = DynamicMessage::deserialize(action.descriptor(), missing).unwrap();
    action.merge(&missing.encode_to_vec()[..]).unwrap();
    let edited = json(&message(ROUTE, &editor.divided_route(&route.encode_to_vec(), &division).unwrap()));
    let weights: Vec<u64> = portions(&edited).into_iter().map(|(_, weight, _)| weight).collect();
    assert_eq!(weights, [9, 70, 20, 5]);
}
