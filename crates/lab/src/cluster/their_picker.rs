//! The picker's own Deployment as a process of this machine: its container's command, variables, port and ConfigMaps.
//!
//! It must know nothing of what the program does with them. Two variables of the lab's tell the program what it would
//! ask a cluster's API server: the files with its pools and with their endpoints.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::{BodyMode, InferencePool, PickerRef};
use inference_api::port::TargetPort;
use inference_api::remark::Remark;
use inference_api::workload::{Container, Service, Workload};

use crate::cluster::mounts::{self, MountedFile};
use crate::cluster::picker_choice::PickerChoice;
use crate::cluster::picker_config::{OwnPicker, PickerConfigs};
use crate::cluster::process::Program;
use crate::cluster::refusal::Refusal;
use crate::cluster::run_files::RunFiles;
use crate::cluster::workload::env::{Env, Sources};

/// Variable with the path of the file of the picker's pools, and of the objects that refer to them.
const POOL_FILE: &str = "WARMPATH_POOL_FILE";
/// Variable with the path of the list of endpoints.
const ENDPOINTS_FILE: &str = "WARMPATH_ENDPOINTS_FILE";

/// A picker as its Deployment runs it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TheirPicker {
    kind: String,
    key: ObjectKey,
    /// First word of the command; `None` if the image decides.
    command: Option<String>,
    image: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// Port on which it serves ext_proc.
    pub(super) port: u16,
    /// How it takes bodies, as an annotation of its pool says.
    pub(super) body_mode: BodyMode,
    files: Vec<MountedFile>,
}

// === impl TheirPicker ===

impl TheirPicker {
    /// The picker of the pool, if its Deployment is among the files, and what of that has no effect.
    ///
    /// # Errors
    /// When its Service leads to no port of the pods, or an annotation of the pool has a value that is not known.
    pub(super) fn of(
        pool: &InferencePool,
        configs: &PickerConfigs<'_>,
        sources: &Sources<'_>,
    ) -> Result<Option<(Self, Vec<Remark>)>, Refusal> {
        let (Some(OwnPicker { service, workload, document }), Some(named)) =
            (configs.own_picker(pool), &pool.picker)
        else {
            return Ok(None);
        };
        let kind = workload.kind.as_str();
        let remark = |field: &str, effect: &str| Remark::new(kind, workload.meta.key(), field, effect);
        let port = port(service, named, workload)?;
        let containers = &workload.template.spec.containers;
        let declares =
            |container: &&Container| container.ports.iter().any(|declared| declared.container_port == port);
        let Some(container) = containers.iter().find(declares).or(containers.first()) else {
            return Ok(None);
        };
        let beside = containers.iter().filter(|other| other.name != container.name);
        let path = |name: &str| format!("spec.template.spec.containers[{name}]");
        let mut remarks: Vec<Remark> =
            beside.map(|other| remark(&path(&other.name), "it runs beside the picker")).collect();
        let own = path(&container.name);
        let env = Env::new(container, &workload.meta.namespace, sources);
        remarks
            .extend(env.unknown.iter().map(|field| remark(&format!("{own}.{field}"), "its value is known")));
        remarks.extend(
            container
                .probes()
                .map(|(name, _)| remark(&format!("{own}.{name}"), "the kubelet asks the container by it")),
        );
        let expanded =
            |words: &[String]| -> Vec<String> { words.iter().map(|word| env.expand(word)).collect() };
        let mut command = expanded(&container.command).into_iter();
        let picker = Self {
            kind: kind.to_owned(),
            key: workload.meta.key(),
            command: command.next(),
            image: container.image.clone().unwrap_or_default(),
            args: command.chain(expanded(&container.args)).collect(),
            env: env.all(),
            port,
            body_mode: body_mode(pool)?,
            files: mounts::files((document, &container.name), &configs.maps_of(&workload.meta.namespace)),
        };
        Ok(Some((picker, remarks)))
    }

    /// True if the program sees a file of the ConfigMap.
    pub(super) fn reads(&self, map: &ObjectKey) -> bool {
        self.key.namespace == map.namespace && self.files.iter().any(|file| file.map == map.name)
    }

    /// True for a field of the Deployment that the process follows, though no reader of objects knows it.
    pub(super) fn follows(&self, remark: &Remark) -> bool {
        remark.kind == self.kind
            && remark.key == self.key
            && (remark.field.ends_with(".volumeMounts") || remark.field.ends_with(".volumes"))
    }

    /// The program on this machine: the one that the choice names, or else the command.
    ///
    /// # Errors
    /// When there is no such file.
    pub(super) fn program(&self, choice: &PickerChoice) -> Result<PathBuf> {
        let given = match choice {
            PickerChoice::Ours => None,
            PickerChoice::Theirs { program } => program.as_deref(),
        };
        let way_out = "name its file with `--picker theirs=FILE`, or leave out `--picker` for the lab's own";
        if let Some(given) = given {
            return match given.is_file() {
                true => Ok(std::path::absolute(given)?),
                false => bail!("--picker theirs={}: there is no such file", given.display()),
            };
        }
        let Some(command) = self.command.as_ref().map(Path::new) else {
            bail!("the image of {self} ({}) decides which program it runs: {way_out}", self.image)
        };
        if command.is_absolute() && command.is_file() {
            return Ok(command.to_owned());
        }
        let name = command.file_name().unwrap_or_default();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
        found.with_context(|| {
            format!("the program of {self}, {}, is not on the PATH: {way_out}", command.display())
        })
    }

