//! `e2e sweep`: runs step 5's load with one setting changed at a time, to find when prefix-aware routing pays.

use std::num::NonZeroU64;

use anyhow::{Result, ensure};
use clap::Args;
use lab::ui::Ui;
use load::ending::End;
use load::multi_round_qa::sharegpt::Entry;
use load::output;
use load::stats::mean;
use load::table::new_table;
use serde::Serialize;
use serde_json::json;
use sim::model::ChatModel;

use crate::step5::entries;
use crate::step5::judge::Figures;
use crate::step5::side::{PolicyName, Side};

/// Largest ratio of the two TTFTs that counts as a gain; above it, the difference is within the noise of a few runs.
const PAYS: f64 = 0.95;

/// The setting that is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knob {
    /// Number of pods
    Replicas,
    /// Blocks of 16 tokens in each pod's KV cache
    KvBlocks,
    /// Part of a prompt that must match, in percent
    Threshold,
    /// Bytes of the blocks in which prefixes are matched; 128 is as fine as the picker's own blocks for prompts of this
    /// length
    BlockBytes,
    /// Milliseconds between two scrapes
    ScrapeInterval,
    /// Words of each user's own text, and so the length of prompts
    PromptWords,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Point {
    value: u32,
    plain_ttft: f64,
    picked_ttft: f64,
    /// Picked TTFT divided by plain TTFT: below 1, prefix-aware routing is faster. Not a number if no request was
    /// answered.
    ratio: f64,
    plain_hit_ratio: f64,
    picked_hit_ratio: f64,
    /// Failures of the first run that has any; the figures then do not cover all requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<String>,
}

/// Verdict on prefix-aware routing at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pays,
    DoesNotPay,
    /// Some requests failed.
    Unknown,
}

impl Knob {
    fn values(self) -> Vec<u32> {
        match self {
            Self::Replicas => vec![1, 2, 3, 4, 5, 6, 8, 16],
            Self::KvBlocks => vec![600, 700, 800, 1000, 1500, 2773, 6226],
            Self::Threshold => vec![0, 5, 25, 50, 75, 90, 99, 100],
            Self::BlockBytes => vec![128, 512, 1024, 2048, 4096, 8192, 16_384],
            Self::ScrapeInterval => vec![10, 50, 200, 1000, 5000],
            Self::PromptWords => vec![0, 50, 200, 500, 1000, 2000, 4000, 7000],
        }
    }

    fn set(self, side: &mut Side, value: u32) {
        match self {
            Self::Replicas => side.n_pods = usize::try_from(value).unwrap_or(usize::MAX),
            Self::KvBlocks => side.kv_blocks = Some(value),
            Self::Threshold => side.threshold = f64::from(value) / 100.0,
            Self::BlockBytes => side.index_block = NonZeroU64::new(value.into()),
            Self::ScrapeInterval => side.scrape_interval = std::time::Duration::from_millis(value.into()),
            Self::PromptWords => side.command.words.1 = usize::try_from(value).unwrap_or(usize::MAX),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct SweepArgs {
    /// Setting to change
    #[arg(value_enum)]
    pub knob: Knob,
    /// Values of the setting [default: values around the tutorial's]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub values: Vec<u32>,
    /// Runs of each side at each value
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub seeds: u32,
    /// Print JSON in place of the table
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &SweepArgs) -> Result<End> {
    let ui = Ui::new(false);
    let (model, entries) = (ChatModel::qwen25()?, entries(None)?);
    let values = if args.values.is_empty() { args.knob.values() } else { args.values.clone() };
    ensure!(
        args.knob != Knob::BlockBytes || values.iter().all(|value| *value >= 128 && value.is_power_of_two()),
        "--values: blocks of a power of two, 128 bytes or more"
    );
    ensure!(
        values.iter().all(|value| *value > 0 || args.knob != Knob::Replicas),
        "--values: at least one pod"
    );
    ensure!(
        values.iter().all(|value| *value > 0 || args.knob != Knob::ScrapeInterval),
        "--values: at least one millisecond between two scrapes"
    );
    let mut points = Vec::new();
    for value in values {
        ui.step(&format!("{:?} {value}", args.knob));
        points.push(args.point(value, &entries, &model)?);
    }
    ui.finish();
    output::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&json!({"knob": args.knob, "points": points}))?),
        false => text(args, &points),
    });
    Ok(End::Good)
}

impl SweepArgs {
    fn point(&self, value: u32, entries: &[Entry], model: &ChatModel) -> Result<Point> {
        let side = |policy, seed| {
            let mut side = Side::published(policy, seed);
            self.knob.set(&mut side, value);
            side.run(entries, model)
        };
        let runs =
            |policy| (1..=u64::from(self.seeds)).map(|seed| side(policy, seed)).collect::<Result<Vec<_>>>();
        Ok(Point::new(value, &runs(PolicyName::LeastRequest)?, &runs(PolicyName::Prefix)?))
    }
}

