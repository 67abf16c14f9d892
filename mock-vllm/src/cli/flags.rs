//! vLLM's spelling of flags, brought to one form: underscores are dashes, `--no-x` is `--x=false`, and flags that mean
//! nothing here are taken out and remembered.

use std::ffi::OsString;

/// Flags of ours and vLLM's that are on or off.
const SWITCHES: [&str; 6] = [
    "enable-chunked-prefill",
    "enable-force-include-usage",
    "enable-prefix-caching",
    "enable-prompt-tokens-details",
    "enable-request-id-headers",
    "enable-server-load-tracking",
];

/// Flags with a JSON object as value, whose keys may be flags too: `--flag.key value`.
const OBJECTS: [&str; 1] = ["kv-events-config"];

/// What vLLM takes and this server does without. A flag that takes values swallows all that follow, up to the next flag.
const IGNORED: &[(&str, Takes, &str)] = &[
    ("allow-credentials", Takes::Nothing, HTTP),
    ("allowed-headers", Takes::Values, HTTP),
    ("allowed-methods", Takes::Values, HTTP),
    ("allowed-origins", Takes::Values, HTTP),
    ("api-server-count", Takes::Values, HTTP),
    ("async-scheduling", Takes::Nothing, KERNELS),
    ("attention-backend", Takes::Values, KERNELS),
    ("chat-template", Takes::Values, LATER),
    ("chat-template-content-format", Takes::Values, LATER),
    ("compilation-config", Takes::Values, KERNELS),
    ("config", Takes::Values, LATER),
    ("cpu-offload-gb", Takes::Values, KERNELS),
    ("cuda-graph-sizes", Takes::Values, KERNELS),
    ("data-parallel-rank", Takes::Values, LATER),
    ("data-parallel-size", Takes::Values, LATER),
    ("default-chat-template-kwargs", Takes::Values, LATER),
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
    ("enable-auto-tool-choice", Takes::Nothing, LATER),
    ("enable-log-requests", Takes::Nothing, LOGS),
    ("enable-lora", Takes::Nothing, LATER),
    ("enable-sleep-mode", Takes::Nothing, LATER),
    ("enforce-eager", Takes::Nothing, KERNELS),
    ("fingerprint-mode", Takes::Values, LATER),
    ("generation-config", Takes::Values, WEIGHTS),
    ("hf-config-path", Takes::Values, WEIGHTS),
    ("hf-overrides", Takes::Values, WEIGHTS),
    ("kv-cache-dtype", Takes::Values, KERNELS),
    ("kv-cache-memory-bytes", Takes::Values, LATER),
    ("kv-transfer-config", Takes::Values, LATER),
    ("limit-mm-per-prompt", Takes::Values, WEIGHTS),
    ("load-format", Takes::Values, WEIGHTS),
    ("lora-modules", Takes::Values, LATER),
    ("max-cpu-loras", Takes::Values, LATER),
    ("max-log-len", Takes::Values, LOGS),
    ("max-lora-rank", Takes::Values, LATER),
    ("max-loras", Takes::Values, LATER),
    ("max-num-queued-reqs", Takes::Values, LATER),
    ("max-num-queued-tokens", Takes::Values, LATER),
    ("max-parallel-loading-workers", Takes::Values, WEIGHTS),
    ("middleware", Takes::Values, HTTP),
    ("override-generation-config", Takes::Values, WEIGHTS),
    ("pipeline-parallel-size", Takes::Values, KERNELS),
    ("quantization", Takes::Values, WEIGHTS),
    ("reasoning-parser", Takes::Values, LATER),
    ("revision", Takes::Values, WEIGHTS),
    ("root-path", Takes::Values, LATER),
    ("rope-scaling", Takes::Values, WEIGHTS),
    ("show-hidden-metrics-for-version", Takes::Values, LATER),
    ("speculative-config", Takes::Values, LATER),
    ("sse-keep-alive-interval", Takes::Values, LATER),
    ("ssl-certfile", Takes::Values, HTTP),
    ("ssl-keyfile", Takes::Values, HTTP),
    ("stream-interval", Takes::Values, LATER),
    ("swap-space", Takes::Values, KERNELS),
    ("tensor-parallel-size", Takes::Values, LATER),
    ("tokenizer-mode", Takes::Values, WEIGHTS),
    ("tokenizer-revision", Takes::Values, WEIGHTS),
    ("tool-call-parser", Takes::Values, LATER),
    ("trust-remote-code", Takes::Nothing, WEIGHTS),
    ("uds", Takes::Values, LATER),
    ("use-v2-block-manager", Takes::Nothing, KERNELS),
    ("uvicorn-log-level", Takes::Values, HTTP),
    ("watermark", Takes::Values, LATER),
];

const KERNELS: &str = "there is no GPU to configure";
const WEIGHTS: &str = "there are no weights to load";
const HTTP: &str = "another web server is used";
const LOGS: &str = "requests are in the file of --request-log, and there are no periodic lines";
const LATER: &str = "not implemented, has no effect";

/// argparse's short forms in vLLM.
const SHORT: [(&str, &str); 5] = [
    ("-tp", "--tensor-parallel-size"),
    ("-pp", "--pipeline-parallel-size"),
    ("-dp", "--data-parallel-size"),
    ("-q", "--quantization"),
    ("-O", "--compilation-config"),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    Nothing,
    Values,
}

/// A flag that was given and has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ignored {
    pub(super) flag: String,
    pub(super) values: Vec<String>,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("argument {0:?} is not valid UTF-8")]
pub(super) struct NotUtf8(OsString);

