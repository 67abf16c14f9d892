//! Counts of the metrics with queueing, preemption, aborts and prefix hits, on an engine with requests at known times.
//! Expected times come from an engine that is stepped here, without a driver.

use crate::engine_fixtures::{prompt, request};
use crate::metrics_fixtures::{Lab, Page, latency, metrics};
use mock_vllm::metrics::requests::{FinishedRequest, SampleCounts, SampleGroup};
use mock_vllm::metrics::{AdmissionLimit, FirstToken, SleepState, StepRecord};
use std::sync::Arc;
use std::time::Duration;
use vllm_engine::engine::{Engine, EngineStats};
use vllm_engine::request::{EngineRequest, FinishReason, LoraAdapter};
use vllm_engine::step::StepOutput;
use vllm_engine::vllm_version::VllmVersion;

const VERSIONS: [VllmVersion; 3] = [VllmVersion::V0_8, VllmVersion::V0_11, VllmVersion::V0_33];

/// Returns how long an engine takes to prefill one request, and to decode it.
fn alone(request: EngineRequest) -> (f64, f64) {
    let mut engine = Engine::try_new(vllm_engine::config::EngineConfig::default()).unwrap();
    engine.add(request).unwrap();
    let (mut prefill, mut decode) = (0.0, 0.0);
    let mut output = StepOutput::default();
    let mut has_output = false;
    while let Some(plan) = engine.schedule() {
        let phase = if has_output { &mut decode } else { &mut prefill };
        *phase += latency().step_time(plan).as_secs_f64();
        engine.complete(&mut output);
        has_output |= !output.tokens.is_empty();
    }
    (prefill, decode)
}

/// Makes tokens that no other request has.
fn own_prompt(id: u32, n: u32) -> Vec<u32> {
    (id * 10_000..id * 10_000 + n).collect()
}

#[track_caller]
fn check(page: &Page, expected: &[(&str, f64)]) {
    for (series, value) in expected {
        let seen = page.get(series);
        assert!((seen - value).abs() < 1e-6, "{series}: {seen} instead of {value}");
    }
}

#[tokio::test]
async fn the_phases_of_requests_that_queue_add_up() {
    let lab = Lab::new(VllmVersion::V0_33, |config| config.max_num_seqs = 1);
    let requests: Vec<_> = [(1, 100, 5), (2, 3_000, 7), (3, 200, 1)]
        .map(|(id, n_prompt, n_output)| request(id.into(), &own_prompt(id, n_prompt), n_output))
        .into();
    let times: Vec<_> = requests.iter().cloned().map(alone).collect();
    lab.run(requests.into_iter().map(|request| (0, request)).collect()).await;

    let prefill: f64 = times.iter().map(|(prefill, _)| prefill).sum();
    let decode: f64 = times.iter().map(|(_, decode)| decode).sum();
    let [first, second, _] = [0, 1, 2].map(|idx: usize| times[idx].0 + times[idx].1);
    let queue = first + (first + second);
    let around = (latency().c_pre + latency().c_post).as_secs_f64() * 3.0;
    check(
        &lab.page(),
        &[
            ("request_queue_time_seconds_sum", queue),
            ("request_prefill_time_seconds_sum", prefill),
            ("request_decode_time_seconds_sum", decode),
            ("request_inference_time_seconds_sum", prefill + decode),
            ("time_to_first_token_seconds_sum", around + queue + prefill),
            ("e2e_request_latency_seconds_sum", around + queue + prefill + decode),
            ("inter_token_latency_seconds_sum", decode),
            ("inter_token_latency_seconds_count", 4.0 + 6.0),
            ("request_time_per_output_token_seconds_sum", times[0].1 / 4.0 + times[1].1 / 6.0),
            ("request_time_per_output_token_seconds_count", 3.0),
            ("request_queue_time_seconds_count", 3.0),
        ],
    );
}

