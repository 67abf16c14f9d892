//! Brings vLLM's spelling of flags to one form: underscores become dashes, `--no-x` becomes `--x=false`, and flags
//! without effect here are taken out and remembered.

mod ignored;

use clap::{Arg, Command};
use ignored::{IGNORED, Takes};
use std::ffi::OsString;

/// Short forms of flags that vLLM's argparse knows.
const SHORT: [(&str, &str); 5] = [
    ("-tp", "--tensor-parallel-size"),
    ("-pp", "--pipeline-parallel-size"),
    ("-dp", "--data-parallel-size"),
    ("-q", "--quantization"),
    ("-O", "--compilation-config"),
];

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

/// The flags of `serve` that vLLM spells differently from clap, found in their definitions.
struct Dialect<'a> {
    /// Switches: `--x`, `--no-x`. Their values are called `BOOL`.
    switches: Vec<&'a str>,
    /// JSON objects whose keys may be flags too: `--flag.key value`. Their values are called `JSON`.
    objects: Vec<&'a str>,
    /// All flags.
    flags: Vec<&'a str>,
}

// === impl Dialect ===

impl<'a> Dialect<'a> {
    fn of(serve: &'a Command) -> Self {
        let called = |value_name: &str| -> Vec<&'a str> {
            let is_called = |arg: &&Arg| {
                arg.get_value_names()
                    .is_some_and(|names| names.first().is_some_and(|name| name == value_name))
            };
            serve.get_arguments().filter(is_called).filter_map(Arg::get_long).collect()
        };
        let known = serve.get_arguments().filter_map(Arg::get_long);
        let flags = known.chain(IGNORED.iter().map(|(name, ..)| *name)).collect();
        Self { switches: called("BOOL"), objects: called("JSON"), flags }
    }

    /// The name for which `name` is short, as in argparse: a flag may be cut where no other flag begins alike. A name that
    /// is whole, or short for several, stays.
    fn complete(&self, name: String) -> String {
        let (base, path) = name.split_at(name.find('.').unwrap_or(name.len()));
        let (no, positive) = match base.strip_prefix("no-") {
            Some(positive) => ("no-", positive),
            None => ("", base),
        };
        let mut begun = self.flags.iter().filter(|flag| flag.starts_with(positive));
        match (begun.next(), begun.next()) {
            (Some(only), None) => format!("{no}{only}{path}"),
            (_, _) => name,
        }
    }
}

