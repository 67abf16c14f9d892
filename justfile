# List the recipes.
default:
    @just --list

# Stand the tutorial up, run its steps, assert, tear down, report.
e2e *args:
    cargo e2e {{args}}

# Keep the tutorial running; `just down` ends it.
up *args:
    cargo e2e up {{args}}

# End what `just up` started.
down:
    cargo e2e down

# All tests, without a cluster.
test:
    cargo test --workspace

# Format the code.
fmt:
    cargo fmt --all

# Fail when the code is not formatted.
fmt-check:
    cargo fmt --all --check

# Lints, on all targets.
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Every crate builds alone.
check-each:
    for manifest in crates/*/Cargo.toml mock-vllm/Cargo.toml e2e/Cargo.toml; do cargo check --quiet --manifest-path $manifest || exit 1; done

# Licences, sources and banned crates.
deny:
    cargo deny check bans licenses sources

# Generate the ext_proc code from its protos anew.
proto:
    REGENERATE_PROTO=1 cargo test --package envoy-proto

# Benchmarks of the hot paths; compare with benches/README.md.
bench *args:
    cargo bench --workspace --bench '*' {{args}}

# What CI runs.
ci:
    bash .ci/run

# Fuzz one target (ext_proc, http_bodies, trace_files) for some seconds; needs nightly Rust and cargo-fuzz. What it finds stays in fuzz/artifacts.
fuzz target seconds="600":
    mkdir -p target/fuzz-corpus/{{target}}
    cargo +nightly fuzz run --fuzz-dir fuzz -O {{target}} target/fuzz-corpus/{{target}} fuzz/corpus/{{target}} -- -max_total_time={{seconds}} -rss_limit_mb=2048 -dict=fuzz/{{target}}.dict
