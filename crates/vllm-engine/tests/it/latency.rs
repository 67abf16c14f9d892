//! Compares the latency model with its published check values, within 2 %.

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use std::time::Duration;
use vllm_engine::latency::{LatencyModel, presets};
use vllm_engine::request::RequestId;
use vllm_engine::step::{Origin, ScheduledRequest, StepPlan};

fn a10_doc() -> LatencyModel {
    LatencyModel::preset("a10-doc").unwrap()
}

fn plan(entries: impl IntoIterator<Item = (u32, u32, bool)>) -> StepPlan {
    let scheduled =
        (0..).zip(entries).map(|(id, (n_computed_before, n_new_tokens, is_prefill))| ScheduledRequest {
            id: RequestId(id),
            n_new_tokens,
            n_computed_before,
            is_prefill,
            origin: Origin::Running,
        });
    StepPlan { scheduled: scheduled.collect(), preempted: Vec::new() }
}

fn prefill(n_computed_before: u32, n_new: u32) -> StepPlan {
    plan([(n_computed_before, n_new, true)])
}

fn decode(batch: usize, context: u32) -> StepPlan {
    plan(std::iter::repeat_n((context, 1, false), batch))
}

#[track_caller]
fn check(seen: Duration, expected_ms: f64) {
    let seen_ms = seen.as_secs_f64() * 1e3;
    assert!((seen_ms / expected_ms - 1.0).abs() < 0.02, "{seen_ms:.2} ms, expected {expected_ms} ms");
}

#[test]
fn prefill_of_an_idle_replica() {
    let expected = [
        (1, 44.7),
        (16, 45.7),
        (40, 48.5),
        (80, 55.2),
        (128, 65.3),
        (256, 96.3),
        (512, 163.0),
        (1_024, 299.0),
        (2_048, 556.0),
        (2_165, 588.0),
        (4_096, 1_141.0),
        (8_192, 2_458.0),
        (16_384, 5_669.0),
    ];
    for (n_new, expected_ms) in expected {
        // Below 2,048 new tokens, the rest of a context of 2,400 is cached already.
        let n_before = if n_new < 2_048 { 2_400 - n_new } else { 0 };
        check(a10_doc().step_time(&prefill(n_before, n_new)), expected_ms);
    }
}

#[test]
fn chunked_prefill_pays_for_two_steps() {
    let model = a10_doc();
    check(model.step_time(&prefill(0, 2_048)) + model.step_time(&prefill(2_048, 117)), 618.0);
}

#[test]
fn decode_of_a_batch() {
    for (context, expected_ms) in [(100, 38.4), (2_400, 38.7), (8_000, 39.4)] {
        check(a10_doc().step_time(&decode(1, context)), expected_ms);
    }
    for (batch, expected_ms) in [(2, 39.2), (4, 40.2), (8, 42.4), (16, 46.9), (32, 56.5)] {
        check(a10_doc().step_time(&decode(batch, 2_400)), expected_ms);
    }
    check(a10_doc().step_time(&decode(64, 1_000)), 65.7);
}

#[test]
fn a_leaner_host_reproduces_the_measured_server() {
    let mut model = a10_doc();
    model.host.per_step = Duration::from_micros(3_500);
    check(model.step_time(&decode(1, 1_300)), 33.0);
    check(model.step_time(&decode(16, 1_300)), 39.2);
}

#[test]
fn time_to_first_token_as_a_client_sees_it() {
    let model = a10_doc();
    let around = model.c_pre + model.c_post;
    check(around + model.step_time(&prefill(2_354, 46)), 119.0);
    let cold = model.step_time(&prefill(0, 2_048)) + model.step_time(&prefill(2_048, 128));
    check(around + cold, 690.0);
}

