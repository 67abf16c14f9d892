//! The house rules hold for the project, and each rule fails on an example that breaks it.

mod manifests;
mod recipe;

use std::fs;
use std::path::PathBuf;

use tidy::tree::{self, Source};
use tidy::{imports, order, purity, sizes};

fn project() -> Vec<Source> {
    let found = tree::sources(&tree::workspace()).expect("the workspace is readable");
    assert!(found.len() > 20, "the walk finds the project: {} files", found.len());
    found
}

fn source(path: &str, text: &str) -> Vec<Source> {
    vec![Source { path: path.to_owned(), text: text.to_owned() }]
}

fn none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn files_and_functions_are_small_and_have_headers() {
    none(&sizes::complaints(&project()));
}

#[test]
fn every_file_is_reached_by_a_mod() {
    none(&tree::unreachable(&project()));
}

#[test]
fn decision_code_is_pure() {
    none(&purity::impurities(&project()));
}

#[test]
fn every_pure_place_exists() {
    let sources = project();
    for place in purity::PURE {
        assert!(sources.iter().any(|source| source.path.starts_with(place)), "{place} names nothing");
    }
}

#[test]
fn nothing_is_left_undone_or_silenced() {
    none(&purity::left_undone(&project()));
}

#[test]
fn no_program_knows_where_it_was_built() {
    none(&purity::baked_paths(&project()));
}

/// Code that judges the programs over the wire does not know how they are made.
#[test]
fn only_studies_use_the_simulator() {
    let uses = |source: &&Source| source.text.contains("use sim::") || source.text.contains(" sim::");
    let users: Vec<String> = project().iter().filter(uses).map(|source| source.path.clone()).collect();
    assert!(!users.is_empty());
    let strangers = users.iter().filter(|path| {
        !path.starts_with("crates/studies/") && !path.starts_with("crates/sim/") && !path.starts_with("tidy/")
    });
    none(&strangers.cloned().collect::<Vec<_>>());
}

#[test]
fn modules_use_only_those_below_them() {
    none(&order::complaints(&project()));
}

#[test]
fn imports_follow_the_table() {
    let manifests: Vec<(PathBuf, String)> = manifests();
    let names: Vec<String> = manifests
        .iter()
        .filter_map(|(path, _)| path.parent()?.file_name().map(|name| name.to_string_lossy().into_owned()))
        .collect();
    assert!(names.len() >= 10, "{names:?}");
    let complaints: Vec<String> = manifests
        .iter()
        .flat_map(|(path, text)| {
            imports::complaints(text, &names).unwrap_or_else(|e| panic!("{path:?}: {e}"))
        })
        .collect();
    none(&complaints);
    let root = fs::read_to_string(tree::workspace().join("Cargo.toml")).expect("the workspace's manifest");
    none(&imports::default_members(&root).expect("a manifest"));
}

