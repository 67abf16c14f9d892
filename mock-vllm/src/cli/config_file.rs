//! `serve --config FILE`: reads flags from a YAML file and puts them before those of the command line, so that the
//! command line wins.

use serde_json::{Map, Value};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

const FLAG: &str = "--config";

#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigFileError {
    #[error("--config needs a file")]
    NoFile,
    #[error("--config can be given once only")]
    Twice,
    #[error("config file must be of a yaml/yml type, got {0}")]
    NotYaml(PathBuf),
    #[error("cannot read {path}: {source}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    Invalid { path: PathBuf, reason: String },
}

/// Replaces `--config` by the flags in its file. Commands other than `serve` stay as they are.
///
/// # Errors
/// Fails if the file cannot be read or is not a map of flags.
pub(super) fn expand(args: Vec<OsString>) -> Result<Vec<OsString>, ConfigFileError> {
    if args.get(1).is_none_or(|command| command != "serve") {
        return Ok(args);
    }
    let (mut file, mut kept) = (None, Vec::with_capacity(args.len()));
    let mut rest = args.into_iter();
    while let Some(arg) = rest.next() {
        let text = arg.to_string_lossy();
        let path = match text.split_once('=') {
            Some((FLAG, path)) => OsString::from(path),
            None if text == FLAG => rest.next().ok_or(ConfigFileError::NoFile)?,
            Some(_) | None => {
                kept.push(arg);
                continue;
            }
        };
        if file.replace(PathBuf::from(path)).is_some() {
            return Err(ConfigFileError::Twice);
        }
    }
    let Some(path) = file else { return Ok(kept) };
    let settings = read(&path)?;
    // A model that is named first must not end up behind a flag that takes several values.
    let has_model = kept.get(2).is_some_and(|arg| !arg.to_string_lossy().starts_with('-'));
    let rest = kept.split_off(if has_model { 3 } else { 2 });
    for (name, value) in settings {
        if name == "model" && has_model {
            continue;
        }
        push(&mut kept, &name, &value)
            .map_err(|reason| ConfigFileError::Invalid { path: path.clone(), reason })?;
    }
    kept.extend(rest);
    Ok(kept)
}

fn read(path: &Path) -> Result<Map<String, Value>, ConfigFileError> {
    if path.extension().is_none_or(|extension| extension != "yaml" && extension != "yml") {
        return Err(ConfigFileError::NotYaml(path.to_owned()));
    }
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigFileError::Unreadable { path: path.to_owned(), source })?;
    serde_saphyr::from_str(&text)
        .map_err(|error| ConfigFileError::Invalid { path: path.to_owned(), reason: error.to_string() })
}

/// Appends one setting as a flag: a switch has no value, a list becomes several values, a map becomes JSON.
fn push(args: &mut Vec<OsString>, name: &str, value: &Value) -> Result<(), String> {
    let flag = format!("--{}", name.replace('_', "-"));
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => Ok(value.to_string()),
        Value::Null | Value::Array(_) => Err(format!("{name}: {value} is no value of a flag")),
    };
    match value {
        Value::Null => {}
        Value::Bool(true) => args.push(flag.into()),
        Value::Bool(false) => args.push(format!("--no-{}", &flag[2..]).into()),
        Value::Array(items) => {
            args.push(flag.into());
            for item in items {
                args.push(scalar(item)?.into());
            }
        }
        Value::String(_) | Value::Number(_) | Value::Object(_) => {
            args.push(format!("{flag}={}", scalar(value)?).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::expand;
    use std::ffi::OsString;

    /// Checks the arguments that come of `line`, in which `FILE` is a file that holds `yaml`.
    #[track_caller]
    fn check(yaml: &str, line: &str, expected: Result<&str, &str>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, yaml).unwrap();
        let args = line.split(' ').map(|arg| OsString::from(arg.replace("FILE", file.to_str().unwrap())));
        let expanded = expand(args.collect()).map_err(|error| error.to_string());
        let joined = expanded.map(|args| args.join(std::ffi::OsStr::new(" ")).into_string().unwrap());
        match (joined, expected) {
            (Ok(joined), Ok(expected)) => assert_eq!(joined, expected),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (result, _) => panic!("{result:?}"),
        }
    }

    #[test]
    fn a_file_goes_before_the_flags() {
        let yaml = "port: 1\nmax_model_len: 4k\nenforce-eager: true\nenable-prefix-caching: false\n\
            served-model-name: [a, b]\nkv-events-config: {topic: x}\nseed: null\n";
        let flags = "--port=1 --max-model-len=4k --enforce-eager --no-enable-prefix-caching --served-model-name a b \
            --kv-events-config={\"topic\":\"x\"}";
        check(yaml, "m serve --config FILE --port 2", Ok(&format!("m serve {flags} --port 2")));
        check(yaml, "m serve model --port 2 --config=FILE", Ok(&format!("m serve model {flags} --port 2")));
        check("model: x\nport: 1", "m serve --config FILE", Ok("m serve --model=x --port=1"));
        check("model: x\nport: 1", "m serve y --config FILE", Ok("m serve y --port=1"));
    }

    #[test]
    fn other_commands_have_no_such_flag() {
        let args: Vec<OsString> = ["m", "check-trace", "--config", "x"].map(OsString::from).to_vec();
        assert_eq!(expand(args.clone()).unwrap(), args);
    }

    #[test]
    fn errors_name_what_is_wrong() {
        check("", "m serve --config", Err("needs a file"));
        check("", "m serve --config FILE --config FILE", Err("once"));
        check("", "m serve --config x.json", Err("yaml/yml type, got x.json"));
        check("", "m serve --config /nowhere.yml", Err("/nowhere.yml"));
        check("- a", "m serve --config FILE", Err("config.yaml"));
        check("stop: [[1]]", "m serve --config FILE", Err("stop: [1]"));
    }
}
