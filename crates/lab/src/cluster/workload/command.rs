//! Translates a container's command line to the mock engine's.
//!
//! Three programs are known: vLLM, llm-d's simulator of it, and SGLang. Any other program is not an engine, as far as
//! anybody can see from here.

use anyhow::{Context as _, Result, bail};
use inference_api::workload::Container;
use serde_json::Value;

use crate::cluster::workload::env::Env;
use crate::cluster::workload::shell;

/// Default of vLLM's `--port`, and of the simulator's.
const VLLM_PORT: u16 = 8000;
/// Default of SGLang's `--port`.
const SGLANG_PORT: u16 = 30000;
/// Words that come before a program and change nothing of it here.
const PREFIXES: [&str; 16] = [
    "exec",
    "env",
    "nohup",
    "nice",
    "time",
    "then",
    "do",
    "else",
    "if",
    "{",
    "tini",
    "dumb-init",
    "uv",
    "sudo",
    "numactl",
    "timeout",
];

/// Flags of the simulator that the mock has, with the mock's names.
const OF_SIMULATOR: [(&str, &str); 10] = [
    ("model", "model"),
    ("served-model-name", "served-model-name"),
    ("port", "port"),
    ("lora-modules", "lora-modules"),
    ("max-loras", "max-loras"),
    ("max-cpu-loras", "max-cpu-loras"),
    ("max-model-len", "max-model-len"),
    ("max-num-seqs", "max-num-seqs"),
    ("block-size", "block-size"),
    ("kv-cache-size", "num-gpu-blocks-override"),
];

/// Flags of vLLM that name files or models of the image. The mock has its own, unless it knows the tokenizer.
const OF_IMAGE: [&str; 4] = ["chat-template", "tokenizer", "tool-parser-plugin", "reasoning-parser-plugin"];
/// Tokenizers that the mock has.
const TOKENIZERS: [&str; 2] = ["qwen2.5", "qwen3"];
/// Longest prompt and answer of the simulator, if no flag says it.
const SIMULATOR_MODEL_LEN: &str = "1024";

/// Flag without which SGLang has no metrics.
pub(super) const ENABLE_METRICS: &str = "enable-metrics";

/// Flags of SGLang that the mock has, with the mock's names.
const OF_SGLANG: [(&str, &str); 9] = [
    ("model-path", "model"),
    ("model", "model"),
    ("served-model-name", "served-model-name"),
    ("port", "port"),
    ("tp", "tensor-parallel-size"),
    ("tp-size", "tensor-parallel-size"),
    ("tensor-parallel-size", "tensor-parallel-size"),
    ("context-length", "max-model-len"),
    ("max-running-requests", "max-num-seqs"),
];

/// The command that a pod of the lab runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cluster) struct EngineCommand {
    /// Arguments from `serve` on.
    pub(in crate::cluster) args: Vec<String>,
    /// Variables of the engine's environment.
    pub(in crate::cluster) env: Vec<(String, String)>,
    /// Port on which it would serve in a cluster.
    pub(in crate::cluster) port: u16,
    pub(in crate::cluster) program: Engine,
}

/// The program that a container runs on a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) enum Engine {
    Vllm,
    Simulator,
    Sglang,
    /// A program that nothing here knows; the mock answers in its place, for any model.
    Other,
}

/// A command, and the parts of the container's own that it leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cluster) struct Translated {
    pub(in crate::cluster) command: EngineCommand,
    /// Flags and commands without effect here.
    pub(in crate::cluster) left_out: Vec<String>,
}

impl EngineCommand {
    /// Reads the command line of a container; `None` if it runs no engine that is known.
    ///
    /// # Errors
    /// When it runs an engine in a way that cannot be followed.
    pub(in crate::cluster) fn parse(container: &Container, env: &Env) -> Result<Option<Translated>> {
        let expanded =
            |words: &[String]| -> Vec<String> { words.iter().map(|word| env.expand(word)).collect() };
        let (command, args) = (expanded(&container.command), expanded(&container.args));
        let image = container.image.as_deref().unwrap_or_default();
        let words = if command.is_empty() { entry_point(image, args) } else { [command, args].concat() };
        let mut left_out = Vec::new();
        let words = match script(&words) {
            None => words,
            Some(script) => {
                let (mut engines, others): (Vec<_>, Vec<_>) =
                    shell::commands(script, env).into_iter().partition(|words| recognise(words).is_some());
                if engines.len() > 1 {
                    bail!("the shell script runs several engines, and only one can be run here");
                }
                left_out.extend(others.iter().map(|words| format!("`{}`", words.join(" "))));
                engines.pop().unwrap_or_default()
            }
        };
        let Some((program, args)) = recognise(&words) else { return Ok(None) };
        Ok(Some(translate(program, args, env, left_out)?))
    }

