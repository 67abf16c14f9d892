//! The filters of pickers of others: one way for each body mode and failure mode, the same in both encodings.

use expect_test::expect_file;
use gateway_config::attachment::{Maker, Responses};
use gateway_config::render::{Bindings, Rendered};
use gateway_config::xds::{Editor, Picker, Pool, Trust};
use inference_api::pool::{BodyMode, FailureMode};
use serde_json::Value;

use crate::fixtures::{bindings, edited, plan, tutorial};
use crate::xds::{LISTENER, LLM_GW, assert_same, hooked, json, manager, message, named, pool, trust};

const NAME: &str = "    name: inference-gateway-ext-proc";

/// The listener with the pool, in the local files.
fn local(failure_mode: FailureMode, maker: Maker) -> Value {
    let yaml = match failure_mode {
        FailureMode::FailClose => tutorial(),
        FailureMode::FailOpen => edited(NAME, &format!("{NAME}\n    failureMode: FailOpen")),
    };
    let plan = plan(&yaml).unwrap();
    let mut bindings = bindings(&plan);
    bindings.pickers.values_mut().for_each(|picker| picker.maker = maker);
    // The operator's wish for responses counts for our own picker only.
    let rendered = Rendered::new(&plan, &Bindings { responses: Responses::default(), ..bindings }).unwrap();
    rendered.static_equivalent["static_resources"]["listeners"][1].clone()
}

fn local_filters(failure_mode: FailureMode, maker: Maker) -> Vec<Value> {
    let listener = local(failure_mode, maker);
    let filters = &listener["default_filter_chain"]["filters"][0]["typed_config"]["http_filters"];
    filters.as_array().unwrap().clone()
}

/// The pool as the hooks attach it.
fn hooked_pool(failure_mode: FailureMode, trust: Trust) -> Pool {
    let pool = pool();
    Pool { failure_mode, responses: Responses::Through, picker: Picker { trust, ..pool.picker }, ..pool }
}

const FAILURE_MODES: [FailureMode; 2] = [FailureMode::FailClose, FailureMode::FailOpen];
const BODY_MODES: [BodyMode; 2] = [BodyMode::FullDuplexStreamed, BodyMode::Streamed];

#[test]
fn each_attachment_has_its_filters() {
    for body_mode in BODY_MODES {
        for failure_mode in FAILURE_MODES {
            let filters = local_filters(failure_mode, Maker::Other(body_mode));
            let text = serde_json::to_string_pretty(&filters[..filters.len() - 1]).unwrap() + "\n";
            let file = format!("golden/filters-{}-{failure_mode:?}.json", body_mode.as_str());
            expect_file![file].assert_eq(&text);

            let resources = hooked(&Editor::new(true), &hooked_pool(failure_mode, Trust::Any(body_mode)));
            let found = manager(&resources, LLM_GW)["http_filters"].as_array().unwrap().clone();
            assert_eq!(found.len(), filters.len());
            for (found, local) in found.iter().zip(&filters).take(filters.len() - 1) {
                assert_same(found, local);
            }
        }
    }
}

/// Envoy holds a body in the buffer of its connection for our own picker only.
#[test]
fn the_buffer_of_connections_grows_only_for_bodies_that_it_holds() {
    let limits = |failure_mode: FailureMode, maker: Maker, trust: Trust| {
        let listener = local(failure_mode, maker);
        let resources = hooked(&Editor::new(true), &hooked_pool(failure_mode, trust));
        let idx = named(LISTENER, &resources.listeners, LLM_GW);
        let hooked = json(&message(LISTENER, &resources.listeners[idx]));
        let limit = |value: &Value| value.get("per_connection_buffer_limit_bytes").and_then(Value::as_u64);
        (limit(&listener), limit(&hooked))
    };
    let envoy_gateways = Some(32 << 10);
    for body_mode in BODY_MODES {
        for failure_mode in FAILURE_MODES {
            let found = limits(failure_mode, Maker::Other(body_mode), Trust::Any(body_mode));
            assert_eq!(found, (None, envoy_gateways), "{body_mode:?} {failure_mode:?}");
        }
    }
    let raised = Some(50 << 20);
    assert_eq!(limits(FailureMode::FailOpen, Maker::Warmpath, trust("PEM")), (raised, raised));
}