impl Point {
    fn new(value: u32, plain: &[Figures], picked: &[Figures]) -> Self {
        let of = |side: &[Figures], part: fn(&Figures) -> f64| {
            mean(&side.iter().map(part).collect::<Vec<_>>()).unwrap_or(0.0)
        };
        let ttft = |figures: &Figures| figures.summary.ttft;
        let hit = |figures: &Figures| figures.hit_ratio;
        let (plain_ttft, picked_ttft) = (of(plain, ttft), of(picked, ttft));
        Self {
            value,
            plain_ttft,
            picked_ttft,
            ratio: picked_ttft / plain_ttft,
            plain_hit_ratio: of(plain, hit),
            picked_hit_ratio: of(picked, hit),
            failed: plain.iter().chain(picked).find_map(Figures::failed),
        }
    }

    fn verdict(&self) -> Verdict {
        match &self.failed {
            Some(_) => Verdict::Unknown,
            None if self.ratio > PAYS => Verdict::DoesNotPay,
            None => Verdict::Pays,
        }
    }
}

fn text(args: &SweepArgs, points: &[Point]) -> String {
    let name = format!("{:?}", args.knob);
    let heads = [&name, "TTFT, 8080", "TTFT, 8081", "8081 by 8080", "hits, 8080", "hits, 8081", ""];
    let mut table = new_table(&heads, 1);
    for point in points {
        let Point { value, plain_ttft, picked_ttft, ratio, plain_hit_ratio, picked_hit_ratio, failed: _ } =
            point;
        table.add_row([
            value.to_string(),
            format!("{plain_ttft:.3} s"),
            format!("{picked_ttft:.3} s"),
            format!("{ratio:.2}"),
            format!("{:.0} %", plain_hit_ratio * 100.0),
            format!("{:.0} %", picked_hit_ratio * 100.0),
            match point.verdict() {
                Verdict::Pays => "",
                Verdict::DoesNotPay => "does not pay",
                Verdict::Unknown => "requests failed",
            }
            .to_owned(),
        ]);
    }
    let values = |verdict: Verdict| {
        let points = points.iter().filter(|point| point.verdict() == verdict);
        points.map(|point| point.value.to_string()).collect::<Vec<String>>().join(", ")
    };
    let (idle, unknown) = (values(Verdict::DoesNotPay), values(Verdict::Unknown));
    let verdict = match (idle.is_empty(), unknown.is_empty()) {
        (true, true) => "prefix-aware routing pays throughout".to_owned(),
        (true, false) => format!("requests failed at {name} {unknown}"),
        (false, true) => format!("prefix-aware routing does not pay at {name} {idle}"),
        (false, false) => {
            format!("prefix-aware routing does not pay at {name} {idle}, and requests failed at {unknown}")
        }
    };
    let failed: String = points
        .iter()
        .filter_map(|point| Some(format!("{name} {}: {}\n", point.value, point.failed.as_ref()?)))
        .collect();
    format!("{table}\n{failed}{verdict}; step 5's load, {} seeds, virtual time\n", args.seeds)
}

#[cfg(test)]
mod tests {
    use sim::model::ChatModel;

    use super::{Knob, SweepArgs, run, text};
    use crate::step5::entries;
    use crate::step5::judge::Figures;
    use crate::step5::side::{PolicyName, Side};

    #[test]
    fn blocks_as_long_as_prompts_match_nothing() {
        let (entries, model) = (entries(None).unwrap(), ChatModel::qwen25().unwrap());
        let run = |bytes: Option<u32>| -> Figures {
            let mut side = Side::published(PolicyName::Prefix, 1);
            if let Some(bytes) = bytes {
                Knob::BlockBytes.set(&mut side, bytes);
            }
            side.run(&entries, &model).unwrap()
        };
        let (own, fine, coarse) = (run(None), run(Some(128)), run(Some(16_384)));
        assert_eq!((own.n_cold(), &own.picks), (12, &fine.picks));
        assert!(coarse.n_cold() > 12 && coarse.summary.ttft > own.summary.ttft, "{}", coarse.n_cold());
    }

    fn args(knob: Knob, values: &[u32]) -> SweepArgs {
        SweepArgs { knob, values: values.to_vec(), seeds: 1, json: false }
    }

    #[test]
    fn prompts_beyond_the_context_fail_and_are_counted() {
        let (entries, model) = (entries(None).unwrap(), ChatModel::qwen25().unwrap());
        let args = args(Knob::PromptWords, &[2000, 9000]);
        let points = args.values.iter().map(|value| args.point(*value, &entries, &model).unwrap());
        let points: Vec<_> = points.collect();
        assert_eq!(points[0].failed, None);
        let failed = points[1].failed.as_deref().unwrap();
        assert!(
            failed.starts_with("12 of 12 requests failed; the first is of user 9, question 1: prompt of 9"),
            "{failed}"
        );
        let text = text(&args, &points);
        assert!(text.contains(&format!("PromptWords 9000: {failed}\n")), "{text}");
        assert!(text.contains("requests failed at PromptWords 9000; step 5's load"), "{text}");
        assert!(!text.contains("pays throughout"), "{text}");
    }

    /// An interval of zero would keep the simulation at one moment forever.
    #[test]
    fn scrapes_without_a_pause_are_refused() {
        let error = run(&args(Knob::ScrapeInterval, &[50, 0])).unwrap_err().to_string();
        assert_eq!(error, "--values: at least one millisecond between two scrapes");
    }
}
