//! Picker processes: for each picker that the pools name, as many as the options ask for, with its pools and models.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::time::{sleep, timeout};

use crate::cluster::authority::picker_host;
use crate::cluster::desired::DesiredPicker;
use crate::cluster::greeting::{Security, until_greeted};
use crate::cluster::local::{Action, CommandReply, Job, Local, TAIL_LINES, describe};
use crate::cluster::process::{Process, Program};
use crate::cluster::relay::{Passage, Relay};
use crate::cluster::their_picker::TheirPicker;
use crate::cluster::{log_tail, ports};

/// Wait before a picker that ended unexpectedly is started again.
const BACKOFF: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct PickerProcess {
    pub(super) name: String,
    /// Name of the picker in the pools.
    pub(super) group: String,
    /// Number of this process among those of the same picker, from 0.
    replica: u32,
    grpc: SocketAddr,
    /// Claim on the port of a user's picker; a port of [`ports::free`] needs none.
    _claim: Option<ports::Claim>,
    /// The relay to which Envoy connects in place of the process.
    relay: Option<Relay>,
    pub(super) health: SocketAddr,
    pub(super) metrics: SocketAddr,
    pub(super) log: PathBuf,
    pub(super) program: PickerProgram,
    pub(super) state: PickerState,
}

/// The program of a picker since its last start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PickerProgram {
    Ours,
    /// The user's, and what its connections are, as far as it has been seen.
    Theirs(Security),
}

#[derive(Debug)]
pub(super) enum PickerState {
    /// The process runs. `start` is unique among all starts.
    Running { process: Process, start: u64, ready: bool, _probe: Job },
    /// The process drains; a new one will get its ports.
    Draining { process: Process },
    /// The process is being killed; a new one will get its ports.
    Restarting,
    /// The process is being killed on purpose and stays down; the reply is sent when it is gone.
    Killed { reply: Option<CommandReply> },
    /// The process has not started yet, or has ended unexpectedly and waits to be started again.
    Waiting,
    /// The next reconciliation starts the process.
    Due,
}

impl PickerProcess {
    /// Address at which Envoy reaches the picker.
    pub(super) fn address(&self) -> SocketAddr {
        self.relay.as_ref().map_or(self.grpc, Relay::address)
    }

    /// True if a relay is between Envoy and the picker, so that they speak without TLS.
    pub(super) fn is_relayed(&self) -> bool {
        self.relay.is_some()
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, PickerState::Running { ready: true, .. })
    }

    /// True if the picker is ready or down on purpose.
    pub(super) fn is_settled(&self) -> bool {
        self.is_ready() || matches!(self.state, PickerState::Killed { .. })
    }
}

impl Local {
    /// Gives every picker in the manifests its ports. Pickers that are no longer in the manifests stay until
    /// [`Local::reconcile_pickers`] ends them.
    pub(super) fn plan_pickers(&mut self) -> Result<()> {
        for DesiredPicker { name: group, theirs, .. } in &self.desired.pickers {
            // The processes of a Deployment would want the same port.
            let n_pickers = if theirs.is_some() { 1 } else { self.n_pickers };
            for replica in 0..n_pickers {
                let name = if replica == 0 {
                    group.clone()
                } else {
                    format!("{group}-{}", replica.saturating_add(1))
                };
                if self.pickers.iter().any(|picker| picker.name == name) {
                    continue;
                }
                self.authority.write_identity(&self.files.identity(&name), &picker_host(group))?;
                let (grpc, claim, program) = match theirs {
                    None => (ports::free()?, None, PickerProgram::Ours),
                    Some(theirs) => {
                        let claim = self.claim_port_of(theirs)?;
                        (ports::local(theirs.port), Some(claim), PickerProgram::Theirs(Security::Tls))
                    }
                };
                self.pickers.push(PickerProcess {
                    group: group.clone(),
                    replica,
                    grpc,
                    _claim: claim,
                    relay: None,
                    health: ports::free()?,
                    metrics: ports::free()?,
                    log: self.files.logs().join(format!("{name}.log")),
                    program,
                    name,
                    state: PickerState::Due,
                });
            }
        }
        Ok(())
    }

    /// Claims the port on which a picker of the user's will listen, if its program is at hand.
    fn claim_port_of(&self, theirs: &TheirPicker) -> Result<ports::Claim> {
        theirs.program(&self.options.picker)?;
        ports::Claim::port(theirs.port)?.with_context(|| {
            format!(
                "port {} is taken, on which the picker of {theirs} listens: end what has it, or change the port in the files",
                theirs.port
            )
        })
    }

    /// Puts a relay before each picker of the lab's, or takes the relays away.
    pub(super) fn relay_pickers(&mut self, relayed: bool) -> Result<()> {
        for picker in &mut self.pickers {
            let relayed = relayed && picker.program == PickerProgram::Ours;
            picker.relay = relayed.then(|| Relay::start(picker.grpc)).transpose()?;
        }
        Ok(())
    }

