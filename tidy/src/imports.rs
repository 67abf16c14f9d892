//! The import table: the workspace crates that each crate may use.

use toml::Table;

/// Workspace crates that each crate may depend on. A crate that is not listed may depend on none.
const MAY_IMPORT: [(&str, &[&str]); 20] = [
    (
        "epp",
        &[
            "ext-proc",
            "pool-index",
            "pool-watch",
            "picking",
            "scheduling",
            "prefix-index",
            "envoy-proto",
            "inference-api",
        ],
    ),
    ("ext-proc", &["envoy-proto", "prefix-index", "inference-api"]),
    ("pool-index", &["inference-api"]),
    ("pool-watch", &["pool-index", "inference-api"]),
    ("picking", &["scheduling", "prefix-index"]),
    ("scheduling", &["prefix-index"]),
    ("gateway-config", &["inference-api", "envoy-proto"]),
    ("controller", &["gateway-config", "pool-watch", "pool-index", "envoy-proto", "inference-api"]),
    ("e2e", &["lab", "lab-kube", "studies", "load"]),
    // What judges over the wire sees neither side's code.
    ("lab", &["gateway-config", "inference-api", "load"]),
    ("lab-kube", &["lab", "load"]),
    ("load", &[]),
    // Step 5's run through a real cluster needs the lab's; the other studies run on the simulator alone.
    ("studies", &["sim", "load", "lab", "lab-kube"]),
    // The simulator joins both sides of the wire in one process on purpose.
    ("sim", &["picking", "vllm-engine", "vllm-text", "scheduling", "prefix-index"]),
    ("mock-vllm", &["vllm-engine", "vllm-text"]),
    ("vllm-text", &["vllm-engine"]),
    ("vllm-engine", &[]),
    ("prefix-index", &[]),
    ("inference-api", &[]),
    ("envoy-proto", &[]),
];

/// Workspace crates that only the tests of a crate may depend on.
const TESTS_MAY_IMPORT: [(&str, &[&str]); 2] = [
    // Pickers of others stand behind a real Envoy.
    ("e2e", &["envoy-proto"]),
    // The simulator's picks are compared with those of the servers.
    ("sim", &["epp", "ext-proc", "pool-index", "inference-api"]),
];

/// Workspace crate that the tests of every crate may depend on: it knows nothing of what is tested.
const ANY_TEST_MAY_IMPORT: &str = "test-skips";

/// Outside crates that a crate must not use.
const MUST_NOT_USE: [(&str, &[&str]); 12] = [
    // The main job compiles no simulator; only tests look at what studies print.
    ("e2e", &["studies", "sim"]),
    ("lab-kube", &["sim", "studies", "tonic", "axum"]),
    ("pool-index", &["tonic", "prost", "axum"]),
    ("pool-watch", &["tonic", "prost", "axum"]),
    ("ext-proc", &["tokio", "kube", "tonic", "axum", "prometheus-client", "clap"]),
    ("picking", &["tokio", "kube", "tonic", "axum", "prometheus-client"]),
    ("scheduling", &["tokio", "kube", "tonic", "axum"]),
    ("prefix-index", &["tokio", "kube", "tonic", "axum"]),
    ("gateway-config", &["tokio", "kube", "tonic", "axum", "nix"]),
    // The servers of the main job do not fit anything.
    ("vllm-engine", &["tokio", "kube", "tonic", "axum", "clap", "nalgebra", "levenberg-marquardt"]),
    ("vllm-text", &["tokio", "kube", "tonic", "axum", "clap"]),
    ("sim", &["tokio", "kube", "tonic", "axum", "clap"]),
];

/// Crates for Kubernetes, which the local path does not compile.
const KUBERNETES: [&str; 4] = ["kube", "k8s-openapi", "gateway-api", "kube-runtime"];

/// Workspace crates that use them. They are no default members, and another crate has them by a feature only.
const FOR_KUBERNETES: [&str; 3] = ["pool-watch", "controller", "lab-kube"];

/// Complaints about one crate's manifest. `members` are the names of the workspace's crates.
///
/// # Errors
/// If the text is not a Cargo manifest.
pub fn complaints(manifest: &str, members: &[String]) -> Result<Vec<String>, toml::de::Error> {
    let table: Table = manifest.parse()?;
    let name = table
        .get("package")
        .and_then(|package| package.get("name"))
        .and_then(toml::Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let of = |table: &[(&str, &'static [&'static str])]| {
        table.iter().find(|(of, _)| *of == name).map_or(&[] as &[&str], |(_, names)| names)
    };
    let (allowed, for_tests, banned) = (of(&MAY_IMPORT), of(&TESTS_MAY_IMPORT), of(&MUST_NOT_USE));
    let mut found = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for dependency in table.get(section).and_then(toml::Value::as_table).into_iter().flat_map(Table::keys)
        {
            // A crate names itself among its dev-dependencies to test its own features.
            let tests_may = for_tests.contains(&dependency.as_str())
                || dependency == ANY_TEST_MAY_IMPORT
                || *dependency == name;
            let is_allowed =
                allowed.contains(&dependency.as_str()) || section == "dev-dependencies" && tests_may;
            if members.contains(dependency) && !is_allowed {
                found.push(format!("{name} must not import {dependency} ({section})"));
            }
            if banned.contains(&dependency.as_str()) && section != "dev-dependencies" {
                found.push(format!("{name} must not use {dependency}"));
            }
            if KUBERNETES.contains(&dependency.as_str()) && !FOR_KUBERNETES.contains(&name.as_str()) {
                found.push(format!(
                    "{name} must not use {dependency}: the local path compiles nothing of Kubernetes"
                ));
            }
        }
    }
    if !FOR_KUBERNETES.contains(&name.as_str()) {
        found.extend(
            not_by_a_feature(&table).map(|dependency| {
                format!("{name} must have {dependency} by a feature that is off by default")
            }),
        );
    }
    Ok(found)
}

/// Crates for Kubernetes that the manifest has whatever its features are, or by its default feature.
fn not_by_a_feature(manifest: &Table) -> impl Iterator<Item = &'static str> {
    let table = |name: &str| manifest.get(name).and_then(toml::Value::as_table);
    let is_optional = |dependency: &toml::Value| {
        dependency.get("optional").and_then(toml::Value::as_bool).unwrap_or_default()
    };
    let sections = ["dependencies", "dev-dependencies", "build-dependencies"].map(table);
    let has_default = table("features").is_some_and(|features| features.contains_key("default"));
    FOR_KUBERNETES.into_iter().filter(move |name| {
        let found = sections.iter().flatten().filter_map(|section| section.get(*name));
        found.clone().any(|dependency| !is_optional(dependency) || has_default)
    })
}

/// Complaints about the workspace's manifest: a crate for Kubernetes that a build without arguments compiles.
///
/// # Errors
/// If the text is not a Cargo manifest.
pub fn default_members(manifest: &str) -> Result<Vec<String>, toml::de::Error> {
    let table: Table = manifest.parse()?;
    let members = table.get("workspace").and_then(|workspace| workspace.get("default-members"));
    let members = members.and_then(toml::Value::as_array).into_iter().flatten();
    let members = members.filter_map(toml::Value::as_str);
    let is_for_kubernetes =
        |member: &&str| member.contains('*') || FOR_KUBERNETES.iter().any(|name| member.ends_with(name));
    Ok(members
        .filter(is_for_kubernetes)
        .map(|member| format!("{member} must be no default member"))
        .collect())
}