    /// Writes the files that the program reads, and returns its command line. `name` is the picker's, `group` that of
    /// its pools.
    ///
    /// # Errors
    /// When a file cannot be written, or [`TheirPicker::program`] fails.
    pub(super) fn prepare(
        &self,
        (choice, files): (&PickerChoice, &RunFiles),
        (name, group): (&str, &str),
        log: PathBuf,
    ) -> Result<Program> {
        let path = self.program(choice)?;
        let dir = files.picker_mounts(name);
        for MountedFile { path, text, .. } in &self.files {
            let file = dir.join(path.trim_start_matches('/'));
            let parent = file.parent().unwrap_or(&dir);
            std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        }
        let own = [(POOL_FILE, files.pools(group)), (ENDPOINTS_FILE, files.endpoints())];
        let own = own.map(|(name, file)| (name.to_owned(), file.display().to_string()));
        let here = |text: &String| {
            let text = moved(text, &self.files, &dir.display().to_string());
            own.iter().fold(text, |text, (name, file)| text.replace(&format!("$({name})"), file))
        };
        let env = self.env.iter().map(|(name, value)| (name.clone(), here(value)));
        Ok(Program {
            path,
            args: self.args.iter().map(here).collect(),
            env: env.chain(own.clone()).collect(),
            log,
        })
    }
}

impl fmt::Display for TheirPicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

fn body_mode(pool: &InferencePool) -> Result<BodyMode, Refusal> {
    let modes = [BodyMode::FullDuplexStreamed, BodyMode::Streamed].map(BodyMode::as_str).join("` or `");
    pool.picker_body_mode().map(Option::unwrap_or_default).map_err(|value| Refusal {
        kind: "InferencePool".to_owned(),
        key: pool.key(),
        what: format!("metadata.annotations[{}]: {value:?} is not `{modes}`", keys::PICKER_BODY_MODE),
    })
}

/// The port of the pods behind the Service's port that the pool names.
fn port(service: &Service, named: &PickerRef, workload: &Workload) -> Result<u16, Refusal> {
    let mut declared = workload.template.spec.containers.iter().flat_map(|container| &container.ports);
    let found = service.spec.ports.iter().find(|port| port.port == named.port).and_then(|found| match &found
        .target_port
    {
        None => Some(found.port),
        Some(TargetPort::Number(number)) => Some(*number),
        Some(TargetPort::Name(name)) => declared
            .find(|declared| declared.name.as_ref() == Some(name))
            .map(|declared| declared.container_port),
    });
    found.ok_or_else(|| Refusal {
        kind: "Service".to_owned(),
        key: service.meta.key(),
        what: format!(
            "spec.ports: port {}, which the pool names, leads to no port of {} {}",
            named.port,
            workload.kind.as_str(),
            workload.meta.key()
        ),
    })
}

/// Puts `dir` before the paths in `text` at which `files` are mounted.
fn moved(text: &str, files: &[MountedFile], dir: &str) -> String {
    let is_of_a_path = |found: char| found.is_alphanumeric() || "_-./".contains(found);
    let mut roots: Vec<&str> = files.iter().map(|file| file.root.as_str()).collect();
    roots.sort_unstable();
    roots.dedup();
    let mut moved = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('/') {
        let (before, path) = rest.split_at(start);
        moved.push_str(before);
        let end = path.find(|found| !is_of_a_path(found)).unwrap_or(path.len());
        let (path, after) = path.split_at(end);
        let is_below = |root: &&str| {
            path.strip_prefix(root).is_some_and(|below| below.is_empty() || below.starts_with('/'))
        };
        if !moved.ends_with(is_of_a_path) && roots.iter().any(is_below) {
            moved.push_str(dir);
        }
        moved.push_str(path);
        rest = after;
    }
    moved + rest
}

#[cfg(test)]
mod tests {
    use super::{MountedFile, moved};

    #[test]
    fn paths_below_a_mount_are_moved_and_no_others() {
        let file = MountedFile {
            root: "/config".to_owned(),
            path: "/config/a.yaml".to_owned(),
            map: "m".to_owned(),
            text: String::new(),
        };
        for (text, expected) in [
            ("/config/a.yaml", "/run/config/a.yaml"),
            ("--config-file=/config/a.yaml", "--config-file=/run/config/a.yaml"),
            ("cat /config; cat \"/config/b\"", "cat /run/config; cat \"/run/config/b\""),
            (
                "/configs/a /etc/config/a ./config http://config/a",
                "/configs/a /etc/config/a ./config http://config/a",
            ),
        ] {
            assert_eq!(moved(text, std::slice::from_ref(&file), "/run"), expected, "{text}");
        }
    }
}
