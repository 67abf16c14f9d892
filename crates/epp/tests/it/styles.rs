//! Conversations that a picker must hold, as a table: pods with their loads and adapters, a request in some chunks, the
//! proxy's subset, and the expected answer. Each holds in our own reply style and in upstream's.

use ext_proc::compat::Compat;

use crate::fixtures::{Picker, Scenario, post};

/// Queue, KV-cache usage and loaded adapters of each pod. An address in a case is a pod's position.
type Pods = [(u32, f64, &'static str); 3];

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    pods: Pods,
    model: &'static str,
    /// Number of chunks of the body.
    n_chunks: usize,
    /// Pods in the subset hint; 9 is an address that no pod has.
    subset: Option<&'static [usize]>,
    expected: Result<usize, i32>,
}

const IDLE: Pods = [(0, 0.0, ""), (0, 0.0, ""), (0, 0.0, "")];
const FULL: Pods = [(6, 0.2, "a"), (0, 0.9, "b"), (20, 0.95, "a")];
const PLAIN: Case =
    Case { name: "", pods: IDLE, model: "chat-critical", n_chunks: 1, subset: None, expected: Ok(0) };

const CASES: [Case; 16] = [
    Case {
        name: "the shortest queue",
        pods: [(4, 0.1, ""), (1, 0.3, ""), (9, 0.0, "")],
        expected: Ok(1),
        ..PLAIN
    },
    Case {
        name: "of equal queues the emptiest cache",
        pods: [(2, 0.5, ""), (2, 0.6, ""), (2, 0.4, "")],
        expected: Ok(2),
        ..PLAIN
    },
    Case {
        name: "the adapter is loaded",
        pods: [(0, 0.1, "b"), (3, 0.4, "tone-v2,b"), (1, 0.1, "b,c")],
        model: "tone",
        expected: Ok(1),
        ..PLAIN
    },
    Case {
        name: "the adapter is loaded nowhere, one has room",
        pods: [(0, 0.1, "b,c"), (0, 0.1, "c,d"), (3, 0.4, "b")],
        model: "tone",
        expected: Ok(2),
        ..PLAIN
    },
    Case {
        name: "the adapter's queue is too long",
        pods: [(130, 0.1, "tone-v2"), (3, 0.4, "b,c"), (2, 0.1, "b,c")],
        model: "tone",
        expected: Ok(2),
        ..PLAIN
    },
    Case { name: "critical, whatever the load", pods: FULL, expected: Ok(1), ..PLAIN },
    Case {
        name: "sheddable, none has capacity",
        pods: FULL,
        model: "chat-sheddable",
        expected: Err(429),
        ..PLAIN
    },
    Case {
        name: "standard, none has capacity",
        pods: FULL,
        model: "chat-standard",
        expected: Err(429),
        ..PLAIN
    },
    Case {
        name: "sheddable, one has capacity",
        pods: [(6, 0.2, ""), (5, 0.8, ""), (20, 0.9, "")],
        model: "chat-sheddable",
        expected: Ok(1),
        ..PLAIN
    },
    Case {
        name: "a body in pieces",
        pods: [(4, 0.1, ""), (1, 0.3, ""), (9, 0.0, "")],
        n_chunks: 7,
        expected: Ok(1),
        ..PLAIN
    },
    Case {
        name: "a body in pieces, renamed",
        pods: [(4, 0.1, ""), (1, 0.3, "tone-v2"), (0, 0.0, "b,c")],
        model: "tone",
        n_chunks: 5,
        expected: Ok(1),
        ..PLAIN
    },
    Case {
        name: "the whole pool as a subset",
        pods: [(4, 0.1, ""), (1, 0.3, ""), (9, 0.0, "")],
        subset: Some(&[0, 1, 2]),
        expected: Ok(1),
        ..PLAIN
    },
    Case {
        name: "a subset without the best",
        pods: [(4, 0.1, ""), (1, 0.3, ""), (9, 0.0, "")],
        subset: Some(&[9, 2, 0]),
        expected: Ok(0),
        ..PLAIN
    },
    Case { name: "a subset of strangers", subset: Some(&[9]), expected: Err(503), ..PLAIN },
    Case { name: "an empty subset", subset: Some(&[]), expected: Err(503), ..PLAIN },
    Case { name: "nobody's model", model: "unheard-of", expected: Err(404), ..PLAIN },
];

fn models() -> String {
    let model = |name: &str, spec: &str| {
        format!(
            "---\napiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata: {{name: {name}}}\n\
             spec: {{modelName: {name}, {spec}, poolRef: {{name: vllm-qwen-pool}}}}\n"
        )
    };
    model("chat-critical", "criticality: Critical")
        + &model("chat-standard", "criticality: Standard")
        + &model("chat-sheddable", "criticality: Sheddable")
        + &model("tone", "criticality: Critical, targetModels: [{name: tone-v2, weight: 5}]")
}

async fn run(picker: &Picker, compat: Compat, case: Case) {
    let Case { name, pods, model, n_chunks, subset, expected } = case;
    let name = format!("{name} ({compat:?})");
    for (pod, (waiting, kv_usage, adapters)) in picker.pods.iter().zip(pods) {
        pod.set_load_of("base", waiting, kv_usage);
        pod.set_adapters(adapters, "");
    }
    picker.wait_for_scrapes().await;
    let address = |pod_idx: usize| {
        picker.pods.get(pod_idx).map_or_else(|| "10.9.9.9:1".to_owned(), |pod| pod.address.to_string())
    };
    let subset = subset.map(|subset| subset.iter().map(|idx| address(*idx)).collect::<Vec<_>>());
    let subset = subset.as_ref().map(|subset| subset.iter().map(String::as_str).collect::<Vec<_>>());
    let body = format!(r#"{{"model":"{model}","prompt":"one {name}"}}"#);
    let mut call = picker.proxy().await.open().await;
    call.send_headers(None, &post("/v1/completions"), subset.as_deref(), false).await;
    let size = body.len().div_ceil(n_chunks);
    let chunks: Vec<&[u8]> = body.as_bytes().chunks(size).collect();
    for (idx, chunk) in chunks.iter().enumerate() {
        call.send_body(chunk, idx + 1 == chunks.len()).await;
    }
    let answer = call.full_duplex_answer().await;
    let actual = match &answer.refused {
        Some((code, ..)) => Err(*code),
        None => Ok(answer.picked().to_owned()),
    };
    assert_eq!(actual, expected.map(address), "{name}");
    if expected.is_ok() {
        let sent = body.replacen(r#""tone""#, r#""tone-v2""#, 1);
        assert_eq!(answer.body, sent.as_bytes(), "{name}");
        respond(call, &name).await;
    }
}

/// Sends a JSON response in every second case and an event stream in the others: each passes unchanged.
async fn respond(call: crate::fixtures::Call, name: &str) {
    let is_json = name.len().is_multiple_of(2);
    let (content_type, text) = if is_json {
        ("application/json", r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#)
    } else {
        (
            "text/event-stream",
            "data: {\"choices\":[]}\n\ndata: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\ndata: [DONE]\n\n",
        )
    };
    let chunks: Vec<&[u8]> = text.as_bytes().chunks(11).collect();
    let received = call.respond(&[(":status", "200"), ("content-type", content_type)], &chunks).await;
    assert_eq!(String::from_utf8(received).unwrap(), text, "{name}");
}

async fn check(compat: Compat) {
    let picker = Scenario::new(3).strategy("DEFAULT").objects(&models()).compat(compat).start().await;
    for case in CASES {
        run(&picker, compat, case).await;
    }
    let records = async || picker.decisions(0).await;
    let served = CASES.iter().filter(|case| case.expected.is_ok()).count();
    crate::fixtures::until(async || {
        let with_usage = |record: &&serde_json::Value| record["response"]["usage"]["completion_tokens"] == 4;
        records().await.iter().filter(with_usage).count() == served
    })
    .await;
}

#[tokio::test]
async fn every_conversation_ends_as_it_must() {
    check(Compat::None).await;
}

#[tokio::test]
async fn every_conversation_ends_as_it_must_for_upstreams_clients() {
    check(Compat::GieV04).await;
}
