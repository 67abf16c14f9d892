//! A report with every kind of content, for the tests of the formats.

use load::chat::Usage;

use crate::check::{Check, Group, Verdict};
use crate::evidence::join::RequestTrace;
use crate::evidence::join::tests::client;
use crate::evidence::picker::Decision;
use crate::evidence::pod::{CacheCounters, PodEntry};
use crate::report::{Outcome, Part, PodCache, Report, Run, SCHEMA, Side};

pub(crate) fn report() -> Report {
    Report {
        schema: SCHEMA.to_owned(),
        run: Run {
            started: "2026-01-02T03:04:05Z".to_owned(),
            outcome: Outcome::Passed,
            elapsed_s: 41.5,
            manifests: "manifests/doc".to_owned(),
            replicas: 2,
            time_scale: 1.0,
            http_port: 8080,
            llm_port: 8081,
            notes: vec!["port 8080 was taken".to_owned()],
        },
        checks: vec![
            Check::of(Group::Tutorial, "bash/prompt-tokens", "Round 1 has 127 prompt tokens").equal(127, 127),
            Check::of(Group::Controls, "forged", "A forged header is ignored").equal("own pod", "own pod"),
        ],
        sides: vec![side("8081", 90.0), side("8080", 250.0)],
        requests: (0..4).map(trace).collect(),
        parts: vec![Part { name: "Start".to_owned(), wall_s: 1.5 }],
    }
}

/// The report with a passed, a failed and a skipped check.
pub(crate) fn skipping() -> Report {
    let mut report = report();
    report.run.outcome = Outcome::Failed;
    report.checks[1].verdict = Verdict::Failed;
    let hung = Check::of_faults("picker-hung/fails", "With a hung picker a request fails");
    report.checks.push(hung.skipped("no <picker> runs"));
    report
}

fn side(name: &str, base: f64) -> Side {
    let pod = |name: &str, hits: f64| PodCache {
        pod: name.to_owned(),
        requests: 10,
        tokens: CacheCounters { queries: 1000.0, hits, kv_usage: 0.1 },
    };
    Side {
        name: name.to_owned(),
        ttft_ms: (0..40).map(|idx| base + f64::from(idx * idx) / 4.0).collect(),
        own_pod_turns: 30,
        later_turns: 32,
        pods: vec![pod("qwen-6f7c-0", 800.0), pod("qwen-6f7c-1", 650.0)],
    }
}

fn trace(number: u32) -> RequestTrace {
    let mut client = client(Some("r-1"));
    client.label = format!("round {} <of the bash form>", number + 1);
    client.sent_at = f64::from(number) * 0.7;
    client.usage = Some(Usage {
        prompt_tokens: 228,
        total_tokens: 231,
        completion_tokens: 3,
        prompt_tokens_details: None,
    });
    let endpoint = Some("127.0.0.1:18001".to_owned());
    RequestTrace {
        client,
        served_by: Some("qwen-6f7c-0".to_owned()),
        envoy_upstream: endpoint.clone(),
        envoy_attempts: Some(1),
        decision: (number > 0).then(|| Decision {
            seq: number.into(),
            request: "v68m4zx472".to_owned(),
            x_request_id: Some("r-1".to_owned()),
            strategy: Some("PREFIX_CACHE".to_owned()),
            outcome: "picked".to_owned(),
            endpoint,
            pod: Some("qwen-6f7c-0".to_owned()),
            reason: Some("prefix".to_owned()),
            matched_bytes: 392,
            total_bytes: 728,
            ratio: 0.538,
            threshold: Some(0.5),
            candidates: Vec::new(),
            response: None,
        }),
        pod: (number > 1).then(|| PodEntry {
            pod: "qwen-6f7c-0".to_owned(),
            request_id: "r-1".to_owned(),
            status: 200,
            prompt_tokens: 228,
            cached_tokens: 128,
            completion_tokens: 3,
            ttft_ms: Some(118.0),
        }),
    }
}