    /// Serves these LoRA adapters from the start, if the engine takes adapters and names none itself.
    pub(in crate::cluster) fn load(&mut self, adapters: &[String]) {
        let has = |name: &str| flags(&self.args).iter().any(|flag| flag.name == name);
        if !adapters.is_empty() && self.program == Engine::Vllm && has("enable-lora") && !has("lora-modules")
        {
            self.args.push("--lora-modules".to_owned());
            self.args.extend_from_slice(adapters);
        }
    }

    /// The mock in place of a program that is not known. Its model has the name that the command line gives it.
    pub(in crate::cluster) fn stand_in(container: &Container, env: &Env, port: u16) -> Self {
        let words: Vec<String> =
            container.command.iter().chain(&container.args).map(|word| env.expand(word)).collect();
        let flags = flags(&words);
        let named = |name: &str| flags.iter().find(|flag| flag.name == name)?.values.first().cloned();
        let model =
            named("served-model-name").or_else(|| named("model")).unwrap_or_else(|| container.name.clone());
        let args = vec!["serve".to_owned(), model, "--any-model=true".to_owned()];
        Self { args, env: Vec::new(), port, program: Engine::Other }
    }
}

/// The command line of an image whose entry point is known, from the arguments.
fn entry_point(image: &str, args: Vec<String>) -> Vec<String> {
    let is_flag = args.first().is_none_or(|first| first.starts_with('-'));
    let program: &[&str] = if image.contains("llm-d-inference-sim") {
        &["llm-d-inference-sim"]
    } else if image.contains("vllm") && args.first().is_some_and(|first| first == "serve") {
        &["vllm"]
    } else if image.contains("vllm") && !args.is_empty() && (is_flag || recognise(&args).is_none()) {
        &["vllm", "serve"]
    } else if image.contains("sglang") && is_flag {
        &["sglang", "serve"]
    } else {
        &[]
    };
    program.iter().map(|word| (*word).to_owned()).chain(args).collect()
}

/// The script of `sh -c SCRIPT`.
fn script(words: &[String]) -> Option<&str> {
    let is_shell = |words: &[String]| matches!(file_name(&words[0]), "sh" | "bash" | "dash" | "ash" | "zsh");
    let (_, rest) = wrapped(words, |words| is_shell(words).then_some(words))?.split_first()?;
    let idx = rest.iter().position(|word| word.starts_with('-') && word.ends_with('c'))?;
    rest.get(idx + 1).map(String::as_str)
}

/// The engine that the words run, and its arguments.
fn recognise(words: &[String]) -> Option<(Engine, &[String])> {
    wrapped(words, engine)
}

/// Returns what `of` finds at the first word, or, if that is a prefix or an assignment, behind it and its operands.
fn wrapped<'w, T>(words: &'w [String], of: impl Fn(&'w [String]) -> Option<T>) -> Option<T> {
    let is_prefix =
        |word: &String| PREFIXES.contains(&file_name(word)) || (word.contains('=') && !word.starts_with('-'));
    let n_starts = if words.first().is_some_and(is_prefix) { words.len() } else { words.len().min(1) };
    (0..n_starts).find_map(|start| of(&words[start..]))
}

/// The engine whose program is the first word, and its arguments.
fn engine(words: &[String]) -> Option<(Engine, &[String])> {
    let (program, args) = words.split_first()?;
    let is_first = |name: &str| args.first().is_some_and(|first| first == name);
    match file_name(program) {
        "vllm" if is_first("serve") => Some((Engine::Vllm, &args[1..])),
        "sglang" if is_first("serve") => Some((Engine::Sglang, &args[1..])),
        "llm-d-inference-sim" => Some((Engine::Simulator, args)),
        python if python.starts_with("python") => {
            let n_options = args.iter().take_while(|arg| arg.starts_with('-') && *arg != "-m").count();
            module(&args[n_options..])
        }
        _ => None,
    }
}

