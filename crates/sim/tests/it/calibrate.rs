//! A fit finds the constants that times were made with, from any start, and keeps constants that the times do not
//! determine.

use std::num::NonZeroU32;
use std::time::Duration;

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Normal};
use sim::calibrate::{
    CalibrateError, Calibrated, FitOptions, Fitted, Measurement, Prompt, Start, Step, calibrate,
};
use vllm_engine::latency::LatencyModel;
use vllm_engine::latency::calibration::{Calibration, step};

const DECODES: [(u32, u32); 12] = [
    (1, 100),
    (1, 2_400),
    (1, 8_000),
    (4, 2_400),
    (16, 2_400),
    (16, 8_000),
    (32, 100),
    (32, 2_400),
    (64, 100),
    (64, 1_000),
    (128, 100),
    (128, 1_000),
];
const PREFILLS: [(u32, u32); 12] = [
    (1, 2_399),
    (16, 2_384),
    (80, 2_320),
    (128, 0),
    (256, 0),
    (512, 0),
    (1_024, 0),
    (2_048, 0),
    (4_096, 0),
    (8_192, 0),
    (16_384, 0),
    (2_048, 14_000),
];

fn preset(name: &str) -> LatencyModel {
    LatencyModel::preset(name).unwrap()
}

fn options(keep: &[&str]) -> FitOptions {
    let keep = keep.iter().map(|name| (*name).to_owned()).collect();
    FitOptions { keep, max_num_batched_tokens: NonZeroU32::new(2_048).unwrap() }
}

fn decode((decode_requests, decode_context): (u32, u32), latency: &LatencyModel) -> Measurement {
    let plan = step((0..decode_requests).map(|_| (decode_context, 1, false)));
    let time = latency.step_time(&plan);
    Measurement::Step(Step { decode_requests, decode_context, prefill_tokens: 0, prefill_context: 0, time })
}

fn prefill((prefill_tokens, prefill_context): (u32, u32), latency: &LatencyModel) -> Measurement {
    let time = latency.step_time(&step([(prefill_context, prefill_tokens, true)]));
    Measurement::Step(Step { decode_requests: 0, decode_context: 0, prefill_tokens, prefill_context, time })
}

fn steps(latency: &LatencyModel) -> Vec<Measurement> {
    let decodes = DECODES.into_iter().map(|entry| decode(entry, latency));
    decodes.chain(PREFILLS.into_iter().map(|entry| prefill(entry, latency))).collect()
}

/// Repeats each sample `n_times`, with random relative errors of standard deviation `sigma`.
fn noisy(samples: &[Measurement], n_times: usize, sigma: f64) -> Vec<Measurement> {
    let (mut rng, normal) = (ChaCha8Rng::seed_from_u64(1), Normal::new(1.0, sigma).unwrap());
    let mut noisy = |time: Duration| time.mul_f64(normal.sample(&mut rng).max(0.1));
    let repeated = samples.iter().flat_map(|sample| std::iter::repeat_n(*sample, n_times));
    repeated
        .map(|sample| match sample {
            Measurement::Step(step) => Measurement::Step(Step { time: noisy(step.time), ..step }),
            Measurement::FirstToken(prompt, time) => Measurement::FirstToken(prompt, noisy(time)),
            Measurement::Decode { prompt_tokens, output_tokens, time } => {
                Measurement::Decode { prompt_tokens, output_tokens, time: noisy(time) }
            }
        })
        .collect()
}

fn constant(calibrated: &Calibrated, name: &str) -> Fitted {
    *calibrated.constants.iter().find(|constant| constant.name == name).unwrap()
}

/// Returns the mean absolute errors before and after the fit.
fn errors(calibrated: &Calibrated) -> (f64, f64) {
    let n_rows = calibrated.rows.len() as f64;
    let sums = calibrated.rows.iter().map(|row| row.misses());
    let sums = sums.fold((0.0, 0.0), |sums, (before, after)| (sums.0 + before.abs(), sums.1 + after.abs()));
    (sums.0 / n_rows, sums.1 / n_rows)
}