    /// Starts the pickers that are due, and ends those that no pool names any more.
    pub(super) fn reconcile_pickers(&mut self) -> Result<()> {
        let (wanted, n_pickers) = (&self.desired.pickers, self.n_pickers);
        self.pickers.retain(|picker| {
            picker.replica < n_pickers && wanted.iter().any(|wanted| wanted.name == picker.group)
        });
        for idx in 0..self.pickers.len() {
            if matches!(self.pickers[idx].state, PickerState::Due) {
                self.start_picker(idx)?;
            }
        }
        Ok(())
    }

    pub(super) fn pickers_settled(&self) -> bool {
        self.pickers.iter().all(PickerProcess::is_settled)
    }

    /// Kills the picker of this name, or all pickers.
    pub(super) fn kill_pickers(&mut self, name: Option<&str>, reply: CommandReply) {
        let mut reply = Some(reply);
        for picker in self.pickers.iter_mut().filter(|picker| name.is_none_or(|name| picker.name == name)) {
            match std::mem::replace(&mut picker.state, PickerState::Waiting) {
                PickerState::Running { process, .. } | PickerState::Draining { process } => {
                    process.kill();
                    // One reply for all is enough, because they are killed together.
                    picker.state = PickerState::Killed { reply: reply.take() };
                }
                PickerState::Restarting | PickerState::Waiting | PickerState::Due => {
                    picker.state = PickerState::Killed { reply: None }
                }
                PickerState::Killed { reply } => picker.state = PickerState::Killed { reply },
            }
        }
        if let Some(reply) = reply {
            let _ = reply.send(Ok(()));
        }
    }

    pub(super) fn start_pickers(&mut self) -> Result<()> {
        for picker in &mut self.pickers {
            if matches!(picker.state, PickerState::Killed { .. }) {
                picker.state = PickerState::Due;
            }
        }
        self.reconcile()?;
        self.publish()
    }

    pub(super) fn hang_pickers(&mut self, hang: bool) {
        for picker in &mut self.pickers {
            if let PickerState::Running { process, .. } = &mut picker.state {
                if hang { process.stop() } else { process.go_on() }
            }
        }
    }

    pub(super) fn disturb_pickers(&mut self, passage: Passage) -> Result<()> {
        for picker in &self.pickers {
            let relay = picker.relay.as_ref();
            relay.with_context(|| format!("the picker {} has no relay", picker.name))?.order(passage);
        }
        Ok(())
    }

    pub(super) fn replace_picker(&mut self, name: &str) -> Result<()> {
        let found = self.pickers.iter_mut().find(|picker| picker.name == name);
        let picker = found.ok_or_else(|| anyhow!("there is no picker {name}"))?;
        picker.state = match std::mem::replace(&mut picker.state, PickerState::Due) {
            PickerState::Running { mut process, .. } => {
                process.drain();
                PickerState::Draining { process }
            }
            state => state,
        };
        // Until then the old picker seems to serve on.
        self.publish()
    }

    pub(super) fn restart_pickers(&mut self) {
        for picker in &mut self.pickers {
            match std::mem::replace(&mut picker.state, PickerState::Restarting) {
                PickerState::Running { process, .. } | PickerState::Draining { process } => process.kill(),
                PickerState::Restarting => {}
                PickerState::Killed { .. } | PickerState::Waiting | PickerState::Due => {
                    picker.state = PickerState::Due
                }
            }
        }
    }

    pub(super) fn picker_ended(&mut self, name: &str, status: std::io::Result<ExitStatus>) {
        self.n_children -= 1;
        let Some(picker) = self.pickers.iter_mut().find(|picker| picker.name == name) else { return };
        match &mut picker.state {
            PickerState::Restarting | PickerState::Draining { .. } => picker.state = PickerState::Due,
            PickerState::Killed { reply } => {
                if let Some(reply) = reply.take() {
                    let _ = reply.send(Ok(()));
                }
            }
            PickerState::Running { .. } => {
                let was_ready = picker.is_ready();
                picker.state = PickerState::Waiting;
                let tail = log_tail(&picker.log, TAIL_LINES);
                let message = format!("the picker {name} has ended ({}):\n{tail}", describe(status));
                if was_ready {
                    self.warn(message);
                } else {
                    self.trouble = Some(message);
                }
                let name = name.to_owned();
                self.jobs.spawn(async move {
                    sleep(BACKOFF).await;
                    Action::PickerDue { name }
                });
            }
            PickerState::Waiting | PickerState::Due => {}
        }
    }

    pub(super) fn picker_due(&mut self, name: &str) {
        let found = self.pickers.iter_mut().find(|picker| picker.name == name);
        if let Some(picker) = found.filter(|picker| matches!(picker.state, PickerState::Waiting)) {
            picker.state = PickerState::Due;
        }
    }