/// The engine of `-m MODULE …` or of the module's file.
fn module(args: &[String]) -> Option<(Engine, &[String])> {
    let (name, rest) = match args {
        [flag, name, rest @ ..] if flag == "-m" => (name.as_str(), rest),
        [file, rest @ ..] => (file.as_str(), rest),
        [] => return None,
    };
    let is_main = rest.first().is_some_and(|first| first == "serve");
    match name {
        "vllm.entrypoints.openai.api_server" => Some((Engine::Vllm, rest)),
        "vllm.entrypoints.cli.main" if is_main => Some((Engine::Vllm, &rest[1..])),
        file if file.ends_with("vllm/entrypoints/openai/api_server.py") => Some((Engine::Vllm, rest)),
        "sglang.launch_server" => Some((Engine::Sglang, rest)),
        _ => None,
    }
}

fn file_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

fn translate(program: Engine, args: &[String], env: &Env, mut left_out: Vec<String>) -> Result<Translated> {
    let mut command =
        EngineCommand { args: vec!["serve".to_owned()], env: Vec::new(), port: VLLM_PORT, program };
    let known: &[(&str, &str)] = match program {
        Engine::Vllm | Engine::Other => {
            command.args.extend(without_files(args, &mut left_out));
            command.env = env.of_vllm();
            &[]
        }
        Engine::Simulator => &OF_SIMULATOR,
        Engine::Sglang => {
            command.port = SGLANG_PORT;
            command.args.extend(["--model-server-runtime".to_owned(), "sglang".to_owned()]);
            &OF_SGLANG
        }
    };
    // SGLang takes the model without a flag, too.
    command.args.extend(args.first().filter(|arg| !known.is_empty() && !arg.starts_with('-')).cloned());
    for Flag { name, values } in if known.is_empty() { Vec::new() } else { flags(args) } {
        match known.iter().find(|(own, _)| *own == name) {
            Some((_, mocks)) if *mocks == "lora-modules" => {
                command.args.extend(["--enable-lora".to_owned(), format!("--{mocks}")]);
                command.args.extend(values.iter().map(|module| with_path(module)));
            }
            Some((_, mocks)) => {
                command.args.push(format!("--{mocks}"));
                command.args.extend(values);
            }
            // The lab chooses the address, and the mock always has metrics.
            None if name == "host" || name == ENABLE_METRICS => {}
            None => left_out.push(format!("--{name}")),
        }
    }
    let has = |name: &str| command.args.iter().any(|arg| arg == name);
    // The mock's own default would need a larger cache.
    if program == Engine::Simulator && has("--num-gpu-blocks-override") && !has("--max-model-len") {
        command.args.extend(["--max-model-len", SIMULATOR_MODEL_LEN].map(str::to_owned));
    }
    command.port = port(&command.args, command.port)?;
    Ok(Translated { command, left_out })
}

/// The arguments without flags that name files of the image, which are added to `left_out`.
fn without_files(args: &[String], left_out: &mut Vec<String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        let flag = arg.strip_prefix("--").unwrap_or_default();
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let name = name.replace('_', "-");
        let found = value.or_else(|| args.peek().map(|next| next.as_str())).unwrap_or_default();
        // A template may also be written out.
        let is_here =
            TOKENIZERS.iter().any(|known| found.to_lowercase().contains(known)) || found.contains('{');
        if !OF_IMAGE.contains(&name.as_str()) || is_here {
            kept.push(arg.clone());
            continue;
        }
        left_out.push(format!("--{name}"));
        args.next_if(|_| value.is_none());
    }
    kept
}

/// A flag and the words up to the next one.
struct Flag {
    name: String,
    values: Vec<String>,
}

fn flags(args: &[String]) -> Vec<Flag> {
    let mut flags: Vec<Flag> = Vec::new();
    for arg in args {
        match (arg.strip_prefix("--"), flags.last_mut()) {
            (Some(flag), _) => {
                let (name, value) =
                    flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
                let values = value.map(str::to_owned).into_iter().collect();
                flags.push(Flag { name: name.replace('_', "-"), values });
            }
            (None, Some(flag)) => flag.values.push(arg.clone()),
            (None, None) => {}
        }
    }
    flags
}

