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

# Format the code.
fmt:
    cargo fmt --all

# Fail when the code is not formatted, or when a dependency's licence, source or version is not allowed.
format:
    bash .ci/recipe format

# Lints, on all targets.
lint:
    bash .ci/recipe lint

# All tests, also the slow ones.
tests:
    bash .ci/recipe tests

# Every crate and the fuzz targets build alone.
each:
    bash .ci/recipe each

# The tutorial, end to end, twice.
main-job:
    bash .ci/recipe main-job

# Step 5's table, and the comparison of policies.
step5:
    bash .ci/recipe step5

# Pods die and pickers are replaced for minutes; and the controls that must lose requests and cut answers.
soak:
    bash .ci/recipe soak

# The checks and the tutorial's commands on Kubernetes, if Docker, kind and kubectl are here.
kind:
    bash .ci/recipe kind

# Generate the code and the descriptors from the protos again.
proto:
    REGENERATE_PROTO=1 cargo test --package envoy-proto

# Benchmarks of the hot paths; compare with benches/README.md.
bench *args:
    cargo bench --workspace --bench '*' {{args}}

# All that CI runs, in one go.
ci:
    bash .ci/run

# Fuzz one target (ext_proc, http_bodies, trace_files) for some seconds; needs nightly Rust and cargo-fuzz. What it finds stays in fuzz/artifacts.
fuzz target seconds="600":
    mkdir -p target/fuzz-corpus/{{target}}
    cargo +nightly fuzz run --fuzz-dir fuzz -O {{target}} target/fuzz-corpus/{{target}} fuzz/corpus/{{target}} -- -max_total_time={{seconds}} -rss_limit_mb=2048 -dict=fuzz/{{target}}.dict
