//! `e2e calibrate`: fits the latency model's constants to a CSV measured on a real GPU, and reports the model's error.

pub mod requests;
pub mod csv;

use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lab::ui::Ui;
use load::ending::End;
use load::output;
use load::stats::{mean, millis};
use load::table::new_table;
use serde_json::{Value, json};
use sim::calibrate::{Calibrated, FitOptions, FitRow, Fitted, Measurement, Start, calibrate, constant_names};

use self::csv::MeasuredRows;
use self::requests::{Alone, Caching};

const AFTER_HELP: &str = "\
FILE is a CSV of steps or of requests; its header says which.

Steps of an engine, as a profiler sees them: the number of requests that decode, the tokens before each of them, the new
tokens of one prompt, the tokens of that prompt that are already in the KV cache, and milliseconds:

  decode_requests,decode_context,prefill_tokens,prefill_context,ms
  1,2400,0,0,38.7
  32,2400,0,0,56.5
  0,0,2048,0,556

Requests, as `e2e multi-round-qa` and the original tool record them. The time to the first token is that of the prompt's
steps and of the way to and from the engine; each further token is one step. Only times during which no other request
was running are used. You may add a column cached_tokens; without it, a user's earlier turns count as cached.

Examples:
  e2e calibrate steps.csv --gpu l40s --output cal.yaml
  mock-vllm serve Qwen/Qwen2.5-7B-Instruct --latency-calibration cal.yaml

  e2e multi-round-qa --num-users 1 --num-rounds 15 --qps 0.5 --time 120 ... --output requests.csv
  e2e calibrate requests.csv --latency-preset a10/qwen2.5-7b --keep gpu.kv_gb_per_s > cal.yaml

Exit codes:
  0    the fitted model is within --max-error of what was measured
  1    it is not; the file is written anyway
  2    wrong usage, or a file that cannot be read";

#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CalibrateArgs {
    /// CSV of measured steps or requests
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Preset to start from, and to take the constants from that FILE does not determine: `a10-doc`, or `<gpu>/<model>`
    /// from `mock-vllm latency --list`
    #[arg(long, value_name = "NAME", default_value = "a10-doc")]
    latency_preset: String,
    /// Preset of this GPU with the figures of --model, in place of --latency-preset
    #[arg(long, value_name = "NAME", conflicts_with = "latency_preset")]
    gpu: Option<String>,
    /// Model that was measured; for --gpu
    #[arg(long, value_name = "MODEL", default_value = "Qwen/Qwen2.5-7B-Instruct", requires = "gpu")]
    model: String,
    /// Do not fit this constant, for example gpu.kv_gb_per_s; repeat for several
    #[arg(long, value_name = "CONSTANT", value_parser = constant_names())]
    keep: Vec<String>,
    /// For requests: most prompt tokens that the server takes in one step
    #[arg(long, value_name = "N", default_value = "2048")]
    max_num_batched_tokens: NonZeroU32,
    /// For requests: tokens that all prompts have in common at the start, cached from the second request on
    #[arg(long, value_name = "N", default_value_t = 0)]
    shared_prefix: u32,
    /// For requests: the server had no prefix cache
    #[arg(long, conflicts_with = "shared_prefix")]
    no_prefix_caching: bool,
    /// Largest mean absolute error of the fitted model, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0, value_parser = percent)]
    max_error: f64,
    /// File for the fitted constants, for `mock-vllm --latency-calibration` [default: standard output, with the tables
    /// on standard error]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON in place of tables and constants
    #[arg(long)]
    json: bool,
}

/// Relative errors of the model over all rows.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Errors {
    mean_absolute: f64,
    /// Index and relative error of the row with the largest error.
    worst: (usize, f64),
}

/// Everything that the command reports.
struct Outcome {
    start: String,
    lines: Vec<usize>,
    calibrated: Calibrated,
    before: Errors,
    after: Errors,
    n_left_out: usize,
}

pub fn run(args: &CalibrateArgs) -> Result<End> {
    let outcome = args.fit()?;
    outcome.write(args)?;
    let text = outcome.text(args);
    match (args.json, &args.output) {
        (true, _) => output::print(&format!("{}\n", serde_json::to_string_pretty(&outcome.document(args))?)),
        (false, Some(_)) => output::print(&text),
        (false, None) => {
            Ui::new(false).note(&text);
            output::print(&outcome.calibrated.file);
        }
    }
    Ok(outcome.end(args))
}

