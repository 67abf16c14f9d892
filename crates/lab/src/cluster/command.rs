//! Translates a container's command line to the engine's: the Deployment's own `vllm serve …`.

use anyhow::{Context as _, Result, bail};
use inference_api::workload::Container;

/// Default of vLLM's `--port`.
const DEFAULT_PORT: u16 = 8000;

/// The command that a container runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EngineCommand {
    /// Arguments from `serve` on.
    pub(super) args: Vec<String>,
    /// Port on which it would serve in a cluster.
    pub(super) port: u16,
}

impl EngineCommand {
    /// Reads `["vllm", "serve", …]` or `["sh", "-c", "vllm serve …"]`.
    ///
    /// # Errors
    /// When the command is anything else, because the mock could not replace it.
    pub(super) fn parse(container: &Container) -> Result<Self> {
        let words: Vec<String> = container.command.iter().chain(&container.args).cloned().collect();
        let words = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => bail!("it has no command, and the entry point of an image cannot be run here"),
            [shell, flag, script] if is_shell(shell) && is_command_flag(flag) => split(script)?,
            [shell, ..] if is_shell(shell) => bail!("a shell must be run as `sh -c \"vllm serve …\"`"),
            _ => words,
        };
        let mut args: Vec<String> = words.iter().skip_while(|word| *word == "exec").cloned().collect();
        let is_vllm = args.first().is_some_and(|program| program.rsplit('/').next() == Some("vllm"));
        if !is_vllm || args.get(1).map(String::as_str) != Some("serve") {
            bail!("only `vllm serve …` can be run here, not `{}`", shell_words::join(&args));
        }
        args.remove(0);
        let port = port(&args)?;
        Ok(Self { args, port })
    }
}

fn is_shell(word: &str) -> bool {
    matches!(word.rsplit('/').next(), Some("sh" | "bash" | "dash"))
}

fn is_command_flag(word: &str) -> bool {
    matches!(word, "-c" | "-ec" | "-lc" | "-xc" | "-exc")
}

fn split(script: &str) -> Result<Vec<String>> {
    let script = script.replace("\\\n", " ");
    let script = script.trim();
    if let Some(found) = script.chars().find(|found| ";|&<>$`\n".contains(*found)) {
        bail!("{found:?} in the shell script: only one plain command can be run here");
    }
    shell_words::split(script).context("parse the shell script")
}

/// Returns the value of the last `--port`, which is the one that vLLM uses.
fn port(args: &[String]) -> Result<u16> {
    let mut port = DEFAULT_PORT;
    for (idx, arg) in args.iter().enumerate() {
        let value = match arg.strip_prefix("--port") {
            Some("") => args.get(idx + 1).map(String::as_str).unwrap_or_default(),
            Some(rest) if rest.starts_with('=') => &rest[1..],
            Some(_) | None => continue,
        };
        port = value.parse().with_context(|| format!("--port {value}"))?;
    }
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::EngineCommand;

    fn check(command: &str, expected: Result<(&str, u16), &str>) {
        let container: inference_api::workload::Container =
            serde_saphyr::from_str(&format!("name: vllm\ncommand: {command}")).unwrap();
        let parsed = EngineCommand::parse(&container)
            .map(|command| (command.args.join(" "), command.port))
            .map_err(|error| format!("{error:#}"));
        match (parsed, expected) {
            (Ok((args, port)), Ok(expected)) => assert_eq!((args.as_str(), port), expected),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (parsed, expected) => panic!("{parsed:?} is not {expected:?}"),
        }
    }

    #[test]
    fn shell_and_exec_form() {
        check(r#"[sh, -c, "vllm serve /m --port 8001"]"#, Ok(("serve /m --port 8001", 8001)));
        check(r#"[/bin/bash, -c, "exec vllm serve '/a b' --port=9"]"#, Ok(("serve /a b --port=9", 9)));
        check(r"[vllm, serve, /m]", Ok(("serve /m", 8000)));
        check(
            r#"["/usr/bin/vllm", serve, /m, --port, "1", --port, "2"]"#,
            Ok(("serve /m --port 1 --port 2", 2)),
        );
    }

    #[test]
    fn anything_else_is_refused() {
        check("[]", Err("has no command"));
        check("[sh, -c, sleep inf]", Err("not `sleep inf`"));
        check("[python3, -m, vllm.entrypoints.openai.api_server]", Err("only `vllm serve …`"));
        check(r#"[sh, -c, "cd /x && vllm serve /m"]"#, Err("'&' in the shell script"));
        check(r#"[sh, -c, "vllm serve $MODEL"]"#, Err("'$' in the shell script"));
        check("[sh, /start.sh]", Err("sh -c"));
        check(r#"[vllm, serve, /m, --port, many]"#, Err("--port many"));
    }
}