/// The arguments in the form that the parser knows, and those without effect. Only `serve` speaks vLLM's dialect.
///
/// # Errors
/// For an argument of `serve` that is no text.
pub(super) fn normalize(args: Vec<OsString>) -> Result<(Vec<OsString>, Vec<Ignored>), NotUtf8> {
    if args.get(1).is_none_or(|command| command != "serve") {
        return Ok((args, Vec::new()));
    }
    let mut args = args.into_iter().map(|arg| arg.into_string().map_err(NotUtf8));
    let mut normalized: Vec<OsString> = Vec::new();
    let mut ignored = Vec::new();
    let mut swallowing = false;
    // `--flag=key` of a dotted flag that waits for its value.
    let mut dotted: Option<String> = None;
    args.try_for_each(|arg| {
        let arg = arg?;
        let Some((name, value)) = split_flag(&arg) else {
            if let Some(key) = dotted.take() {
                normalized.push(format!("{key}={arg}").into());
                return Ok(());
            }
            match ignored.last_mut().filter(|_| swallowing) {
                Some(Ignored { values, .. }) => values.push(arg),
                None => normalized.push(arg.into()),
            }
            return Ok(());
        };
        swallowing = false;
        // Without a value, which the parser of the object complains about.
        normalized.extend(dotted.take().map(OsString::from));
        let positive = name.strip_prefix("no-").unwrap_or(&name);
        let base = positive.split('.').next().unwrap_or_default();
        if let Some((_, takes, reason)) = IGNORED.iter().find(|(ignored, ..)| *ignored == base) {
            swallowing = *takes == Takes::Values && value.is_none();
            let values = value.map(str::to_owned).into_iter().collect();
            ignored.push(Ignored { flag: format!("--{name}"), values, reason });
        } else if let (true, Some((_, key))) = (OBJECTS.contains(&base), name.split_once('.')) {
            match value {
                Some(value) => normalized.push(format!("--{base}={key}={value}").into()),
                None => dotted = Some(format!("--{base}={key}")),
            }
        } else if SWITCHES.contains(&positive) && value.is_none() {
            normalized.push(format!("--{positive}={}", positive == name).into());
        } else {
            let value = value.map(|value| format!("={value}")).unwrap_or_default();
            normalized.push(format!("--{name}{value}").into());
        }
        Ok(())
    })?;
    normalized.extend(dotted.map(OsString::from));
    Ok((normalized, ignored))
}

/// Name without dashes in front, underscores as dashes, and the value behind `=`; `None` for what is no long flag.
fn split_flag(arg: &str) -> Option<(String, Option<&str>)> {
    let long = SHORT.iter().find(|(short, _)| *short == arg).map_or(arg, |(_, long)| long);
    let flag = long.strip_prefix("--").filter(|flag| !flag.is_empty())?;
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (flag, None),
    };
    // A dotted name goes into a JSON value, whose keys keep their underscores.
    let (base, path) = name.split_at(name.find('.').unwrap_or(name.len()));
    // `value` borrows from `arg` only when `arg` itself was the flag: short forms carry none.
    let value = value.and_then(|value| arg.strip_suffix(value).map(|before| &arg[before.len()..]));
    Some((format!("{}{path}", base.replace('_', "-")), value))
}

#[cfg(test)]
mod tests {
    use super::{IGNORED, SWITCHES, normalize};

    #[track_caller]
    fn check(args: &str, expected: &str, expected_ignored: &[&str]) {
        let args = format!("mock-vllm {args}").split(' ').map(Into::into).collect();
        let (normalized, ignored) = normalize(args).unwrap();
        let normalized: Vec<_> = normalized.iter().skip(1).map(|arg| arg.to_str().unwrap()).collect();
        assert_eq!(normalized.join(" "), expected);
        let ignored: Vec<_> = ignored
            .iter()
            .map(|flag| format!("{} {}", flag.flag, flag.values.join(" ")).trim().to_owned())
            .collect();
        assert_eq!(ignored, expected_ignored);
    }

    #[test]
    fn underscores_switches_and_ignored_flags_take_one_form() {
        check("serve m --max_model_len 8192", "serve m --max-model-len 8192", &[]);
        check("serve m --served_model_name=a_b", "serve m --served-model-name=a_b", &[]);
        check(
            "serve m --enable-prefix-caching --no-enable-prefix-caching",
            "serve m --enable-prefix-caching=true --enable-prefix-caching=false",
            &[],
        );
        check("serve m --enforce-eager --port 1", "serve m --port 1", &["--enforce-eager"]);
        check("serve m --dtype auto --port 1", "serve m --port 1", &["--dtype auto"]);
        check("serve m -tp 2 --port 1", "serve m --port 1", &["--tensor-parallel-size 2"]);
        check("serve m --kv_events_config.topic x", "serve m --kv-events-config=topic=x", &[]);
        check("serve m --kv-events-config.hwm=5 -p", "serve m --kv-events-config=hwm=5 -p", &[]);
        check("serve m --kv-events-config.hwm --port 1", "serve m --kv-events-config=hwm --port 1", &[]);
        check("serve m --kv-events-config.buffer_steps", "serve m --kv-events-config=buffer_steps", &[]);
        check("serve m --kv-events-config {}", "serve m --kv-events-config {}", &[]);
        check("serve m --hf_overrides.a_b 1", "serve m", &["--hf-overrides.a_b 1"]);
        check("serve m --nonsense x", "serve m --nonsense x", &[]);
        check("check-trace a_b --c_d", "check-trace a_b --c_d", &[]);
    }

    #[test]
    fn no_flag_is_both_honoured_and_ignored() {
        assert!(IGNORED.is_sorted_by_key(|(name, ..)| *name));
        for (name, ..) in IGNORED {
            assert!(!SWITCHES.contains(name), "{name}");
            assert!(!name.contains('_'), "{name}");
        }
    }
}