impl CalibrateArgs {
    fn fit(&self) -> Result<Outcome> {
        let start = self.start()?;
        let file = self.file.display().to_string();
        let text = std::fs::read_to_string(&self.file).with_context(|| format!("read {file}"))?;
        let Alone { samples, n_left_out } = match csv::parse(&file, &text)? {
            MeasuredRows::Steps(steps) => {
                let samples = steps.into_iter().map(|(line, step)| (line, Measurement::Step(step)));
                Alone { samples: samples.collect(), n_left_out: 0 }
            }
            MeasuredRows::Requests(requests) => requests::samples(&requests, self.caching()),
        };
        ensure!(
            !samples.is_empty(),
            "{file}: no request was ever alone, and what others take from it is not in the model; measure with one user"
        );
        let (lines, samples): (Vec<usize>, Vec<Measurement>) = samples.into_iter().unzip();
        let options =
            FitOptions { keep: self.keep.clone(), max_num_batched_tokens: self.max_num_batched_tokens };
        let calibrated = calibrate(&start, &options, &samples)
            .with_context(|| format!("fit {file}: measure more, or give constants up with --keep"))?;
        let misses = || calibrated.rows.iter().map(FitRow::misses);
        let before = Errors::of(misses().map(|(before, _)| before));
        let after = Errors::of(misses().map(|(_, after)| after));
        Ok(Outcome { start: start.name().to_owned(), lines, calibrated, before, after, n_left_out })
    }

    fn start(&self) -> Result<Start> {
        match &self.gpu {
            Some(gpu) => Start::on_gpu(gpu, &self.model).with_context(|| format!("--gpu {gpu}")),
            None => Start::preset(&self.latency_preset).context("--latency-preset"),
        }
    }

    fn caching(&self) -> Caching {
        match self.no_prefix_caching {
            true => Caching::Off,
            false => Caching::OfUsers { shared_tokens: self.shared_prefix },
        }
    }
}

impl Errors {
    fn of(misses: impl Iterator<Item = f64>) -> Self {
        let misses: Vec<f64> = misses.collect();
        let absolute: Vec<f64> = misses.iter().map(|miss| miss.abs()).collect();
        let worst = (0..).zip(misses).max_by(|(_, a), (_, b)| a.abs().total_cmp(&b.abs()));
        Self { mean_absolute: mean(&absolute).unwrap_or(0.0), worst: worst.unwrap_or_default() }
    }
}

impl Outcome {
    /// Writes the constants to their file, if one is asked for.
    fn write(&self, args: &CalibrateArgs) -> Result<()> {
        let Some(path) = &args.output else { return Ok(()) };
        std::fs::write(path, &self.calibrated.file).with_context(|| format!("write {}", path.display()))
    }

    fn end(&self, args: &CalibrateArgs) -> End {
        match self.after.mean_absolute * 100.0 <= args.max_error {
            true => End::Good,
            false => End::Failed,
        }
    }

    fn text(&self, args: &CalibrateArgs) -> String {
        let Self { start, lines, calibrated, before, after, n_left_out } = self;
        let mut rows = new_table(&["line", "what", "measured", start, "off", "fitted", "off"], 2);
        for (line, row) in lines.iter().zip(&calibrated.rows) {
            let (miss_before, miss_after) = row.misses();
            let [measured, before, after] =
                [row.measured, row.before, row.after].map(|time| format!("{:.1} ms", millis(time)));
            let [miss_before, miss_after] = [miss_before, miss_after].map(signed);
            rows.add_row([
                line.to_string(),
                row.what.clone(),
                measured,
                before,
                miss_before,
                after,
                miss_after,
            ]);
        }
        let mut constants = new_table(&["constant", start, "fitted", ""], 1);
        for Fitted { name, before, after, error } in &calibrated.constants {
            let (after, remark) = match error {
                Ok(error) => (digits(*after), format!("± {:.1} %", error * 100.0)),
                Err(reason) => (String::new(), format!("kept: {reason}")),
            };
            constants.add_row([(*name).to_owned(), digits(*before), after, remark]);
        }
        let mut text = format!("{rows}\n\n{constants}\n\n");
        for (name, Errors { mean_absolute, worst: (worst_idx, miss) }) in
            [(start.as_str(), before), ("fitted", after)]
        {
            text += &format!(
                "{name}: off by {:.1} % on average; worst is line {}, by {}\n",
                mean_absolute * 100.0,
                lines[*worst_idx],
                signed(*miss)
            );
        }
        if *n_left_out > 0 {
            text += &format!("left out: {n_left_out} times during which other requests were under way\n");
        }
        if self.end(args) == End::Failed {
            text += &format!("FAILED the model is off by more than --max-error {} %\n", args.max_error);
        }
        text
    }