/// Returns the model that an engine reads from the file, with an unrelated card as its base.
fn loaded(file: &str) -> LatencyModel {
    let calibration: Calibration = serde_saphyr::from_str(file).unwrap();
    calibration.apply(preset("h20/qwen2.5-14b")).unwrap()
}

#[test]
fn steps_of_a_known_card_give_its_constants_back_from_any_other() {
    if test_skips::skips_slow() {
        return;
    }
    let samples = noisy(&steps(&preset("a10-doc")), 20, 0.01);
    for start in ["h100/qwen2.5-7b", "l4/qwen2.5-7b", "l40s/qwen2.5-7b"] {
        let calibrated = calibrate(&Start::preset(start).unwrap(), &options(&[]), &samples).unwrap();
        let (before, after) = errors(&calibrated);
        assert!(before > 0.15 && after < 0.015, "{start}: {before:.3} before, {after:.3} after");
        // There is one per cent of noise, and each of 24 steps is repeated twenty times. Most steps show only the sum
        // of the weights' time and the time per step.
        for (name, expected, tolerance) in [
            ("gpu.gemm_tflops", 52.0, 0.05),
            ("gpu.attention_tflops", 35.0, 0.05),
            ("gpu.weight_gb_per_s", 485.0, 0.05),
            ("gpu.kv_gb_per_s", 450.0, 0.1),
            ("host.step_ms", 9.0, 0.2),
            ("host.row_ms", 0.2, 0.2),
            ("host.prefill_ms", 6.0, 0.2),
        ] {
            let Fitted { after, error, .. } = constant(&calibrated, name);
            assert!((after / expected - 1.0).abs() < tolerance, "{start}: {name} is {after}");
            assert!(error.unwrap() < tolerance, "{start}: {name} ± {error:?}");
        }
        assert_eq!(constant(&calibrated, "host.before_ms").error, Err("no row depends on it"));
    }
}

#[test]
fn an_engine_loads_the_file_as_the_model_that_was_fitted() {
    let samples = noisy(&steps(&preset("a10-doc")), 1, 0.02);
    let calibrated = calibrate(&Start::preset("l40s/qwen2.5-7b").unwrap(), &options(&[]), &samples).unwrap();
    let latency = loaded(&calibrated.file);
    for (row, again) in calibrated.rows.iter().zip(steps(&latency)) {
        let Measurement::Step(again) = again else { panic!("a step") };
        let ratio = again.time.as_secs_f64() / row.after.as_secs_f64();
        assert!((ratio - 1.0).abs() < 1e-4, "{}: {ratio}", row.what);
    }
    assert_eq!(latency.gpu.memory_gib, preset("l40s/qwen2.5-7b").gpu.memory_gib, "the rest is the start's");
    assert_ne!(latency.gpu.gemm_rate, preset("l40s/qwen2.5-7b").gpu.gemm_rate);
}

#[test]
fn what_the_rows_do_not_tell_is_kept() {
    let truth = preset("a10-doc");
    let few = DECODES.into_iter().filter(|(batch, _)| *batch <= 4).map(|entry| decode(entry, &truth));
    let few: Vec<Measurement> = noisy(&few.collect::<Vec<_>>(), 4, 0.02);
    let calibrated = calibrate(&Start::preset("l40s/qwen2.5-7b").unwrap(), &options(&[]), &few).unwrap();
    for name in ["gpu.attention_tflops", "host.prefill_ms", "gpu.gemm_tflops"] {
        let Fitted { before, after, error, .. } = constant(&calibrated, name);
        assert!(
            error.is_err() && (after / before - 1.0).abs() < 1e-9,
            "{name}: {before}, {after}, {error:?}"
        );
        let key = name.split_once('.').unwrap().1;
        assert!(!calibrated.file.contains(key), "{}", calibrated.file);
    }
    assert!(constant(&calibrated, "gpu.weight_gb_per_s").error.is_ok());
    assert!(errors(&calibrated).1 < 0.025);

    let kept = calibrate(&Start::preset("a10-doc").unwrap(), &options(&["host.step_ms"]), &few).unwrap();
    assert_eq!(constant(&kept, "host.step_ms").error, Err("--keep"));
}

