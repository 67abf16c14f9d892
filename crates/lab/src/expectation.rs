//! Times of a Qwen2.5-7B on an NVIDIA A10: the latency model of the `a10-doc` preset, written a second time.
//! It must not share code with the mock whose timing it judges.
//!
//! One engine step costs `(T_w^p + T_f^p)^(1/p) + T_attn + T_kv + host`: reading the weights, multiplying them, attention,
//! reading the KV cache, and the host's work per step, per row and per prefill.

use std::time::Duration;

/// Non-embedding parameters of Qwen2.5-7B that every token multiplies (model config).
const PARAMETERS: f64 = 6.525e9;
/// Parameters of the output head, multiplied once per sampled row (model config).
const LM_HEAD: f64 = 0.545e9;
/// Bytes of weights read per step: bf16, input embedding not read (`2 * (PARAMETERS + LM_HEAD)`).
const WEIGHT_BYTES: f64 = 14.14e9;
/// Effective weight bandwidth in bytes/s: 81 % of the A10's 600 GB/s (TensorRT-LLM decode, measured).
const BANDWIDTH: f64 = 485e9;
/// Effective GEMM rate in FLOP/s (fit of the tutorial's table; an A10G measures 47e12).
const GEMM_RATE: f64 = 52e12;
/// Effective attention rate in FLOP/s (0.65 of the GEMM rate, the ratio of A100 and L40S).
const ATTENTION_RATE: f64 = 35e12;
/// Attention FLOPs per token pair: `4 * 28 layers * 28 heads * 128`.
const ATTENTION_FLOPS: f64 = 401_408.0;
/// Bytes of KV cache per token: `2 * 28 layers * 4 KV heads * 128 * 2`.
const KV_BYTES: f64 = 57_344.0;
/// Effective KV read bandwidth in bytes/s (0.75 of peak).
const KV_BANDWIDTH: f64 = 450e9;
/// Exponent that joins weight time and FLOP time (fits the A40 layer measurements within 8 %).
const JOIN: f64 = 1.7;
/// Host time per step in seconds (the tutorial's generation rate).
const HOST_STEP: f64 = 9.0e-3;
/// Host time per row in seconds (slope over batch 1..16).
const HOST_ROW: f64 = 0.2e-3;
/// Host time of a step that prefills, in seconds (launches without CUDA graphs).
const HOST_PREFILL: f64 = 6.0e-3;
/// Time of client, gateway and API before the first step, in seconds (fit: 69 ms together with [`AFTER`]).
const BEFORE: f64 = 60.0e-3;
/// Time from a step's end to the client, in seconds.
const AFTER: f64 = 9.0e-3;
/// Tokens that one step may schedule on a GPU of the A10's size (vLLM V1 default).
const STEP_BUDGET: u32 = 2048;

/// Returns the time to first token of a single request with `prompt` tokens, of which the pod has `cached` in its KV
/// cache.
pub fn idle_ttft(prompt: u32, cached: u32) -> Duration {
    let mut seconds = BEFORE + AFTER;
    let mut present = cached;
    while present < prompt {
        let chunk = (prompt - present).min(STEP_BUDGET);
        seconds += prefill_step(chunk, present);
        present += chunk;
    }
    Duration::from_secs_f64(seconds)
}

/// Returns the seconds of a step that prefills `new` tokens of one request after `present` tokens.
fn prefill_step(new: u32, present: u32) -> f64 {
    let (new, present) = (f64::from(new), f64::from(present));
    let attention = ATTENTION_FLOPS * (new * present + new * new / 2.0) / ATTENTION_RATE;
    step(new, new + present) + attention + HOST_PREFILL
}

/// Returns the seconds of a step with one row that schedules `tokens` tokens and reads a context of `context` tokens.
fn step(tokens: f64, context: f64) -> f64 {
    let weights = WEIGHT_BYTES / BANDWIDTH;
    let flops = (2.0 * PARAMETERS * tokens + 2.0 * LM_HEAD) / GEMM_RATE;
    let gemm = (weights.powf(JOIN) + flops.powf(JOIN)).powf(1.0 / JOIN);
    gemm + context * KV_BYTES / KV_BANDWIDTH + HOST_STEP + HOST_ROW
}

#[cfg(test)]
mod tests {
    use super::{idle_ttft, prefill_step, step};

    fn assert_near(seen: f64, expected: f64, tolerance: f64) {
        assert!((seen / expected - 1.0).abs() <= tolerance, "{seen} is not within {tolerance} of {expected}");
    }

    #[test]
    fn prefill_steps_match_the_published_check_values() {
        // Milliseconds by new tokens; below 2,048 new tokens, cached ones fill the context up to 2,400.
        let published = [
            (1, 44.7),
            (16, 45.7),
            (40, 48.5),
            (80, 55.2),
            (128, 65.3),
            (256, 96.3),
            (512, 163.0),
            (1024, 299.0),
            (2048, 556.0),
            (2165, 588.0),
            (4096, 1141.0),
            (8192, 2458.0),
            (16384, 5669.0),
        ];
        for (new, expected) in published {
            let present = if new < 2048 { 2400 - new } else { 0 };
            assert_near(prefill_step(new, present) * 1e3, expected, 0.01);
        }
    }

    #[test]
    fn decode_steps_match_the_published_check_values() {
        for (context, expected) in [(100.0, 38.4), (2400.0, 38.7), (8000.0, 39.4)] {
            assert_near(step(1.0, context) * 1e3, expected, 0.01);
        }
    }

    #[test]
    fn client_ttft_matches_the_published_turns() {
        assert_near(idle_ttft(2176, 0).as_secs_f64(), 0.690, 0.01);
        assert_near(idle_ttft(2400, 2354).as_secs_f64(), 0.119, 0.01);
    }

    #[test]
    fn a_prompt_over_the_budget_takes_two_steps() {
        assert_near((idle_ttft(2165, 0).as_secs_f64() - 0.069) * 1e3, 618.0, 0.01);
    }
}