    fn document(&self, args: &CalibrateArgs) -> Value {
        let Self { start, lines, calibrated, before, after, n_left_out } = self;
        let rows: Vec<Value> = lines
            .iter()
            .zip(&calibrated.rows)
            .map(|(line, row)| {
                let (miss_before, miss_after) = row.misses();
                json!({
                    "line": line,
                    "what": row.what,
                    "measured_ms": millis(row.measured),
                    "before": {"modelled_ms": millis(row.before), "residual": miss_before},
                    "after": {"modelled_ms": millis(row.after), "residual": miss_after},
                })
            })
            .collect();
        let constants: Vec<Value> = calibrated
            .constants
            .iter()
            .map(|Fitted { name, before, after, error }| match error {
                Ok(error) => json!({"name": name, "before": before, "after": after, "standard_error": error}),
                Err(reason) => json!({"name": name, "before": before, "after": after, "kept": reason}),
            })
            .collect();
        let errors = |Errors { mean_absolute, worst: (worst_idx, miss) }: &Errors| {
            let worst = json!({"line": lines[*worst_idx], "residual": miss});
            json!({"mean_absolute_percentage_error": mean_absolute * 100.0, "worst": worst})
        };
        json!({
            "start": start,
            "max_error_percent": args.max_error,
            "left_out": n_left_out,
            "before": errors(before),
            "after": errors(after),
            "constants": constants,
            "rows": rows,
            "calibration": calibrated.file,
        })
    }
}

fn signed(share: f64) -> String {
    format!("{:+.1} %", share * 100.0)
}