#[test]
fn requests_tell_what_passes_around_the_engine() {
    let truth = preset("a10-doc");
    let first_token = |tokens: u32, cached_tokens: u32| {
        let mut time = truth.c_pre + truth.c_post;
        let mut n_computed = cached_tokens;
        while n_computed < tokens {
            let n_new = (tokens - n_computed).min(2_048);
            time += truth.step_time(&step([(n_computed, n_new, true)]));
            n_computed += n_new;
        }
        Measurement::FirstToken(Prompt { tokens, cached_tokens }, time)
    };
    let decode = |prompt_tokens: u32, output_tokens: u32| {
        let contexts = prompt_tokens..prompt_tokens + output_tokens - 1;
        let time = contexts.map(|context| truth.step_time(&step([(context, 1, false)]))).sum();
        Measurement::Decode { prompt_tokens, output_tokens, time }
    };
    let prompts = [(20, 0), (500, 0), (2_149, 0), (2_230, 2_176), (6_000, 0), (12_000, 0), (16_000, 0)];
    let samples =
        prompts.into_iter().flat_map(|(tokens, cached)| [first_token(tokens, cached), decode(tokens, 45)]);
    let samples = noisy(&samples.collect::<Vec<_>>(), 6, 0.02);
    let start = Start::on_gpu("l4", "Qwen/Qwen2.5-7B-Instruct").unwrap();
    assert_eq!(start.name(), "l4/qwen2.5-7b");
    let calibrated = calibrate(&start, &options(&[]), &samples).unwrap();
    let (before, after) = errors(&calibrated);
    assert!(before > 0.2 && after < 0.025, "{before} {after}");
    let gemm = constant(&calibrated, "gpu.gemm_tflops").after;
    assert!((gemm / 52.0 - 1.0).abs() < 0.05, "{gemm}");
    let around = loaded(&calibrated.file);
    let around = (around.c_pre + around.c_post + around.host.per_prefill).as_secs_f64();
    assert!((around / 0.075 - 1.0).abs() < 0.15, "{around} s, 60 + 9 + 6 ms were put in");
}

#[test]
fn times_that_break_the_model_stay_off() {
    let samples = steps(&preset("a10-doc")).into_iter().enumerate().map(|(idx, sample)| match sample {
        // Every other step takes five times as long, which no constants can explain.
        Measurement::Step(step) if idx % 2 == 0 => Measurement::Step(Step { time: step.time * 5, ..step }),
        sample => sample,
    });
    let samples: Vec<Measurement> = samples.collect();
    let calibrated = calibrate(&Start::preset("a10-doc").unwrap(), &options(&[]), &samples).unwrap();
    assert!(errors(&calibrated).1 > 0.3, "{:?}", errors(&calibrated));
}

#[test]
fn too_few_rows_and_unknown_constants_are_refused() {
    let truth = preset("a10-doc");
    let start = Start::preset("a10-doc").unwrap();
    let two = [prefill((2_048, 0), &truth), decode((32, 2_400), &truth)];
    let error = calibrate(&start, &options(&[]), &two).unwrap_err();
    assert!(matches!(error, CalibrateError::TooFew(_)));
    let text = error.to_string();
    assert!(
        text.starts_with(
            "measured times: 2, fewer than the constants that they depend on (gpu.gemm_tflops, "
        ) && text.ends_with(" are needed"),
        "{text}"
    );
    let rest = ["gpu.attention_tflops", "gpu.kv_gb_per_s", "host.step_ms", "host.row_ms", "host.prefill_ms"];
    let calibrated = calibrate(&start, &options(&rest), &two).unwrap();
    assert!(constant(&calibrated, "gpu.gemm_tflops").error.is_ok());
    let error = calibrate(&start, &options(&["gpu.speed"]), &two).unwrap_err().to_string();
    assert!(error.starts_with("no constant is called gpu.speed; there are gpu.gemm_tflops, "), "{error}");
    let error = Start::preset("b200").unwrap_err().to_string();
    assert!(error.starts_with("no such preset: b200; there are a10-doc"), "{error}");
    let error = Start::on_gpu("a10", "mistral").unwrap_err().to_string();
    assert!(error.starts_with("there are no figures for the model mistral, only for "), "{error}");
}
