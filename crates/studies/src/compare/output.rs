//! A comparison as text, as Markdown and as JSON.

use load::table::new_table;
use serde_json::{Value, json};

use crate::compare::matrix::{Cell, Estimate, Knee, Spread, WorkloadRow, best, excess};
use crate::compare::ranking::rankings;

const HEADS: [&str; 10] =
    ["TTFT mean", "p50", "p90", "p99", "ITL mean", "p99", "hit ratio", "regret", "busiest by mean", "knee"];

pub fn text(rows: &[WorkloadRow], seeds: u32) -> String {
    let mut text = String::new();
    for row in rows {
        for cells in row.by_load() {
            let title = title(row, cells);
            let heads: Vec<&str> = std::iter::once(title.as_str()).chain(HEADS).collect();
            let mut table = new_table(&heads, 1);
            for (cell, knee) in cells.iter().zip(&row.knees) {
                table.add_row(std::iter::once(cell.policy.to_owned()).chain(columns(
                    cell,
                    knee,
                    best(cells),
                )));
            }
            text += &format!("{table}\n{}\n\n", verdict(cells));
        }
    }
    text + &ranked(rows, seeds) + &legend(seeds)
}

/// Says, one line for each, whether policies rank as others have found.
fn ranked(rows: &[WorkloadRow], seeds: u32) -> String {
    rankings(rows, seeds).iter().map(|ranking| ranking.text() + "\n").collect()
}

/// Writes a table for each workload and load in GitHub's Markdown.
pub fn markdown(rows: &[WorkloadRow], seeds: u32) -> String {
    let mut text = String::from("# Policies under loads that distinguish them\n\n");
    for row in rows {
        for cells in row.by_load() {
            text += &format!("## {}\n\n| policy | {} |\n", title(row, cells), HEADS.join(" | "));
            text += &format!("|---|{}\n", "---:|".repeat(HEADS.len()));
            for (cell, knee) in cells.iter().zip(&row.knees) {
                text += &format!("| {} | {} |\n", cell.policy, columns(cell, knee, best(cells)).join(" | "));
            }
            text += &format!("\n{}.\n\n", verdict(cells));
        }
    }
    text + &legend(seeds)
}

pub fn document(rows: &[WorkloadRow], seeds: u32, margin: f64) -> Value {
    let workloads: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "workload": row.workload,
                "default_above_best": row.excess(),
                "policies": row.cells,
                "knees": row.knees,
                "details": row.details,
            })
        })
        .collect();
    json!({"seeds": seeds, "margin": margin, "rankings": rankings(rows, seeds), "workloads": workloads})
}

fn title(row: &WorkloadRow, cells: &[Cell]) -> String {
    let load = cells.first().map_or(1.0, |cell| cell.load);
    format!("{}, load {load}", row.workload)
}

fn columns(cell: &Cell, knee: &Knee, best: f64) -> [String; 10] {
    let Cell { policy: _, load: _, ttft, itl, hit_ratio, regret, imbalance } = cell;
    let Spread { mean: Estimate { mean, half_width }, p50, p90, p99 } = ttft;
    let mark = if *mean <= best { " *" } else { "" };
    [
        format!("{mean:.3} ± {half_width:.3} s{mark}"),
        format!("{:.3} s", p50.mean),
        format!("{:.2} s", p90.mean),
        format!("{:.2} s", p99.mean),
        format!("{:.0} ms", itl.mean.mean * 1e3),
        format!("{:.0} ms", itl.p99.mean * 1e3),
        format!("{:.0} %", hit_ratio.mean * 100.0),
        format!("{:.1} %", regret.mean * 100.0),
        format!("{:.2}", imbalance.mean),
        knee.load.map_or_else(|| "beyond".to_owned(), |load| format!("{load:.2}")),
    ]
}

fn verdict(cells: &[Cell]) -> String {
    format!("the default is {:.1} % above the best router", excess(cells) * 100.0)
}

fn legend(seeds: u32) -> String {
    format!(
        "{seeds} seeds each, ± 95 % confidence of the mean; * the best mean TTFT (the oracle, which looks into every \
         engine, is no router)\nregret: prompt tokens that another pod had cached; knee: the load where the mean TTFT \
         passes twice the best one's at the lightest load\n"
    )
}
