//! Everything that is not translated is refused or remarked on, with the name of object and field.

use expect_test::{Expect, expect};
use inference_api::remark::Remark;

use crate::fixtures::{edited, plan, tutorial};

fn check(yaml: &str, expected: &Expect) {
    expected.assert_eq(&plan(yaml).unwrap_err().to_string());
}

/// Compares the first remark of a plan that is not refused.
fn check_remark(yaml: &str, expected: &Expect) {
    let remarks = plan(yaml).unwrap().remarks;
    let Remark { kind, key, field, on_a_cluster } = remarks.first().expect("there is a remark");
    expected.assert_eq(&format!("{kind} {key}: {field}: on a cluster {on_a_cluster}"));
}

#[test]
fn the_tutorial_is_translated_in_full() {
    assert_eq!(plan(&tutorial()).unwrap().remarks, []);
}

#[test]
fn gateway_and_class() {
    check_remark(
        &edited("protocol: HTTP\n", "protocol: HTTPS\n"),
        &expect![
            "Gateway default/qwen-inference-gateway: spec.listeners[0].protocol: on a cluster the gateway listens for HTTPS, which the lab does not"
        ],
    );
    check(
        &edited("port: 8081", "port: 8080"),
        &expect![
            "Gateway default/qwen-inference-gateway: spec.listeners[1].port: listener http has port 8080 for the same hosts"
        ],
    );
    check(
        &edited("- name: llm-gw", "- name: http"),
        &expect!["Gateway default/qwen-inference-gateway: spec.listeners[1].name: http is used twice"],
    );
    check_remark(
        &edited("gatewayClassName: qwen-inference-gateway-class", "gatewayClassName: other"),
        &expect![
            "Gateway default/qwen-inference-gateway: spec.gatewayClassName: on a cluster the controller of GatewayClass other serves it, and Envoy does here"
        ],
    );
    check_remark(
        &edited("gateway.envoyproxy.io/gatewayclass-controller", "example.com/other"),
        &expect![
            "Gateway default/qwen-inference-gateway: spec.gatewayClassName: on a cluster example.com/other serves it, and Envoy does here"
        ],
    );
    check(
        &(tutorial() + "---\n" + crate::fixtures::POOL),
        &expect!["InferencePool default/vllm-qwen-pool: metadata.name: there are two objects of this name"],
    );
}

#[test]
fn parent_refs() {
    check_remark(
        &edited("- name: qwen-inference-gateway\n", "- name: other\n"),
        &expect![
            "HTTPRoute default/qwen-backend: spec.parentRefs[0].name: on a cluster Gateway default/other, which is not among the files, takes the route"
        ],
    );
    check_remark(
        &edited("sectionName: llm-gw", "sectionName: other"),
        &expect![
            "HTTPRoute default/qwen-backend: spec.parentRefs[0].sectionName: on a cluster Gateway default/qwen-inference-gateway has no such listener for HTTP, and takes nothing"
        ],
    );
    check_remark(
        &edited("sectionName: llm-gw", "port: 1234"),
        &expect![
            "HTTPRoute default/qwen-backend: spec.parentRefs[0].sectionName: on a cluster Gateway default/qwen-inference-gateway has no such listener for HTTP, and takes nothing"
        ],
    );
    check_remark(
        &edited("sectionName: llm-gw", "namespace: other"),
        &expect![
            "HTTPRoute default/qwen-backend: spec.parentRefs[0].name: on a cluster Gateway other/qwen-inference-gateway, which is not among the files, takes the route"
        ],
    );
    check_remark(
        &edited("kind: Gateway\n      name", "kind: Service\n      name"),
        &expect![
            "HTTPRoute default/qwen-backend-no-inference: spec.parentRefs[0].kind: on a cluster the controller of Service follows it"
        ],
    );
    check_remark(
        &edited("- group: gateway.networking.k8s.io", "- group: example.com"),
        &expect![
            "HTTPRoute default/qwen-backend-no-inference: spec.parentRefs[0].group: on a cluster the controller of example.com follows it"
        ],
    );
}

