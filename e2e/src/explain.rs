//! `e2e explain-manifests`: what each object of the manifests comes to, without starting anything.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lab::cluster::Strictness;
use lab::cluster::explain::{self, Explained, Explanation};
use lab::flags;
use load::ending::End;
use load::output;
use load::table::new_table;

#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// Files and directories of Kubernetes objects, `-` for standard input
    #[arg(value_name = "PATH", required = true)]
    pub manifests: Vec<PathBuf>,
    /// Refuse objects and fields that have no effect here
    #[arg(long)]
    pub strict: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &ExplainArgs) -> Result<End> {
    let scratch = tempfile::tempdir()?;
    let sources = flags::sources(&args.manifests, scratch.path())?;
    let strictness = if args.strict { Strictness::Strict } else { Strictness::Lenient };
    let explanation = explain::explain(&sources, strictness)?;
    output::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&explanation)?),
        false => text(&explanation),
    });
    Ok(if explanation.is_good() { End::Good } else { End::Failed })
}

fn text(explanation: &Explanation) -> String {
    let Explanation { objects, problem } = explanation;
    let mut table = new_table(&["object", "answer", "what it comes to"], 3);
    for object in objects {
        let Explained { file, document, kind, namespace, name, answer, what, without_effect } = object;
        let kind = if kind.is_empty() { "(no kind)" } else { kind };
        let parts: Vec<&str> =
            without_effect.iter().map(|part| part.field.as_str()).filter(|field| !field.is_empty()).collect();
        let mut what = what.clone();
        if !parts.is_empty() {
            let separator = if what.is_empty() { "" } else { "\n" };
            what += &format!("{separator}without effect: {}", parts.join(", "));
        }
        let place = format!("{kind} {namespace}/{name}\n{file}, document {document}");
        table.add_row([place, answer.as_str().to_owned(), what]);
    }
    let problem = problem.as_ref().map_or_else(String::new, |problem| format!("{problem}\n"));
    format!("{table}\n{problem}")
}
