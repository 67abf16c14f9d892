//! Upstream's configuration file: its weights change picks, and what is not taken is listed.

use std::num::NonZeroUsize;
use std::time::Duration;

use epp::tuning::{KnobSource, Patch, Tuning};
use inference_api::picker_config::{PickerConfig, Saturation, Weights};
use prefix_index::endpoint::EndpointId;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use scheduling::candidate::{AdapterState, Candidate, Load};
use scheduling::pick::{Ask, Policy, Reason, pick};

fn config(profile: &str) -> PickerConfig {
    let text = format!(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{{type: queue-scorer}}, {{type: \
         kv-cache-utilization-scorer}}, {{name: prefix, type: prefix-cache-scorer}}]\nschedulingProfiles: [{{name: default, \
         plugins: [{profile}]}}]\n"
    );
    PickerConfig::parse(&text).unwrap()
}

fn profile(prefix: f64, queue: f64) -> String {
    format!(
        "{{pluginRef: prefix, weight: {prefix}}}, {{pluginRef: queue-scorer, weight: {queue}}}, {{pluginRef: \
         kv-cache-utilization-scorer, weight: 2}}"
    )
}

fn tuning(config: &PickerConfig) -> Tuning {
    Tuning::default().with(&Patch::of_config(config).unwrap(), KnobSource::Flag)
}

/// Picks between an endpoint that holds 60 % of a prompt behind eight requests and an idle one.
fn picked(config: &PickerConfig) -> (u32, Reason) {
    let candidate = |slot, in_flight, matched_bytes| Candidate {
        endpoint: EndpointId::new(slot, 0),
        load: Load { in_flight, fresh: true, ..Load::default() },
        adapter: AdapterState::Irrelevant,
        matched_bytes,
    };
    let candidates = [candidate(0, 8, 6000), candidate(1, 0, 0)];
    let ask = Ask { total_bytes: 10_000, n_endpoints: NonZeroUsize::MIN };
    let policy = Policy::PrefixCache(tuning(config).affinity(4.0));
    let decision = pick(&policy, &candidates, ask, &mut ChaCha8Rng::seed_from_u64(0)).unwrap();
    (decision.endpoint.slot(), decision.reason)
}

#[test]
fn a_weight_changes_the_pick() {
    assert_eq!(picked(&config(&profile(3.0, 2.0))), (0, Reason::Prefix));
    assert_eq!(
        picked(&config(&profile(3.0, 8.0))),
        (1, Reason::Spill),
        "the queue weighs four times as much"
    );
    assert_eq!(picked(&config(&profile(12.0, 8.0))), (0, Reason::Prefix), "only proportions count");
    assert_eq!(picked(&config(&profile(0.0, 2.0))).1, Reason::Load, "no prefix counts");
}

#[test]
fn upstreams_default_is_the_built_in_tuning() {
    let of_default = tuning(&config(&profile(3.0, 2.0)));
    assert_eq!(of_default.affinity(4.0), Tuning::default().affinity(4.0));
    assert_eq!(Patch::of_config(&PickerConfig::default()).unwrap(), Patch::default());
    assert_ne!(tuning(&config(&profile(3.0, 0.0))).affinity(4.0), Tuning::default().affinity(4.0));
}

#[test]
fn thresholds_and_bounds_are_read_and_the_rest_is_listed() {
    let text = "
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- type: prefix-cache-scorer
  parameters: {hashBlockSize: 64, maxPrefixBlocksToMatch: 256, lruCapacityPerServer: 31250}
- type: prefix-cache-affinity-filter
  parameters: {affinityThreshold: 0.8}
- type: lora-affinity-scorer
  parameters: {threshold: 1}
schedulingProfiles:
- {name: a, plugins: [{pluginRef: prefix-cache-scorer}, {pluginRef: lora-affinity-scorer, weight: 9}]}
saturationDetector: {queueDepthThreshold: 7, kvCacheUtilThreshold: 0.6, metricsStalenessThreshold: 300ms}
";
    let config = PickerConfig::parse(text).unwrap();
    assert_eq!(config.weights, Some(Weights { prefix: 1.0, queue: 0.0, kv_cache: 0.0 }));
    assert_eq!((config.affinity_threshold, config.index_capacity), (Some(0.8), Some(31_250)));
    let metrics_age = Some(Duration::from_millis(300));
    assert_eq!(config.saturation, Saturation { queue_depth: Some(7), kv_usage: Some(0.6), metrics_age });
    assert_eq!(
        config.left_out,
        [
            "plugins[0].parameters.hashBlockSize",
            "plugins[0].parameters.maxPrefixBlocksToMatch",
            "plugins[2] (lora-affinity-scorer)",
            "featureGates",
        ]
    );
    for (from, to, expected) in [
        ("affinityThreshold: 0.8", "affinityThreshold: 8", "parameters.affinityThreshold: 8 is not a ratio"),
        (
            "kind: EndpointPickerConfig",
            "kind: Other",
            "Other of inference.networking.x-k8s.io/v1alpha1 is not",
        ),
        ("{pluginRef: prefix-cache-scorer}", "{weight: 1}", "pluginRef"),
    ] {
        let error = PickerConfig::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