#[test]
fn backend_refs() {
    check_remark(
        &edited("name: qwen\n          port: 8000", "name: other\n          port: 8000"),
        &expect![
            "HTTPRoute default/qwen-backend-no-inference: spec.rules[0].backendRefs[0].name: on a cluster these requests get 500, as here: there is no Service default/other"
        ],
    );
    check_remark(
        &edited("name: qwen\n          port: 8000", "name: qwen\n          port: 8001"),
        &expect![
            "HTTPRoute default/qwen-backend-no-inference: spec.rules[0].backendRefs[0].port: on a cluster these requests get 500, as here: Service default/qwen has no port 8001"
        ],
    );
    check(
        &edited("          port: 8000\n", ""),
        &expect![
            "HTTPRoute default/qwen-backend-no-inference: spec.rules[0].backendRefs[0].port: a Service needs a port"
        ],
    );
    check_remark(
        &edited("          weight: 1\n", "          namespace: other\n"),
        &expect![
            "HTTPRoute default/qwen-backend-no-inference: spec.rules[0].backendRefs[0].namespace: on a cluster these requests get 500, as here: no ReferenceGrant of namespace other allows it"
        ],
    );
    check(
        &edited("protocol: TCP", "protocol: UDP"),
        &expect![
            "HTTPRoute default/qwen-backend-no-inference: spec.rules[0].backendRefs[0].port: port 8000 of Service default/qwen is UDP, not TCP"
        ],
    );
    check_remark(
        &edited(
            "          kind: InferencePool\n          name: vllm-qwen-pool",
            "          kind: InferencePool\n          name: other",
        ),
        &expect![
            "HTTPRoute default/qwen-backend: spec.rules[0].backendRefs[0].name: on a cluster these requests get 500, as here: there is no InferencePool default/other"
        ],
    );
    let other_group =
        edited("- group: inference.networking.x-k8s.io\n", "- group: inference.networking.k8s.io\n");
    check_remark(
        &other_group,
        &expect![
            "HTTPRoute default/qwen-backend: spec.rules[0].backendRefs[0].group: on a cluster these requests get 500, as here: InferencePool default/vllm-qwen-pool is of inference.networking.x-k8s.io, not inference.networking.k8s.io"
        ],
    );
    check_remark(
        &edited("          kind: InferencePool\n", "          kind: Backend\n"),
        &expect![[
            r#"HTTPRoute default/qwen-backend: spec.rules[0].backendRefs[0].kind: on a cluster these requests get 500, as here: the lab has no Backend of group "inference.networking.x-k8s.io""#
        ]],
    );
}

#[test]
fn a_pool_without_a_picker() {
    let newer = |picker: &str| {
        let pool = format!(
            "---\napiVersion: inference.networking.k8s.io/v1\nkind: InferencePool\nmetadata: {{name: newer}}\n\
             spec: {{selector: {{matchLabels: {{app: qwen}}}}, targetPorts: [{{number: 8000}}]{picker}}}\n"
        );
        let to_it = edited(
            "- group: inference.networking.x-k8s.io\n          kind: InferencePool\n          name: vllm-qwen-pool",
            "- group: inference.networking.k8s.io\n          kind: InferencePool\n          name: newer",
        );
        to_it + &pool
    };
    check(
        &newer(""),
        &expect![
            "HTTPRoute default/qwen-backend: spec.rules[0].backendRefs[0].name: InferencePool default/newer names no picker: give it an endpointPickerRef"
        ],
    );
    // Control: with one it is taken.
    plan(&newer(", endpointPickerRef: {name: e, port: {number: 9002}}")).unwrap();
}

#[test]
fn policies() {
    let target = "kind: Gateway\n    name: qwen-inference-gateway";
    check_remark(
        &edited(target, "kind: Gateway\n    name: other"),
        &expect![
            "BackendTrafficPolicy default/backend-timeout: spec.targetRef.name: on a cluster it waits for Gateway default/other, which is not among the files"
        ],
    );
    check_remark(
        &edited(target, "kind: HTTPRoute\n    name: other"),
        &expect![
            "BackendTrafficPolicy default/backend-timeout: spec.targetRef.name: on a cluster it waits for HTTPRoute default/other, which is not among the files"
        ],
    );
    check_remark(
        &edited(target, "kind: Service\n    name: qwen"),
        &expect![[
            r#"BackendTrafficPolicy default/backend-timeout: spec.targetRef.kind: on a cluster it applies to Service default/qwen of group "gateway.networking.k8s.io""#
        ]],
    );
    check_remark(
        &edited(target, &format!("{target}\n    sectionName: other")),
        &expect![
            "BackendTrafficPolicy default/backend-timeout: spec.targetRef.sectionName: on a cluster it waits for listener other of Gateway default/qwen-inference-gateway"
        ],
    );
    check_remark(
        &edited("  targetRef:\n    group: gateway.networking.k8s.io", "  targetRef:\n    group: \"\""),
        &expect![[
            r#"BackendTrafficPolicy default/backend-timeout: spec.targetRef.kind: on a cluster it applies to Gateway default/qwen-inference-gateway of group """#
        ]],
    );
    check_remark(
        &edited(
            "kind: Gateway\n    name: qwen-inference-gateway",
            "kind: HTTPRoute\n    name: qwen-backend\n    sectionName: r",
        ),
        &expect![
            "BackendTrafficPolicy default/backend-timeout: spec.targetRef.sectionName: on a cluster it waits for rule r of HTTPRoute default/qwen-backend"
        ],
    );
    let second = "---\napiVersion: gateway.envoyproxy.io/v1alpha1\nkind: BackendTrafficPolicy\nmetadata: {name: second}\n";
    let same = "spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: qwen-inference-gateway}]}\n";
    check_remark(
        &(tutorial() + second + same),
        &expect![
            "BackendTrafficPolicy default/second: spec.targetRefs[0].name: on a cluster default/backend-timeout, which targets it too, wins, as here"
        ],
    );
    check_remark(
        &(tutorial() + second + "spec: {}\n"),
        &expect![
            "BackendTrafficPolicy default/second: spec.targetRefs: on a cluster a policy without a target has no effect, as here"
        ],
    );
}