#[tokio::test]
async fn requests_without_a_seat_wait_for_capacity() {
    let lab = Lab::new(VllmVersion::V0_33, |config| config.max_num_seqs = 1);
    let requests = (1..=3).map(|id| (0, request(u64::from(id), &own_prompt(id, 20), 4_000))).collect();
    let handles = lab.submit(requests).await;
    let is_full =
        |page: &Page| page.get("num_requests_running") > 0.0 && page.get("num_requests_waiting") > 1.0;
    let page = lab.page_when(is_full).await;
    check(
        &page,
        &[
            ("num_requests_running", 1.0),
            ("num_requests_waiting", 2.0),
            (r#"num_requests_waiting_by_reason{reason="capacity"}"#, 2.0),
            (r#"num_requests_waiting_by_reason{reason="deferred"}"#, 0.0),
            ("prefix_cache_queries_total", 20.0),
        ],
    );
    assert!(page.get("kv_cache_usage_perc") > 0.0);
    drop(handles);
    let page = lab.page_when(|page| page.get("num_requests_running") == 0.0).await;
    check(&page, &[("num_requests_waiting", 0.0), ("kv_cache_usage_perc", 0.0)]);
}

/// Prompt tokens count with the first token, a step only if it has output.
#[tokio::test]
async fn a_prompt_in_chunks_counts_once_and_at_its_end() {
    for version in VERSIONS {
        let lab = Lab::new(version, |_| {});
        lab.run(vec![(0, request(1, &prompt(5_000), 3))]).await;
        check(
            &lab.page(),
            &[
                ("prompt_tokens_total", 5_000.0),
                ("generation_tokens_total", 3.0),
                ("iteration_tokens_total_count", 3.0),
                ("iteration_tokens_total_sum", 5_003.0),
                (r#"iteration_tokens_total_bucket{le="2048.0"}"#, 2.0),
            ],
        );
    }
}

#[tokio::test]
async fn cached_tokens_are_no_work_in_0_33_and_count_by_source() {
    for version in VERSIONS {
        let lab = Lab::new(version, |_| {});
        // 128 tokens fill 8 blocks, of which the second request may take 7.
        lab.run(vec![(0, request(1, &prompt(128), 1))]).await;
        lab.run(vec![(1_000, request(2, &prompt(128), 1))]).await;
        let page = lab.page();
        check(&page, &[("prompt_tokens_total", 256.0)]);
        if version < VllmVersion::V0_33 {
            check(&page, &[("iteration_tokens_total_sum", 258.0)]);
            continue;
        }
        check(
            &page,
            &[
                ("iteration_tokens_total_sum", 258.0 - 112.0),
                ("prefix_cache_queries_total", 256.0),
                ("prefix_cache_hits_total", 112.0),
                ("prompt_tokens_cached_total", 112.0),
                (r#"prompt_tokens_by_source_total{source="local_compute"}"#, 144.0),
                (r#"prompt_tokens_by_source_total{source="local_cache_hit"}"#, 112.0),
                (r#"prompt_tokens_cached_by_source_total{source="device"}"#, 112.0),
                ("request_prefill_kv_computed_tokens_sum", 144.0),
                ("request_prompt_tokens_sum", 256.0),
            ],
        );
    }
}

/// Makes two requests of 4000 tokens, for blocks for 8192: the later one is preempted while the first grows.
fn contenders() -> Vec<(u64, EngineRequest)> {
    [1, 2].map(|id| (0, request(u64::from(id), &own_prompt(id, 4_000), 4_000))).into()
}

#[tokio::test]
async fn a_preemption_counts_with_the_next_token() {
    let lab = Lab::new(VllmVersion::V0_33, |config| config.n_blocks = 513);
    let handles = lab.submit(contenders()).await;
    // The two run together for a few milliseconds, which a busy machine does not see.
    let is_preempted = || lab.metrics.lock().gauges().preemptions == 1;
    let page = lab.page_when(|page| page.get("num_requests_running") == 1.0 && is_preempted()).await;
    check(&page, &[("num_preemptions_total", 0.0), ("num_requests_waiting", 1.0)]);
    drop(handles);
}

#[tokio::test]
async fn preemptions_count_once_in_the_engine_and_in_their_request() {
    let lab = Lab::new(VllmVersion::V0_33, |config| config.n_blocks = 513);
    let mut requests = contenders();
    requests.iter_mut().for_each(|(_, request)| request.output = request.output[..400].into());
    lab.run(requests).await;
    let gauges = lab.metrics.lock().gauges();
    assert_eq!(gauges.preemptions, 1);
    check(
        &lab.page(),
        &[
            ("num_preemptions_total", 1.0),
            ("request_num_preemptions_sum", 1.0),
            ("request_num_preemptions_count", 2.0),
            (r#"request_num_preemptions_bucket{le="1.0"}"#, 2.0),
            // These do not include what the second look-up found: 0.33 counts it apart.
            ("prefix_cache_queries_total", 8_000.0),
            ("prefix_cache_hits_total", 0.0),
            ("prompt_tokens_total", 8_000.0),
            ("time_to_first_token_seconds_count", 2.0),
            ("inter_token_latency_seconds_count", 798.0),
        ],
    );
    assert!(gauges.preempted_hits > 0, "it found its own blocks again");
}

#[tokio::test]
async fn nothing_is_observed_of_a_request_whose_client_went() {
    for version in VERSIONS {
        let lab = Lab::new(version, |_| {});
        let handles = lab.submit(vec![(0, request(1, &prompt(20), 4_000))]).await;
        lab.page_when(|page| page.get("generation_tokens_total") > 2.0).await;
        drop(handles);
        let page = lab.page_when(|page| page.get("num_requests_running") == 0.0).await;
        check(
            &page,
            &[
                (r#"request_success_total{finished_reason="abort"}"#, 0.0),
                (r#"request_success_total{finished_reason="stop"}"#, 0.0),
                ("e2e_request_latency_seconds_count", 0.0),
                ("request_prompt_tokens_count", 0.0),
                ("time_to_first_token_seconds_count", 1.0),
                ("prompt_tokens_total", 20.0),
            ],
        );
    }
}

fn with_adapter(name: &str, id: u32, n_output: u32) -> (u64, EngineRequest) {
    let lora = LoraAdapter { id, name: name.to_owned(), path: "/p".to_owned() };
    (0, EngineRequest { lora: Some(Arc::new(lora)), ..request(id.into(), &own_prompt(id, 20), n_output) })
}

/// 0.33 knows an adapter from the first output of a request on, and shows it in both lists.
#[tokio::test]
async fn every_combination_of_adapters_leaves_a_series() {
    let series = |running: &str, waiting: &str| {
        format!(r#"{{max_lora="2",running_lora_adapters="{running}",waiting_lora_adapters="{waiting}"}}"#)
    };
    for version in VERSIONS {
        let lab = Lab::new(version, |config| config.max_num_seqs = 1);
        lab.run(vec![with_adapter("b", 1, 2), with_adapter("a", 2, 2)]).await;
        let page = lab.page();
        let mut expected = match version {
            VllmVersion::V0_33 => vec![series("b", "b"), series("", ""), series("a", "a")],
            VllmVersion::V0_8 | VllmVersion::V0_11 => {
                vec![series("b", "a"), series("", "a"), series("a", ""), series("", "")]
            }
        };
        expected.sort();
        assert_eq!(page.series("lora_requests_info"), expected, "{version:?}");
        for series in expected {
            assert!(page.get(&format!("lora_requests_info{series}")) > 1.7e9, "a time");
        }
    }
}

#[test]
fn a_step_without_output_moves_the_gauges_only() {
    let mut metrics = metrics(VllmVersion::V0_33);
    let stats =
        EngineStats { running: 2, waiting: 3, kv_usage: 0.25, prefix_cache_queries: 7, ..Default::default() };
    metrics.record_step(&StepRecord::default(), &stats, 1.0);
    check(
        &Page::of(&metrics),
        &[
            ("num_requests_running", 2.0),
            ("num_requests_waiting", 3.0),
            ("kv_cache_usage_perc", 0.25),
            ("prefix_cache_queries_total", 7.0),
            ("iteration_tokens_total_count", 0.0),
        ],
    );
    let first = FirstToken { n_prompt_tokens: 10, cached_tokens: 0, time: Duration::from_millis(50) };
    let record = StepRecord { n_generation_tokens: 1, first_tokens: vec![first], ..Default::default() };
    metrics.record_step(&record, &stats, 1.0);
    check(
        &Page::of(&metrics),
        &[
            ("iteration_tokens_total_count", 1.0),
            (r#"time_to_first_token_seconds_bucket{le="0.04"}"#, 0.0),
            (r#"time_to_first_token_seconds_bucket{le="0.06"}"#, 1.0),
        ],
    );
}

#[test]
fn the_samples_of_a_request_count_together_when_the_last_ends() {
    let group = SampleGroup::new(3);
    let ends: Vec<_> = [5, 9, 7].into_iter().map(|n| group.finish(n)).collect();
    assert_eq!(ends, [None, None, Some(SampleCounts { n: 3, max_generation_tokens: 9 })]);
    let mut metrics = metrics(VllmVersion::V0_33);
    let finished = ends.into_iter().map(|sampling| FinishedRequest {
        reason: FinishReason::Length,
        n_prompt_tokens: 10,
        cached_tokens: 0,
        n_generation_tokens: 5,
        max_tokens: 9,
        n_preemptions: 0,
        sampling,
        e2e: Duration::ZERO,
        queue: Duration::ZERO,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
        inference: Duration::ZERO,
    });
    let record = StepRecord { n_generation_tokens: 3, finished: finished.collect(), ..Default::default() };
    metrics.record_step(&record, &EngineStats::default(), 1.0);
    check(
        &Page::of(&metrics),
        &[
            ("request_params_n_sum", 3.0),
            ("request_params_n_count", 1.0),
            ("request_max_num_generation_tokens_sum", 9.0),
            ("request_generation_tokens_count", 3.0),
            (r#"request_success_total{finished_reason="length"}"#, 3.0),
        ],
    );
}

#[test]
fn sleep_and_refusals_have_their_series() {
    let mut metrics = metrics(VllmVersion::V0_33);
    for (state, expected) in [
        (SleepState::WeightsOffloaded, [0.0, 1.0, 0.0]),
        (SleepState::DiscardAll, [0.0, 0.0, 1.0]),
        (SleepState::Paused, [0.0, 0.0, 0.0]),
        (SleepState::Awake, [1.0, 0.0, 0.0]),
    ] {
        metrics.record_sleep_state(state);
        let page = Page::of(&metrics);
        let seen = ["awake", "weights_offloaded", "discard_all"]
            .map(|name| page.get(&format!(r#"engine_sleep_state{{sleep_state="{name}"}}"#)));
        assert_eq!(seen, expected, "{state:?}");
    }
    metrics.record_admission_rejection(AdmissionLimit::MaxNumQueuedTokens);
    check(
        &Page::of(&metrics),
        &[
            (r#"admission_rejections_total{reason="max_num_queued_reqs"}"#, 0.0),
            (r#"admission_rejections_total{reason="max_num_queued_tokens"}"#, 1.0),
        ],
    );
}