/// Step times of the tuned host in ms: a cold prompt of 2,165 tokens, 80 new tokens on 2,400, decode at batch 1 and 32.
/// The table has mostly whole milliseconds, so that half of one is allowed too.
#[test]
fn other_gpus_and_models() {
    let expected = [
        ("a10/qwen2.5-7b", [579.0, 47.0, 32.1, 47.0]),
        ("l4/qwen2.5-7b", [720.0, 75.0, 61.0, 84.0]),
        ("l20/qwen2.5-7b", [338.0, 33.0, 23.0, 34.0]),
        ("l40s/qwen2.5-7b", [139.0, 28.0, 23.0, 32.0]),
        ("a100-80/qwen2.5-7b", [146.0, 18.0, 11.8, 18.0]),
        ("h100/qwen2.5-7b", [52.0, 13.0, 7.9, 12.7]),
        ("h20/qwen2.5-7b", [240.0, 17.0, 7.0, 13.4]),
        ("a10/qwen2.5-0.5b", [42.0, 10.0, 4.7, 10.0]),
        ("l4/qwen2.5-1.5b", [158.0, 22.0, 15.5, 28.0]),
        ("a100-80/qwen2.5-14b", [293.0, 30.0, 21.0, 36.0]),
        ("h100/qwen3-8b", [56.0, 13.0, 8.3, 16.0]),
        ("a10/llama-3.1-8b", [626.0, 50.0, 34.3, 61.0]),
    ];
    for (name, expected_ms) in expected {
        let model = LatencyModel::preset(name).unwrap();
        let steps = [prefill(0, 2_165), prefill(2_400, 80), decode(1, 2_400), decode(32, 2_400)];
        for (step, expected_ms) in steps.iter().zip(expected_ms) {
            let seen_ms = model.step_time(step).as_secs_f64() * 1e3;
            let tolerance = 0.02 * expected_ms + 0.5;
            assert!(
                (seen_ms - expected_ms).abs() < tolerance,
                "{name}: {seen_ms:.2} ms, expected {expected_ms} ms"
            );
        }
    }
}

#[test]
fn kv_blocks_by_memory() {
    assert_eq!(a10_doc().n_kv_blocks(0.95, 16), 6_226);
    assert_eq!(a10_doc().n_kv_blocks(0.90, 16), 4_926);
    assert_eq!(a10_doc().n_kv_blocks(0.5, 16), 0, "the weights alone take more");
    // Tokens that fit at 0.9, to the last digit of the table of models.
    let expected = [
        ("a10/qwen2.5-7b", 80e3, 2e3),
        ("l40s/qwen2.5-7b", 455e3, 5e3),
        ("a100-80/qwen2.5-14b", 231e3, 3e3),
        ("h100/qwen3-8b", 397e3, 4e3),
    ];
    for (name, expected, tolerance) in expected {
        let seen = f64::from(LatencyModel::preset(name).unwrap().n_kv_blocks(0.9, 16)) * 16.0;
        assert!((seen - expected).abs() <= tolerance, "{name}: {seen} tokens, expected {expected}");
    }
    assert_eq!(LatencyModel::preset("a10/qwen2.5-14b").unwrap().n_kv_blocks(0.9, 16), 0, "does not fit");
}

#[test]
fn every_row_of_the_tables_is_a_preset() {
    for gpu in presets::GPUS {
        for model in presets::MODELS {
            assert!(LatencyModel::preset(&format!("{}/{}", gpu.name, model.name)).is_some());
        }
    }
    assert_eq!(LatencyModel::preset("a10/gpt-5"), None);
    assert_eq!(LatencyModel::preset("b200"), None);
}

#[test]
fn an_empty_step_takes_no_time() {
    assert_eq!(a10_doc().step_time(&StepPlan::default()), Duration::ZERO);
}

#[test]
fn jitter_scales_a_step_and_repeats_by_seed() {
    let (model, step) = (a10_doc(), decode(8, 500));
    let draw = |seed, sigma| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        std::iter::repeat_with(|| model.jittered_step_time(&step, sigma, &mut rng))
            .take(2_000)
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(1, 0.03), draw(1, 0.03));
    assert_ne!(draw(1, 0.03), draw(2, 0.03));
    let plain = model.step_time(&step).as_secs_f64();
    let relative: Vec<f64> = draw(1, 0.03).iter().map(|time| time.as_secs_f64() / plain).collect();
    let n = 2_000.0;
    let mean = relative.iter().sum::<f64>() / n;
    let variance = relative.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    assert!((mean - 1.0).abs() < 0.003, "mean {mean}");
    assert!((variance.sqrt() - 0.03).abs() < 0.003, "sigma {}", variance.sqrt());
    assert!(draw(1, 0.0).iter().all(|time| *time == model.step_time(&step)), "no jitter, no change");
    assert!(
        draw(1, 5.0).iter().all(|time| *time >= model.step_time(&step).mul_f64(0.499)),
        "never below half"
    );
}