/// Formats with enough digits to tell small values apart.
fn digits(value: f64) -> String {
    if value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if percent >= 0.0 && percent.is_finite() => Ok(percent),
        Ok(_) | Err(_) => Err("expected a number of 0 or more, in percent".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;
    use serde_json::Value;

    use super::{CalibrateArgs, csv};
    use load::ending::End;
    use load::multi_round_qa::records;

    /// Steps of an A10 by the published table, in milliseconds.
    const A10: &str = "1,100,0,0,38.4\n1,2400,0,0,38.7\n1,8000,0,0,39.4\n16,2400,0,0,46.9\n32,2400,0,0,56.5\n64,1000,0,0,65.7\n\
        0,0,16,2384,45.7\n0,0,128,2272,65.3\n0,0,512,1888,163\n0,0,2048,0,556\n0,0,8192,0,2458\n0,0,16384,0,5669\n";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CalibrateArgs,
    }

    fn args(path: &Path, flags: &str) -> CalibrateArgs {
        let words = ["calibrate", path.to_str().unwrap()].into_iter().chain(flags.split_whitespace());
        Line::try_parse_from(words).unwrap().args
    }

    /// Fits a file with this text. Returns how the command ends, its JSON and its tables.
    fn fitted(text: &str, flags: &str) -> (End, Value, String) {
        let dir = tempfile::tempdir().unwrap();
        let (path, output) = (dir.path().join("a.csv"), dir.path().join("cal.yaml"));
        std::fs::write(&path, text).unwrap();
        let args = args(&path, &format!("{flags} --json --output {}", output.display()));
        let outcome = args.fit().unwrap();
        outcome.write(&args).unwrap();
        assert_eq!(std::fs::read_to_string(&output).unwrap(), outcome.calibrated.file);
        (outcome.end(&args), outcome.document(&args), outcome.text(&args))
    }

    fn error(text: &str, flags: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let error = args(file.path(), flags).fit().err().expect("it is refused");
        format!("{error:#}").replace(file.path().to_str().unwrap(), "a.csv")
    }

    #[test]
    fn steps_of_one_card_correct_the_preset_of_another() {
        let (end, json, text) = fitted(&format!("{}\n{A10}", csv::STEPS), "--gpu l40s");
        assert_eq!(end, End::Good, "{text}");
        let error = |when: &str| json[when]["mean_absolute_percentage_error"].as_f64().unwrap();
        assert!(error("before") > 30.0 && error("after") < 1.0, "{text}");
        assert!(text.contains("l40s/qwen2.5-7b: off by ") && text.contains("fitted: off by "), "{text}");
        assert!(text.contains("kept: no row depends on it"), "{text}");
        assert_eq!(json["rows"][11]["line"], 13);
        assert!(
            json["calibration"].as_str().unwrap().starts_with("base: l40s/qwen2.5-7b\ngpu:\n  gemm_tflops: ")
        );
    }

    #[test]
    fn times_that_break_the_model_fail_and_leave_a_file() {
        let broken =
            A10.replace(",556\n", ",5560\n").replace(",46.9\n", ",4.69\n").replace(",163\n", ",16.3\n");
        let (end, json, text) = fitted(&format!("{}\n{broken}", csv::STEPS), "");
        assert_eq!(end, End::Failed);
        assert!(json["after"]["mean_absolute_percentage_error"].as_f64().unwrap() > 10.0);
        assert!(text.contains("FAILED the model is off by more than --max-error 10 %"), "{text}");
        let (end, ..) = fitted(&format!("{}\n{broken}", csv::STEPS), "--max-error 1000");
        assert_eq!(end, End::Good);
    }

    #[test]
    fn recorded_requests_are_fitted_where_they_were_alone() {
        // 69 ms around the engine of an A10; the last two requests overlap.
        let rows = "2149,45,0.674,1.7028,1,1,100,102.3768\n2230,45,0.1205,1.7028,1,2,180,181.8233\n\
            6000,45,1.829,1.7072,2,1,200,203.5362\n900,45,0.338,1.6984,3,1,300,302.0364\n900,45,0.5,1.9,4,1,301,303.4\n";
        let flags =
            "--keep gpu.attention_tflops --keep gpu.kv_gb_per_s --keep host.step_ms --keep host.row_ms";
        let (end, json, text) = fitted(&format!("{}\n{rows}", records::HEADER), flags);
        assert_eq!(end, End::Good, "{text}");
        assert_eq!(json["left_out"], 3, "{text}");
        assert!(text.contains("first token, 38 new after 2192"), "{text}");
        assert!(text.contains("left out: 3 times during which other requests were under way"), "{text}");
    }

    #[test]
    fn what_is_wrong_is_named_with_the_way_out() {
        let one = error(&format!("{}\n0,0,2048,0,556\n", csv::STEPS), "");
        assert!(
            one.starts_with(
                "fit a.csv: measure more, or give constants up with --keep: measured times: 1, fewer"
            ),
            "{one}"
        );
        assert!(error("ms\n3\n", "").contains("missing columns decode_requests"));
        assert_eq!(
            error(&format!("{}\n0,0,2048,0,556ms\n", csv::STEPS), ""),
            "a.csv, line 2: ms is `556ms`, not a number"
        );
        let row = "2149,45,0.674,1.7,1,1,100,102\n";
        assert!(error(&format!("{}\n{row}{row}", records::HEADER), "").contains("no request was ever alone"));
        let text = format!("{}\n{A10}", csv::STEPS);
        assert!(
            error(&text, "--gpu b200")
                .contains("--gpu b200: no such preset: b200/qwen2.5-7b; there are a10-doc")
        );
        assert!(error(&text, "--latency-preset x").starts_with("--latency-preset: no such preset: x"));
        assert!(Line::try_parse_from(["calibrate", "a.csv", "--keep", "x"]).is_err());
        assert!(Line::try_parse_from(["calibrate", "a.csv", "--model", "m"]).is_err(), "only for --gpu");
    }
}