/// An adapter in vLLM's form, which has a path; the simulator's may have a name only.
fn with_path(module: &str) -> String {
    match serde_json::from_str(module) {
        Ok(Value::Object(mut fields)) if !fields.contains_key("path") => {
            let name = fields.get("name").cloned().unwrap_or_default();
            fields.insert("path".to_owned(), name);
            Value::Object(fields).to_string()
        }
        Ok(_) | Err(_) => module.to_owned(),
    }
}

/// Returns the value of the last `--port`, which is the one that vLLM uses.
fn port(args: &[String], default: u16) -> Result<u16> {
    let mut port = default;
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
    use inference_api::workload::Container;

    use super::{EngineCommand, Env};

    /// Compares arguments and port, or a part of the error; `-` is a container without a known engine.
    fn check(container: &str, expected: Result<(&str, u16), &str>) {
        let container: Container = serde_saphyr::from_str(&format!("name: engine\n{container}")).unwrap();
        let env = Env::new(&container, "default", &super::super::env::Sources::default());
        let parsed = EngineCommand::parse(&container, &env).map_err(|error| format!("{error:#}"));
        let parsed = parsed.map(|parsed| match parsed {
            Some(parsed) => (parsed.command.args.join(" "), parsed.command.port),
            None => ("-".to_owned(), 0),
        });
        match (parsed, expected) {
            (Ok((args, port)), Ok(expected)) => assert_eq!((args.as_str(), port), expected),
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (parsed, expected) => panic!("{parsed:?} is not {expected:?}"),
        }
    }

    #[test]
    fn shell_and_exec_form() {
        check(r#"command: [sh, -c, "vllm serve /m --port 8001"]"#, Ok(("serve /m --port 8001", 8001)));
        check(
            r#"command: [/bin/bash, -c, "exec vllm serve '/a b' --port=9"]"#,
            Ok(("serve /a b --port=9", 9)),
        );
        check("command: [vllm, serve, /m]", Ok(("serve /m", 8000)));
        check(
            r#"command: ["/usr/bin/vllm", serve, /m, --port, "1", --port, "2"]"#,
            Ok(("serve /m --port 1 --port 2", 2)),
        );
    }

    #[test]
    fn the_module_and_the_entry_points_of_images() {
        let served = Ok(("serve --model m --port 8001", 8001));
        check(
            "command: [python3, -m, vllm.entrypoints.openai.api_server]\nargs: [--model, m, --port, '8001']",
            served,
        );
        check(
            "command: [python, -u, -m, vllm.entrypoints.openai.api_server, --model, m, --port, '8001']",
            served,
        );
        check("image: vllm/vllm-openai:v0.11.0\nargs: [--model, m, --port, '8001']", served);
        check("image: vllm/vllm-openai:v0.11.0\nargs: [m]", Ok(("serve m", 8000)));
        check("image: vllm/vllm-openai:v0.11.0\nargs: [serve, m]", Ok(("serve m", 8000)));
        check("image: registry/vllm:1\nargs: [vllm, serve, m]", Ok(("serve m", 8000)));
        check("image: nginx\nargs: [--model, m]", Ok(("-", 0)));
    }

    #[test]
    fn shell_wrappers_of_one_engine() {
        check(
            r#"command: [sh, -c]
args: ["set -e\ncd /x && export M=m\nexec vllm serve $M --port ${PORT:-8001} 2>&1 | tee /log"]"#,
            Ok(("serve m --port 8001", 8001)),
        );
        check(
            r#"command: [bash, -ec, "vllm serve \"$MODEL\" $EXTRA"]
env: [{name: MODEL, value: a b}, {name: EXTRA, value: --port 7}]"#,
            Ok(("serve a b --port 7", 7)),
        );
        check(r#"command: [sh, -c, "vllm serve a & vllm serve b"]"#, Err("several engines"));
        for wrapper in ["[/usr/bin/env, A=b", "[tini, --", "[uv, run", "[/usr/bin/timeout, '9'"] {
            check(&format!("command: {wrapper}, vllm, serve, m]"), Ok(("serve m", 8000)));
            check(&format!("command: {wrapper}, bash, -c, 'vllm serve m']"), Ok(("serve m", 8000)));
        }
        check("command: [echo, vllm, serve, m]", Ok(("-", 0)));
    }

    #[test]
    fn variables_are_expanded_before_anything_is_read() {
        check(
            "command: [vllm, serve]\nargs: [$(MODEL), --port=$(PORT), $(NONE)]\nenv: [{name: MODEL, value: m}, {name: PORT, value: '9'}]",
            Ok(("serve m --port=9 $(NONE)", 9)),
        );
    }

    #[test]
    fn the_simulators_flags_become_the_mocks() {
        check(
            r#"image: ghcr.io/llm-d/llm-d-inference-sim:v0.4.0
args: [--model, m, --port, "8200", --max-loras, "2", --lora-modules, '{"name": "a"}', '{"name": "b", "path": "p"}', --time-to-first-token=10ms]"#,
            Ok((
                r#"serve --model m --port 8200 --max-loras 2 --enable-lora --lora-modules {"name":"a","path":"a"} {"name": "b", "path": "p"}"#,
                8200,
            )),
        );
        check("command: [/app/llm-d-inference-sim, --model=m]", Ok(("serve --model m", 8000)));
        let small = "serve --model m --num-gpu-blocks-override 512 --max-model-len 1024";
        check("command: [llm-d-inference-sim, --model, m, --kv-cache-size=512]", Ok((small, 8000)));
    }

    #[test]
    fn sglangs_flags_become_vllms() {
        check(
            "command: [python3, -m, sglang.launch_server]\nargs: [--model-path=m, --host=0.0.0.0, --tp, '2', --enable-metrics]",
            Ok(("serve --model-server-runtime sglang --model m --tensor-parallel-size 2", 30000)),
        );
        check(
            "image: lmsysorg/sglang:latest\nargs: [--model-path, m, --port, '8000']",
            Ok(("serve --model-server-runtime sglang --model m --port 8000", 8000)),
        );
    }

    #[test]
    fn what_is_left_out_is_listed() {
        let container =
            r#"{name: a, command: [sh, -c, "echo hi; llm-d-inference-sim --model m --mode=echo --v 5"]}"#;
        let container: Container = serde_saphyr::from_str(container).unwrap();
        let translated = EngineCommand::parse(&container, &Env::default()).unwrap().unwrap();
        assert_eq!(translated.left_out, ["`echo hi`", "--mode", "--v"]);
    }

    #[test]
    fn files_of_the_image_are_left_out() {
        let container =
            "{name: a, command: [vllm, serve, m, --chat-template, /x.jinja, --tokenizer=org/m, --port, '9']}";
        let container: Container = serde_saphyr::from_str(container).unwrap();
        let translated = EngineCommand::parse(&container, &Env::default()).unwrap().unwrap();
        assert_eq!(translated.command.args.join(" "), "serve m --port 9");
        assert_eq!(translated.left_out, ["--chat-template", "--tokenizer"]);
        let kept = "serve m --chat-template {{ messages }} --tokenizer Qwen/Qwen3-8B";
        check(
            "command: [vllm, serve, m, --chat-template, '{{ messages }}', --tokenizer, Qwen/Qwen3-8B]",
            Ok((kept, 8000)),
        );
    }

    #[test]
    fn anything_else_is_no_engine() {
        for container in [
            "image: nginx",
            "command: [sh, -c, sleep inf]",
            "command: [sh, /start.sh]",
            "command: [python3, app.py, --model, m]",
            "command: [vllm, bench]",
        ] {
            check(container, Ok(("-", 0)));
        }
        check("command: [vllm, serve, /m, --port, many]", Err("--port many"));
    }

    #[test]
    fn the_mock_stands_in_under_the_name_that_the_command_line_gives() {
        let stand_in = |container: &str| {
            let container: Container = serde_saphyr::from_str(container).unwrap();
            EngineCommand::stand_in(&container, &Env::default(), 3000).args.join(" ")
        };
        assert_eq!(stand_in("{name: echo}"), "serve echo --any-model=true");
        assert_eq!(stand_in("{name: a, command: [app, --model=m]}"), "serve m --any-model=true");
    }
}