fn manifests() -> Vec<(PathBuf, String)> {
    let root = tree::workspace();
    let mut folders: Vec<PathBuf> = fs::read_dir(root.join("crates"))
        .expect("crates/")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    folders.extend(["mock-vllm", "e2e", "tidy"].map(|name| root.join(name)));
    folders
        .into_iter()
        .map(|folder| folder.join("Cargo.toml"))
        .map(|path| (path.clone(), fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"))))
        .collect()
}

// === each rule fails on a bad example ===

#[test]
fn a_long_file_a_long_function_and_a_missing_header_are_found() {
    let long_file = format!("//! Long.\n{}", "const A: u8 = 0;\n".repeat(600));
    assert_eq!(sizes::complaints(&source("a.rs", &long_file)), ["a.rs: 601 lines, more than 600"]);
    let body = "    let _ = 1;\n";
    let function = |n: usize| format!("//! F.\nfn f() {{\n{}}}\n", body.repeat(n));
    assert_eq!(sizes::complaints(&source("a.rs", &function(71))), ["a.rs: fn f has 71 lines, more than 70"]);
    none(&sizes::complaints(&source("a.rs", &function(70))));
    let method =
        format!("//! M.\nimpl M {{\n    fn g(&self) -> [u8; 2]\n    {{\n{}    }}\n}}\n", body.repeat(71));
    assert_eq!(sizes::complaints(&source("a.rs", &method)), ["a.rs: fn g has 71 lines, more than 70"]);
    // What follows a function without a body is not its body.
    let constant = format!("//! C.\nextern \"C\" {{ fn f(); }}\nconst A: u8 = {{\n{}}};\n", body.repeat(71));
    none(&sizes::complaints(&source("a.rs", &constant)));
    assert_eq!(sizes::complaints(&source("a.rs", "fn f() {}\n")), ["a.rs: no `//!` header"]);
}

#[test]
fn a_file_that_no_mod_reaches_is_found() {
    let mut sources = source("x/src/lib.rs", "//! X.\nmod a;\n");
    sources.extend(source("x/src/a.rs", "//! A.\nmod b;\n"));
    sources.extend(source("x/src/a/b.rs", "//! B.\n"));
    none(&tree::unreachable(&sources));
    sources.extend(source("x/src/lost.rs", "//! Lost.\n"));
    assert_eq!(tree::unreachable(&sources), ["x/src/lost.rs"]);
}

#[test]
fn a_clock_in_decision_code_is_found() {
    let text = "//! Pure.\nfn f() { std::time::Instant::now(); }\n";
    assert_eq!(purity::impurities(&source("crates/scheduling/src/lib.rs", text)).len(), 1);
    none(&purity::impurities(&source("e2e/src/lib.rs", text)));
}

#[test]
fn a_path_that_is_compiled_in_is_found() {
    let text = "//! P.\nconst FILES: &str = concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/files\");\n";
    let found = purity::baked_paths(&source("crates/lab/src/doc.rs", text));
    assert_eq!(found, ["crates/lab/src/doc.rs:2: a path of the source tree in a program"]);
    let example = format!("//! P.\n#[cfg(test)]\nmod tests {{\n{text}}}\n");
    none(&purity::baked_paths(&source("crates/lab/src/doc.rs", &example)));
    none(&purity::baked_paths(&source("crates/lab/tests/it/doc.rs", text)));
}

#[test]
fn unfinished_code_is_found() {
    let mark = ["TO", "DO"].concat();
    assert_eq!(purity::left_undone(&source("a.rs", &format!("// {mark}: later\n"))).len(), 1);
}

#[test]
fn an_import_against_the_table_is_found() {
    let members = ["epp".to_owned(), "mock-vllm".to_owned(), "prefix-index".to_owned()];
    let manifest = "[package]\nname = \"mock-vllm\"\n[dependencies]\nprefix-index = \"0\"\nkube = \"4\"\n";
    let found = imports::complaints(manifest, &members).expect("a manifest");
    assert_eq!(found.len(), 2, "{found:?}");
    let allowed = "[package]\nname = \"epp\"\n[dependencies]\nprefix-index = \"0\"\n";
    none(&imports::complaints(allowed, &members).expect("a manifest"));
}

#[test]
fn kubernetes_in_a_default_build_is_found() {
    let complaints = |name: &str, rest: &str| {
        let manifest = format!("[package]\nname = \"{name}\"\n{rest}");
        imports::complaints(&manifest, &[]).expect("a manifest")
    };
    let optional = "[dependencies]\npool-watch = { workspace = true, optional = true }\n";
    none(&complaints("epp", optional));
    none(&complaints("controller", "[dependencies]\npool-watch.workspace = true\nkube = \"5\"\n"));
    let must = ["epp must have pool-watch by a feature that is off by default"];
    assert_eq!(complaints("epp", "[dependencies]\npool-watch.workspace = true\n"), must);
    assert_eq!(complaints("epp", "[dev-dependencies]\npool-watch.workspace = true\n"), must);
    let by_default = format!("{optional}[features]\ndefault = [\"dep:pool-watch\"]\n");
    assert_eq!(complaints("epp", &by_default), must);

    let members = |list: &str| {
        imports::default_members(&format!("[workspace]\ndefault-members = {list}\n")).expect("a manifest")
    };
    none(&members("[\"crates/pool-index\", \"e2e\"]"));
    assert_eq!(members("[\"crates/pool-watch\"]"), ["crates/pool-watch must be no default member"]);
    assert_eq!(members("[\"crates/*\"]").len(), 1);
}

#[test]
fn only_tests_may_use_what_they_are_left_out_with() {
    let members = ["mock-vllm".to_owned(), "test-skips".to_owned()];
    let complaints = |section: &str| {
        let manifest = format!("[package]\nname = \"mock-vllm\"\n[{section}]\ntest-skips = \"0\"\n");
        imports::complaints(&manifest, &members).expect("a manifest")
    };
    none(&complaints("dev-dependencies"));
    assert_eq!(complaints("dependencies"), ["mock-vllm must not import test-skips (dependencies)"]);
}

#[test]
fn a_use_of_a_module_above_is_found() {
    let crate_of = |low: &str| {
        let mut sources = source("x/src/lib.rs", "//! X.\npub mod high;\npub mod low;\n");
        sources.extend(source("x/src/high.rs", "//! H.\nuse crate::low::{self, L};\npub struct Item;\n"));
        sources.extend(source("x/src/low.rs", low));
        order::complaints(&sources)
    };
    none(&crate_of("//! L.\n#[cfg(test)]\nmod tests {\n    use crate::high::Item;\n}\n"));
    let expected = ["x/src/low.rs: low uses high, which is declared above it"];
    for used in ["use crate::high::Item;", "use crate::{high, other};", "fn f() { vec![super::high::Item]; }"]
    {
        assert_eq!(crate_of(&format!("//! L.\n{used}\n")), expected, "{used}");
    }
}

#[test]
fn a_use_among_submodules_is_found_and_one_of_the_parent_is_not() {
    let mut sources = source("x/src/lib.rs", "//! X.\nmod a;\n");
    sources.extend(source("x/src/a.rs", "//! A.\nmod b;\nmod c;\npub struct Item;\n"));
    sources.extend(source("x/src/a/b.rs", "//! B.\nuse super::Item;\nuse super::c::C;\n"));
    sources.extend(source("x/src/a/c.rs", "//! C.\nuse crate::a::Item;\n"));
    none(&order::complaints(&sources));
    sources.extend(source("x/src/a/c/d.rs", "//! D.\nuse super::super::b::B;\n"));
    assert_eq!(order::complaints(&sources), ["x/src/a/c/d.rs: c uses b, which is declared above it"]);
}
