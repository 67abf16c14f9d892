//! Rules as text and as JSON, and the false values of metrics.

use crate::process::{run, stdout};
use mock_vllm::faults::guide::{FAULTS, LIES};
use mock_vllm::faults::wave::Wave;
use mock_vllm::faults::{Fault, Rule};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

#[track_caller]
fn check(text: &str, expected: Value) {
    let rule: Rule = text.parse().unwrap();
    assert_eq!(rule.to_json(), expected);
    assert_eq!(Rule::from_json(expected).unwrap(), rule);
    assert_eq!(rule.to_string().parse::<Rule>().unwrap(), rule, "{rule}");
}

#[track_caller]
fn check_invalid(text: &str, expected: &str) {
    let error = text.parse::<Rule>().unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    assert!(error.contains("`mock-vllm faults` lists them") || error.contains("twice"), "{error}");
}

#[test]
fn a_rule_is_the_same_as_text_and_as_json() {
    check("refuse", json!({"fault": "refuse"}));
    check(
        "status:code=429,rate=0.3,retry_after=2s,on=all",
        json!({"fault": "status", "code": 429, "retry_after": "2s", "on": "all", "rate": 0.3}),
    );
    check(
        "stall:tokens=3,delay=1m 30s,after=2,times=1,from=1s,for=2s,pod=q-0",
        json!({"fault": "stall", "tokens": 3, "delay": "1m 30s", "pod": "q-0", "after": 2, "times": 1, "from": "1s", "for": "2s"}),
    );
    check("content-length:off=-3", json!({"fault": "content-length", "off": -3}));
    check("kv-pressure:share=1", json!({"fault": "kv-pressure", "share": 1.0}));
    check(
        "metrics-lie:metric=waiting,value=ramp:0:10:30s",
        json!({"fault": "metrics-lie", "metric": "waiting", "value": "ramp:0:10:30s"}),
    );
}

#[test]
fn what_is_wrong_is_named_with_the_way_out() {
    check_invalid("", "unknown variant ``");
    check_invalid("stal", "stal: unknown variant `stal`, expected one of `refuse`, `drop`, `status`");
    check_invalid("status", "status: missing field `code`");
    check_invalid("status:code=200", "code must be 400 to 599, got 200");
    check_invalid("status:code=x", "invalid type: string \"x\", expected u16");
    check_invalid("status:code=500,rate=0", "rate must be above 0 and at most 1");
    check_invalid("status:code=500,rate=1.5", "rate must be above 0 and at most 1");
    check_invalid("status:code=500,colour=red", "unknown field `colour`");
    check_invalid("status:code=500,code=501", "`code` is given twice");
    check_invalid("status:500", "is not name:key=value");
    check_invalid("stall:delay=2", "2 is not a duration like 500ms");
    check_invalid("reset:tokens=-1", "invalid value: integer `-1`");
    check_invalid("content-length:off=0", "nonzero");
    check_invalid("kv-pressure:share=2", "share must be above 0 and at most 1");
    check_invalid("kv-pressure:share=0.5,rate=0.5", "no meaning for a fault of the whole pod");
    check_invalid("refuse:on=health", "`on` has no meaning");
    check_invalid("slow-start:delay=1s,for=2s", "`delay` says how long");
    check_invalid("metrics-lie:metric=waiting,value=up", "`up` is no value");
    check_invalid("metrics-lie:metric=waiting,value=ramp:0:1:0s", "is no value");
}

#[test]
fn a_header_may_only_ask_for_faults_of_its_request() {
    assert_eq!(Rule::parse_header("stall:tokens=1,delay=2s; reset:tokens=3").unwrap().len(), 2);
    let refused = |text: &str| Rule::parse_header(text).unwrap_err().to_string();
    assert!(refused("crash").contains("is a fault of the pod, not of one request"));
    assert!(refused("reset:rate=0.5").contains("no meaning in the header of one request"));
    assert!(refused("reset;").contains("unknown variant ``"));
}

#[test]
fn the_list_shows_every_fault_and_its_examples_work() {
    let examples = || FAULTS.iter().chain(&LIES).map(|(example, _)| *example);
    let shown: BTreeSet<String> = examples()
        .map(|example| example.parse::<Rule>().unwrap_or_else(|error| panic!("{example}: {error}")))
        .map(|rule| serde_json::to_value(rule.fault).unwrap()["fault"].as_str().unwrap().to_owned())
        .collect();
    // serde names all variants in its error.
    let complaint = serde_json::from_value::<Fault>(json!({"fault": ""})).unwrap_err().to_string();
    let names: BTreeSet<String> = complaint
        .split("expected one of ")
        .nth(1)
        .unwrap()
        .split(", ")
        .map(|name| name.replace('`', ""))
        .collect();
    assert_eq!(shown, names);
    let guide = run("faults").success();
    assert!(examples().all(|example| stdout(&guide).contains(example)), "{guide}");
}

#[test]
fn waves_take_their_forms() {
    let check = |text: &str, expected: [f64; 5]| {
        let wave: Wave = text.parse().unwrap();
        let seen = [0.0, 2.5, 5.0, 7.5, 12.5].map(|seconds| wave.at(Duration::from_secs_f64(seconds)));
        for (seen, expected) in seen.into_iter().zip(expected) {
            assert!((seen - expected).abs() < 1e-9, "{text}: {seen} for {expected}");
        }
        assert_eq!(wave.to_string().parse::<Wave>().unwrap(), wave);
    };
    check("7.5", [7.5; 5]);
    check("ramp:0:10:10s", [0.0, 2.5, 5.0, 7.5, 10.0]);
    check("rampreset:0:10:10s", [0.0, 2.5, 5.0, 7.5, 2.5]);
    check("oscillate:0:10:10s", [0.0, 5.0, 10.0, 5.0, 5.0]);
    check("squarewave:1:3:10s", [1.0, 1.0, 3.0, 3.0, 1.0]);
}
