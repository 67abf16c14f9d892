//! `mock-vllm latency`: prints what the latency flags of `serve` result in, as tables or JSON.

use super::UsageError;
use super::serve::latency::LatencyArgs;
use clap::Args;
use comfy_table::{CellAlignment, Table};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::time::Duration;
use vllm_engine::latency::calibration::{self, step};
use vllm_engine::latency::{LatencyModel, presets};

/// Numbers of new tokens of one prompt. For fewer than a full step's, the rest of a context of 2,400 tokens is cached.
const PREFILLS: [u32; 13] = [1, 16, 40, 80, 128, 256, 512, 1_024, 2_048, 2_165, 4_096, 8_192, 16_384];
const CACHED_CONTEXT: u32 = 2_400;
/// Pairs of a number of requests and the tokens of each.
const DECODES: [(u32, u32); 9] = [
    (1, 100),
    (1, 2_400),
    (1, 8_000),
    (2, 2_400),
    (4, 2_400),
    (8, 2_400),
    (16, 2_400),
    (32, 2_400),
    (64, 1_000),
];

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct LatencyCommand {
    /// Served model, for --gpu
    #[arg(value_name = "MODEL", default_value = "Qwen/Qwen2.5-7B-Instruct")]
    model: String,
    #[command(flatten)]
    latency: LatencyArgs,
    /// GPUs of one server
    #[arg(long, value_name = "N", default_value = "1")]
    tensor_parallel_size: NonZeroU32,
    /// Share of the GPU's memory for weights and KV blocks
    #[arg(long, value_name = "F", default_value_t = 0.92)]
    gpu_memory_utilization: f64,
    /// Tokens per KV block
    #[arg(long, value_name = "N", default_value = "16")]
    block_size: NonZeroU32,
    /// Print JSON, with times in milliseconds
    #[arg(long)]
    json: bool,
    /// List all GPUs and models of the presets instead
    #[arg(long)]
    list: bool,
    /// Describe the file that --latency-calibration takes, instead
    #[arg(long)]
    schema: bool,
}

const EXAMPLES: &str = "\
Try:
  mock-vllm latency
  mock-vllm latency --list
  mock-vllm latency --gpu h100 meta-llama/Llama-3.1-8B-Instruct
  mock-vllm latency --latency-preset a100-80/qwen2.5-14b --tensor-parallel-size 2
  mock-vllm latency --latency-calibration my-gpu.yaml";

/// One row of a table.
struct Row {
    what: String,
    context: u32,
    time: Duration,
}

/// Returns the text that the flags ask for.
///
/// # Errors
/// Fails if the flags contradict each other.
pub(super) fn run(args: &LatencyCommand) -> Result<String, UsageError> {
    if args.schema {
        return Ok(format!("{}\n", calibration::SCHEMA));
    }
    if args.list {
        return Ok(if args.json { pretty(&listed()) } else { list() });
    }
    let latency = &args.latency.choose(&args.model, args.tensor_parallel_size).map_err(UsageError)?;
    let n_blocks = latency.n_kv_blocks(args.gpu_memory_utilization, args.block_size.get());
    let (prefills, decodes) = (prefills(latency), decodes(latency));
    if args.json {
        return Ok(pretty(&as_json(latency, n_blocks, &prefills, &decodes)));
    }
    let mut out = String::new();
    let _infallible = write!(
        out,
        "Before the engine {:.1} ms, after a step {:.1} ms. KV blocks of {} tokens: {n_blocks} = {} tokens.\n\n",
        milliseconds(latency.c_pre),
        milliseconds(latency.c_post),
        args.block_size,
        u64::from(n_blocks) * u64::from(args.block_size.get()),
    );
    let _infallible = writeln!(out, "{}\n", steps(["new prompt tokens", "cached before"], &prefills));
    let _infallible = writeln!(out, "{}", steps(["requests decoding", "tokens of each"], &decodes));
    Ok(out)
}

fn prefills(latency: &LatencyModel) -> Vec<Row> {
    let row = |n_new: u32| {
        let context = if n_new < 2_048 { CACHED_CONTEXT.saturating_sub(n_new) } else { 0 };
        Row { what: n_new.to_string(), context, time: latency.step_time(&step([(context, n_new, true)])) }
    };
    PREFILLS.into_iter().map(row).collect()
}

fn decodes(latency: &LatencyModel) -> Vec<Row> {
    let row = |(batch, context): (u32, u32)| {
        let plan = step(std::iter::repeat_n((context, 1, false), batch as usize));
        Row { what: batch.to_string(), context, time: latency.step_time(&plan) }
    };
    DECODES.into_iter().map(row).collect()
}

fn steps([what, context]: [&str; 2], rows: &[Row]) -> Table {
    let rows =
        rows.iter().map(|row| [row.what.clone(), row.context.to_string(), tenths(milliseconds(row.time))]);
    table([what, context, "step [ms]"], rows)
}

/// Builds a table of figures, aligned right.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head).add_rows(rows);
    table.column_iter_mut().for_each(|column| {
        column.set_cell_alignment(CellAlignment::Right);
    });
    table
}

fn as_json(latency: &LatencyModel, n_blocks: u32, prefills: &[Row], decodes: &[Row]) -> Value {
    let rows = |what: &str, rows: &[Row]| -> Vec<Value> {
        let row = |row: &Row| {
            let number: u32 = row.what.parse().unwrap_or_default();
            json!({what: number, "context": row.context, "ms": milliseconds(row.time)})
        };
        rows.iter().map(row).collect()
    };
    json!({
        "before_ms": milliseconds(latency.c_pre),
        "after_ms": milliseconds(latency.c_post),
        "kv_blocks": n_blocks,
        "prefill": rows("new_tokens", prefills),
        "decode": rows("requests", decodes),
        "model": latency,
    })
}

fn list() -> String {
    let gpus = presets::GPUS.iter().map(|gpu| {
        let [gemm, attention] = [gpu.gemm_rate, gpu.attention_rate].map(|rate| format!("{:.0}", rate / 1e12));
        let [weights, kv] = [gpu.weight_bandwidth, gpu.kv_bandwidth].map(|rate| format!("{:.0}", rate / 1e9));
        [gpu.name.to_owned(), gemm, attention, weights, kv, tenths(gpu.memory_gib)]
    });
    let head = ["GPU", "TFLOP/s", "in attention", "weights GB/s", "KV GB/s", "GiB"];
    let gpus = table(head, gpus);
    let models = presets::MODELS.iter().map(|model| {
        let billions = (model.layer_params + model.head_params) / 1e9;
        let (weights, kv) = (tenths(model.weights_gib), format!("{:.0}", model.kv_bytes));
        [model.name.to_owned(), format!("{billions:.2} G"), weights, kv]
    });
    let models = table(["model", "parameters read", "weights GiB", "KV bytes/token"], models);
    let doc = presets::A10_DOC_NAME;
    format!(
        "{doc} is the tutorial's server: Qwen2.5-7B on an A10, not tuned.\n\
         Every GPU goes with every model, like h100/qwen3-8b. Rates are effective ones.\n\n{gpus}\n\n{models}\n"
    )
}

fn listed() -> Value {
    let gpus: Vec<Value> = presets::GPUS.iter().map(|gpu| json!({"name": gpu.name, "values": gpu})).collect();
    let models: Vec<Value> =
        presets::MODELS.iter().map(|model| json!({"name": model.name, "values": model})).collect();
    json!({"presets": [presets::A10_DOC_NAME], "gpus": gpus, "models": models})
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn tenths(number: f64) -> String {
    format!("{number:.1}")
}