/// Returns the arguments in the form that the parser knows, and the ignored ones. Only `serve`, which `program`
/// defines, speaks vLLM's dialect.
///
/// # Errors
/// Fails for an argument of `serve` that is not valid UTF-8.
pub(super) fn normalize(
    args: Vec<OsString>,
    program: &Command,
) -> Result<(Vec<OsString>, Vec<Ignored>), NotUtf8> {
    if args.get(1).is_none_or(|command| command != "serve") {
        return Ok((args, Vec::new()));
    }
    let Some(serve) = program.find_subcommand("serve") else { return Ok((args, Vec::new())) };
    let dialect = Dialect::of(serve);
    let mut args = args.into_iter().map(|arg| arg.into_string().map_err(NotUtf8));
    let mut normalized: Vec<OsString> = Vec::new();
    let mut ignored = Vec::new();
    let mut swallowing = false;
    // A dotted flag as `--flag=key`, while it waits for its value.
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
        let name = dialect.complete(name);
        swallowing = false;
        // The waiting flag got no value: the parser of the object will complain.
        normalized.extend(dotted.take().map(OsString::from));
        let positive = name.strip_prefix("no-").unwrap_or(&name);
        let base = positive.split('.').next().unwrap_or_default();
        if let Some((_, takes, reason)) = IGNORED.iter().find(|(ignored, ..)| *ignored == base) {
            swallowing = *takes == Takes::Values && value.is_none();
            let values = value.map(str::to_owned).into_iter().collect();
            ignored.push(Ignored { flag: format!("--{name}"), values, reason });
        } else if let (true, Some((_, key))) = (dialect.objects.contains(&base), name.split_once('.')) {
            match value {
                Some(value) => normalized.push(format!("--{base}={key}={value}").into()),
                None => dotted = Some(format!("--{base}={key}")),
            }
        } else if dialect.switches.contains(&positive) && value.is_none() {
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

/// Splits a long flag into its name, without leading dashes and with dashes for underscores, and the value after `=`.
/// `None` for anything that is not a long flag.
fn split_flag(arg: &str) -> Option<(String, Option<&str>)> {
    let long = SHORT.iter().find(|(short, _)| *short == arg).map_or(arg, |(_, long)| long);
    let flag = long.strip_prefix("--").filter(|flag| !flag.is_empty())?;
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (flag, None),
    };
    // The part after the dot is a key of a JSON value and keeps its underscores.
    let (base, path) = name.split_at(name.find('.').unwrap_or(name.len()));
    // Short forms carry no value, so that `value` always borrows from `arg`.
    let value = value.and_then(|value| arg.strip_suffix(value).map(|before| &arg[before.len()..]));
    Some((format!("{}{path}", base.replace('_', "-")), value))
}

#[cfg(test)]
mod tests {
    use super::{Dialect, IGNORED, normalize};
    use crate::cli::Cli;
    use clap::CommandFactory as _;

    #[track_caller]
    fn check(args: &str, expected: &str, expected_ignored: &[&str]) {
        let args = format!("mock-vllm {args}").split(' ').map(Into::into).collect();
        let (normalized, ignored) = normalize(args, &Cli::command()).unwrap();
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
        check("serve m -tp 2 --port 1", "serve m --tensor-parallel-size 2 --port 1", &[]);
        check("serve m -pp 2 --port 1", "serve m --port 1", &["--pipeline-parallel-size 2"]);
        check("serve m --kv_events_config.topic x", "serve m --kv-events-config=topic=x", &[]);
        check("serve m --kv-events-config.hwm=5 -p", "serve m --kv-events-config=hwm=5 -p", &[]);
        check("serve m --kv-events-config.hwm --port 1", "serve m --kv-events-config=hwm --port 1", &[]);
        check("serve m --kv-events-config.buffer_steps", "serve m --kv-events-config=buffer_steps", &[]);
        check("serve m --kv-events-config {}", "serve m --kv-events-config {}", &[]);
        check("serve m --hf_overrides.a_b 1", "serve m", &["--hf-overrides.a_b 1"]);
        check("serve m --nonsense x", "serve m --nonsense x", &[]);
        check("serve m --max-model 8192", "serve m --max-model-len 8192", &[]);
        check("serve m --max_model=8192", "serve m --max-model-len=8192", &[]);
        check("serve m --no-enable-prefix", "serve m --enable-prefix-caching=false", &[]);
        check("serve m --enforce --port 1", "serve m --port 1", &["--enforce-eager"]);
        check("serve m --kv-events.topic x", "serve m --kv-events.topic x", &[]);
        check("serve m --max-n 8", "serve m --max-n 8", &[]);
        check("serve m --model x", "serve m --model x", &[]);
        check("check-trace a_b --c_d", "check-trace a_b --c_d", &[]);
    }

    #[test]
    fn no_flag_is_both_honoured_and_ignored() {
        assert!(IGNORED.is_sorted_by_key(|(name, ..)| *name));
        let program = Cli::command();
        let serve = program.find_subcommand("serve").unwrap();
        let dialect = Dialect::of(serve);
        assert!(dialect.switches.contains(&"enable-prefix-caching"));
        assert_eq!(dialect.objects, ["default-chat-template-kwargs", "kv-events-config"]);
        for (name, ..) in IGNORED {
            assert!(serve.get_arguments().all(|arg| arg.get_long() != Some(name)), "{name}");
            assert!(!name.contains('_'), "{name}");
        }
    }
}
