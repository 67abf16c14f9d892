//! vLLM's flags that are accepted without effect, each with the reason that the log gives.

/// Flags that vLLM takes and this server ignores. A flag that takes values swallows all arguments up to the next flag.
pub(super) const IGNORED: &[(&str, Takes, &str)] = &[
    ("api-server-count", Takes::Values, HTTP),
    ("async-scheduling", Takes::Nothing, KERNELS),
    ("attention-backend", Takes::Values, KERNELS),
    ("compilation-config", Takes::Values, KERNELS),
    ("cpu-offload-gb", Takes::Values, KERNELS),
    ("cuda-graph-sizes", Takes::Values, KERNELS),
    ("device", Takes::Values, KERNELS),
    ("disable-access-log-for-endpoints", Takes::Values, HTTP),
    ("disable-custom-all-reduce", Takes::Nothing, KERNELS),
    ("disable-fastapi-docs", Takes::Nothing, HTTP),
    ("disable-frontend-multiprocessing", Takes::Nothing, HTTP),
    ("disable-log-requests", Takes::Nothing, LOGS),
    ("disable-log-stats", Takes::Nothing, LOGS),
    ("disable-uvicorn-access-log", Takes::Nothing, HTTP),
    ("distributed-executor-backend", Takes::Values, KERNELS),
    ("download-dir", Takes::Values, WEIGHTS),
    ("dtype", Takes::Values, KERNELS),
    ("enable-log-requests", Takes::Nothing, LOGS),
    ("enforce-eager", Takes::Nothing, KERNELS),
    ("fingerprint-mode", Takes::Values, FINGERPRINT),
    ("generation-config", Takes::Values, WEIGHTS),
    ("hf-config-path", Takes::Values, WEIGHTS),
    ("hf-overrides", Takes::Values, WEIGHTS),
    ("kv-cache-dtype", Takes::Values, KERNELS),
    ("kv-transfer-config", Takes::Values, CONNECTORS),
    ("limit-mm-per-prompt", Takes::Values, WEIGHTS),
    ("load-format", Takes::Values, WEIGHTS),
    ("max-log-len", Takes::Values, LOGS),
    ("max-parallel-loading-workers", Takes::Values, WEIGHTS),
    ("middleware", Takes::Values, HTTP),
    ("override-generation-config", Takes::Values, WEIGHTS),
    ("pipeline-parallel-size", Takes::Values, KERNELS),
    ("quantization", Takes::Values, WEIGHTS),
    ("reasoning-parser", Takes::Values, THOUGHTS),
    ("revision", Takes::Values, WEIGHTS),
    ("rope-scaling", Takes::Values, WEIGHTS),
    ("speculative-config", Takes::Values, DRAFTS),
    ("ssl-certfile", Takes::Values, HTTP),
    ("ssl-keyfile", Takes::Values, HTTP),
    ("swap-space", Takes::Values, KERNELS),
    ("tokenizer-mode", Takes::Values, WEIGHTS),
    ("tokenizer-revision", Takes::Values, WEIGHTS),
    ("trust-remote-code", Takes::Nothing, WEIGHTS),
    ("use-v2-block-manager", Takes::Nothing, KERNELS),
    ("uvicorn-log-level", Takes::Values, HTTP),
];

const KERNELS: &str = "there is no GPU to configure";
const WEIGHTS: &str = "there are no weights to load";
const HTTP: &str = "another web server is used";
const LOGS: &str = "requests are in the file of --request-log, and there are no periodic lines";
const FINGERPRINT: &str = "the fingerprint is always vllm-VERSION-HASH";
const CONNECTORS: &str = "the cache of a pod is its own: nothing is transferred";
const THOUGHTS: &str = "made-up replies hold no thoughts to take out";
const DRAFTS: &str = "every step yields one token per request";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Values,
}