    pub(super) fn picker_ready(&mut self, name: &str, start: u64, security: Security) {
        if let Some(PickerProcess {
            program,
            state: PickerState::Running { start: running, ready, .. },
            ..
        }) = self.pickers.iter_mut().find(|picker| picker.name == name)
        {
            *ready |= *running == start;
            if let PickerProgram::Theirs(seen) = program {
                *seen = security;
            }
        }
    }

    pub(super) fn picker_late(&mut self, name: &str, start: u64) {
        let Some(picker) = self.pickers.iter().find(|picker| picker.name == name) else { return };
        if matches!(picker.state, PickerState::Running { start: running, .. } if running == start) {
            let limit = self.options.ready_timeout;
            let tail = log_tail(&picker.log, TAIL_LINES);
            let missing = match picker.program {
                PickerProgram::Ours => "answer /readyz".to_owned(),
                PickerProgram::Theirs(_) => format!("serve gRPC on {}", picker.grpc),
            };
            self.trouble = Some(format!("the picker {name} does not {missing} after {limit:?}:\n{tail}"));
        }
    }

    fn start_picker(&mut self, idx: usize) -> Result<()> {
        let PickerProcess { name, group, log, .. } = &self.pickers[idx];
        let wanted = self.desired.pickers.iter().find(|wanted| wanted.name == *group);
        let (name, log) = (name.clone(), log.clone());
        let program = match wanted.and_then(|wanted| wanted.theirs.as_ref()) {
            None => self.our_picker(idx)?,
            Some(theirs) => {
                let program = theirs.prepare((&self.options.picker, &self.files), (&name, group), log)?;
                let line = program.args.join(" ");
                self.note(format!(
                    "{theirs} runs here as `{} {line}` on port {}",
                    program.path.display(),
                    theirs.port
                ));
                program
            }
        };
        let (process, exit) = Process::spawn(&self.programs.driver, &program)?;
        self.n_pickers_started += 1;
        let start = self.n_pickers_started;
        let ended = name.clone();
        self.watch_exit(exit, |status| Action::PickerEnded { name: ended, status });
        let late = Action::PickerLate { name: name.clone(), start };
        let PickerProcess { program, grpc, metrics, .. } = self.pickers[idx];
        let probe = match program {
            PickerProgram::Ours => {
                let ready = Action::PickerReady { name, start, security: Security::Tls };
                self.probe(metrics, "/readyz", ready, late)
            }
            PickerProgram::Theirs(_) => {
                self.greet(grpc, move |security| Action::PickerReady { name, start, security }, late)
            }
        };
        self.pickers[idx].state = PickerState::Running { process, start, ready: false, _probe: probe };
        Ok(())
    }

    /// Starts a job that reports when a server of gRPC listens, or `late` if that takes too long.
    fn greet(
        &mut self,
        address: SocketAddr,
        ready: impl FnOnce(Security) -> Action + Send + 'static,
        late: Action,
    ) -> Job {
        let limit = self.options.ready_timeout;
        Job(self.jobs.spawn(async move { timeout(limit, until_greeted(address)).await.map_or(late, ready) }))
    }

    /// The command line of the lab's picker.
    fn our_picker(&self, idx: usize) -> Result<Program> {
        let picker = &self.pickers[idx];
        let PickerProcess { name, group, grpc, health, metrics, log, .. } = picker;
        let peers = self.pickers.iter().filter(|peer| peer.group == *group && peer.name != *name);
        let peers: Vec<String> = peers.map(|peer| peer.metrics.to_string()).collect();
        let mut args = Vec::new();
        for (flag, value) in [
            ("--pool-file", self.files.pools(group).display().to_string()),
            ("--endpoints-file", self.files.endpoints().display().to_string()),
            ("--host", grpc.ip().to_string()),
            ("--grpc-port", grpc.port().to_string()),
            ("--health-port", health.port().to_string()),
            ("--metrics-host", metrics.ip().to_string()),
            ("--metrics-port", metrics.port().to_string()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        if !picker.is_relayed() {
            let identity = self.files.identity(name).display().to_string();
            args.extend(["--secure-serving".to_owned(), "--cert-path".to_owned(), identity]);
        }
        // A single picker has no peer that could take over, so it need not wait before it ends.
        if peers.is_empty() {
            args.extend(["--drain-delay".to_owned(), "0s".to_owned()]);
        }
        let wanted = self.desired.pickers.iter().find(|wanted| wanted.name == *group);
        if let Some(config) = wanted.and_then(|wanted| wanted.config.as_ref()) {
            let file = self.files.picker_config(group);
            std::fs::write(&file, &config.text).with_context(|| format!("write {}", file.display()))?;
            args.extend(["--config-file".to_owned(), file.display().to_string()]);
        }
        args.extend(peers.into_iter().flat_map(|peer| ["--peer".to_owned(), peer]));
        args.extend(self.options.explains.then(|| "--explain-to-clients".to_owned()));
        args.extend(self.options.picker_args.iter().cloned());
        Ok(Program { path: self.programs.picker.clone(), args, env: Vec::new(), log: log.clone() })
    }
}
