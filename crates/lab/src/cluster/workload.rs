//! Pods that the manifests ask for: which of them run here, by which command, and on which ports they are reached.

pub(super) mod command;

mod shell;

pub(super) mod env;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use gateway_config::plan::{Backend, Plan, PodPort};
use inference_api::kinds::Object;
use inference_api::object::{self, ObjectKey};
use inference_api::pool::{InferencePool, PrefixSource};
use inference_api::probe::Action;
use inference_api::remark::Remark;
use inference_api::workload::{Container, PodSpec, Service, Workload, WorkloadKind};

use crate::cluster::picker_choice::PickerChoice;
use crate::cluster::probe::{self, Probes};
use crate::cluster::workload::command::{ENABLE_METRICS, Engine, EngineCommand, Translated};
use crate::cluster::workload::env::{Env, Sources};

/// Pods of one kind. A workload whose pods serve on several ports is several of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DesiredDeployment {
    pub(super) key: ObjectKey,
    pub(super) replicas: u32,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) command: EngineCommand,
    pub(super) probes: Probes,
    /// True if a pool of these pods reads their KV events.
    pub(super) publishes_events: bool,
    /// False if pools of these pods expect them on other ports only.
    pub(super) is_endpoint: bool,
    /// Names of the container port on which the engine serves.
    pub(super) port_names: Vec<String>,
}

/// All that decides which pods run.
pub(super) struct WorkloadContext<'a> {
    plan: &'a Plan,
    choice: &'a PickerChoice,
    pools: Vec<&'a InferencePool>,
    services: Vec<&'a Service>,
    sources: Sources<'a>,
}

/// A container, its variables, and the engine that it runs.
struct Candidate<'a> {
    container: &'a Container,
    env: Env,
    engine: Option<Translated>,
}

// === impl DesiredDeployment ===

impl DesiredDeployment {
    /// True if the backend selects these pods, on a port on which they serve.
    pub(super) fn serves(&self, backend: &Backend) -> bool {
        self.is_selected(backend) && backend.ports().iter().any(|port| self.has_port(port))
    }

    /// True if the backend selects these pods, on whatever port.
    pub(super) fn is_selected(&self, backend: &Backend) -> bool {
        self.key.namespace == backend.key().namespace && object::selects(backend.selector(), &self.labels)
    }

    /// True if a pool sends requests to these pods.
    pub(super) fn is_in(&self, pool: &InferencePool) -> bool {
        pool.meta.namespace == self.key.namespace
            && object::selects(&pool.selector, &self.labels)
            && pool.target_ports.contains(&self.command.port)
    }

    fn has_port(&self, port: &PodPort) -> bool {
        match port {
            PodPort::Number(number) => *number == self.command.port,
            PodPort::Name(name) => self.port_names.contains(name),
        }
    }
}

// === impl WorkloadContext ===

impl<'a> WorkloadContext<'a> {
    pub(super) fn new(objects: &[&'a Object], plan: &'a Plan, choice: &'a PickerChoice) -> Self {
        let pools = objects.iter().filter_map(|object| match object {
            Object::InferencePool(pool) => Some(pool),
            _ => None,
        });
        let services = objects.iter().filter_map(|object| match object {
            Object::Service(service) => Some(service),
            _ => None,
        });
        Self {
            plan,
            choice,
            pools: pools.collect(),
            services: services.collect(),
            sources: Sources::new(objects.iter().copied()),
        }
    }

    /// The pods of a workload, and what of it has no effect.
    ///
    /// # Errors
    /// When they run an engine in a way that cannot be followed.
    pub(super) fn pods(&self, workload: &Workload) -> Result<(Vec<DesiredDeployment>, Vec<Remark>)> {
        let remark = |field: &str, effect: String| {
            Remark::new(workload.kind.as_str(), workload.meta.key(), field, effect)
        };
        if let Some(pool) = self.pool_of_picker(workload) {
            let effect =
                format!("it picks for InferencePool {pool}, for which the lab's own picker runs here");
            return match self.choice {
                PickerChoice::Ours => Ok((Vec::new(), vec![remark("", effect)])),
                PickerChoice::Theirs { .. } => Ok((Vec::new(), Vec::new())),
            };
        }
        let ports = self.ports(workload);
        if ports.is_empty() && matches!(workload.kind, WorkloadKind::Other(_)) {
            let effect =
                "its controller acts on it, and no route and no pool leads to the pods in it".to_owned();
            return Ok((Vec::new(), vec![remark("", effect)]));
        }
        let candidates = self.candidates(workload)?;
        let first_engine = candidates.iter().find_map(|candidate| candidate.engine.as_ref());
        let ports = match (ports.as_slice(), first_engine) {
            ([], None) => {
                let effect = "it runs, and no route and no pool leads to its pods".to_owned();
                return Ok((Vec::new(), vec![remark("", effect)]));
            }
            ([], Some(engine)) => vec![engine.command.port],
            (_, _) => ports,
        };
        let (mut pods, mut serving): (Vec<DesiredDeployment>, Vec<&str>) = (Vec::new(), Vec::new());
        let mut remarks = Vec::new();
        for port in ports {
            let (candidate, command) = self.serving(&candidates, port, workload);
            if pods.iter().any(|known| known.command.port == command.port) {
                continue;
            }
            let effects = left_out(candidate, &command);
            remarks.extend(effects.into_iter().map(|(field, effect)| {
                remark(
                    &format!("spec.template.spec.containers[{}].{field}", candidate.container.name),
                    effect,
                )
            }));
            let mut key = workload.meta.key();
            if !pods.is_empty() {
                key.name = format!("{}-{}", key.name, command.port);
            }
            serving.push(candidate.container.name.as_str());
            pods.push(self.deployment(workload, key, (candidate, command))?);
        }
        let beside = candidates.iter().map(|candidate| candidate.container.name.as_str());
        for name in beside.filter(|name| !serving.contains(name)) {
            let field = format!("spec.template.spec.containers[{name}]");
            remarks.push(remark(&field, "it runs beside the engine".to_owned()));
        }
        for Container { name, .. } in &workload.template.spec.init_containers {
            let field = format!("spec.template.spec.initContainers[{name}]");
            remarks.push(remark(&field, "it runs before the engine, or beside it".to_owned()));
        }
        remarks.dedup();
        Ok((pods, remarks))
    }

    fn deployment(
        &self,
        workload: &Workload,
        key: ObjectKey,
        (Candidate { container, engine, .. }, command): (&Candidate<'_>, EngineCommand),
    ) -> Result<DesiredDeployment> {
        let probes = match (command.program, engine) {
            (Engine::Vllm, Some(engine)) => Probes::new(container, engine.command.port)
                .with_context(|| format!("container {}", container.name))?,
            (_, _) => Probes::of_health(),
        };
        let named = workload.template.spec.ports().filter(|declared| declared.container_port == command.port);
        let mut deployment = DesiredDeployment {
            probes,
            port_names: named.filter_map(|candidate| candidate.name.clone()).collect(),
            replicas: workload.replicas,
            labels: workload.template.meta.labels.clone(),
            command,
            publishes_events: false,
            is_endpoint: true,
            key,
        };
        let wants_events = |pool: &&&InferencePool| {
            pool.prefix_source() == Ok(PrefixSource::Events) && deployment.is_in(pool)
        };
        deployment.publishes_events = self.pools.iter().find(wants_events).is_some();
        let selects = |pool: &&&InferencePool| {
            pool.meta.namespace == deployment.key.namespace
                && object::selects(&pool.selector, &deployment.labels)
        };
        let mut pools = self.pools.iter().filter(selects).peekable();
        deployment.is_endpoint = pools.peek().is_none() || pools.any(|pool| deployment.is_in(pool));
        Ok(deployment)
    }

    /// The pool whose picker the workload is: the Service that the pool names selects its pods.
    fn pool_of_picker(&self, workload: &Workload) -> Option<ObjectKey> {
        let namespace = &workload.meta.namespace;
        let is_picker = |pool: &&&InferencePool| {
            let service = self.services.iter().find(|service| {
                service.meta.namespace == *namespace
                    && pool.picker.as_ref().is_some_and(|picker| picker.name == service.meta.name)
            });
            let selector = service.map(|service| &service.spec.selector);
            pool.meta.namespace == *namespace
                && selector.is_some_and(|selector| object::selects(selector, &workload.template.meta.labels))
        };
        self.pools.iter().find(is_picker).map(|pool| pool.key())
    }

    fn candidates<'w>(&self, workload: &'w Workload) -> Result<Vec<Candidate<'w>>> {
        let namespace = &workload.meta.namespace;
        let candidate = |container: &'w Container| {
            let env = Env::new(container, namespace, &self.sources);
            let engine = EngineCommand::parse(container, &env)
                .with_context(|| format!("command of container {}", container.name))?;
            Ok(Candidate { container, env, engine })
        };
        let containers = &workload.template.spec.containers;
        ensure!(!containers.is_empty(), "spec.template.spec.containers: there is none");
        containers.iter().map(candidate).collect()
    }

    /// Ports on which routes and pools expect the workload's pods, each once.
    fn ports(&self, workload: &Workload) -> Vec<u16> {
        let labels = &workload.template.meta.labels;
        let namespace = &workload.meta.namespace;
        let routed = self.plan.clusters.iter().map(|cluster| &cluster.backend).filter(|backend| {
            backend.key().namespace == *namespace && object::selects(backend.selector(), labels)
        });
        let declared = workload.template.spec.ports();
        let number = |port: &PodPort| match port {
            PodPort::Number(number) => Some(*number),
            PodPort::Name(name) => declared
                .clone()
                .find(|declared| declared.name.as_ref() == Some(name))
                .map(|declared| declared.container_port),
        };
        let mut ports: Vec<u16> = Vec::new();
        ports.extend(routed.flat_map(Backend::ports).filter_map(number));
        let pools = self
            .pools
            .iter()
            .filter(|pool| pool.meta.namespace == *namespace && object::selects(&pool.selector, labels));
        ports.extend(pools.flat_map(|pool| &pool.target_ports));
        let mut seen = Vec::new();
        ports.retain(|port| {
            !seen.contains(port) && {
                seen.push(*port);
                true
            }
        });
        ports
    }

    /// The container that serves on the port, and its command. The only engine of a pod serves on all ports: what stands
    /// in front of it passes requests on.
    fn serving<'c, 'w>(
        &self,
        candidates: &'c [Candidate<'w>],
        port: u16,
        workload: &Workload,
    ) -> (&'c Candidate<'w>, EngineCommand) {
        let serves = |candidate: &&Candidate<'_>| {
            candidate.engine.as_ref().is_some_and(|engine| engine.command.port == port)
        };
        let declares = |candidate: &&Candidate<'_>| {
            candidate.container.ports.iter().any(|declared| declared.container_port == port)
        };
        let mut engines = candidates.iter().filter(|candidate| candidate.engine.is_some());
        let only_engine = engines.next().filter(|_| engines.next().is_none());
        let PodSpec { containers, init_containers } = &workload.template.spec;
        let is_behind = |engine: &&Candidate<'_>| {
            let mut others = containers.iter().chain(init_containers);
            others.any(|other| {
                other.name != engine.container.name
                    && other.ports.iter().any(|declared| declared.container_port == port)
            })
        };
        let behind_a_proxy = only_engine.filter(is_behind);
        let candidate = candidates
            .iter()
            .find(serves)
            .or(behind_a_proxy)
            .or_else(|| candidates.iter().find(declares))
            .or_else(|| candidates.iter().find(|candidate| candidate.engine.is_some()))
            .unwrap_or(&candidates[0]);
        let command = match &candidate.engine {
            None => EngineCommand::stand_in(candidate.container, &candidate.env, port),
            // Each rank of a data-parallel engine serves on a port of its own.
            Some(engine)
                if behind_a_proxy.is_some() || self.are_ranks(workload, [engine.command.port, port]) =>
            {
                EngineCommand { port, ..engine.command.clone() }
            }
            Some(engine) => engine.command.clone(),
        };
        (candidate, command)
    }

    /// True if one pool expects an endpoint on each of the ports.
    fn are_ranks(&self, workload: &Workload, ports: [u16; 2]) -> bool {
        let labels = &workload.template.meta.labels;
        self.pools.iter().any(|pool| {
            pool.meta.namespace == workload.meta.namespace
                && object::selects(&pool.selector, labels)
                && ports.iter().all(|port| pool.target_ports.contains(port))
        })
    }
}

/// Returns the parts of a container that have no effect: paths below it, each with the effect on a cluster.
fn left_out(
    Candidate { container, env, engine }: &Candidate<'_>,
    command: &EngineCommand,
) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let known = "its value is known".to_owned();
    found.extend(env.unknown.iter().map(|field| (field.clone(), known.clone())));
    let flags = engine.iter().flat_map(|engine| &engine.left_out);
    found.extend(
        flags.map(|flag| ("args: ".to_owned() + flag, "the container's program follows them".to_owned())),
    );
    match command.program {
        Engine::Vllm | Engine::Simulator => {}
        Engine::Sglang => {
            let effect = "it runs SGLang, and here the mock of vLLM answers, with SGLang's metrics";
            found.push(("command".to_owned(), effect.to_owned()));
            let words = container.command.iter().chain(&container.args);
            if !words.clone().any(|word| word.contains(ENABLE_METRICS)) {
                let effect =
                    format!("SGLang has no metrics without --{ENABLE_METRICS}, and here the mock has them");
                found.push(("args".to_owned(), effect));
            }
        }
        Engine::Other => {
            let words: Vec<&str> =
                container.command.iter().chain(&container.args).map(String::as_str).collect();
            let program =
                if words.is_empty() { container.image.clone().unwrap_or_default() } else { words.join(" ") };
            found.push((
                "command".to_owned(),
                format!("it runs `{program}`, and here a mock of vLLM answers for it, to any model's name"),
            ));
        }
    }
    for (name, probe) in container.probes() {
        let is_asked = matches!(probe.action, Action::HttpGet(_) | Action::TcpSocket { .. });
        if command.program != Engine::Vllm || !is_asked {
            found.push((name.to_owned(), "the kubelet asks the container by it".to_owned()));
        } else if probe::delays_too_long(name, probe) {
            let effect =
                "the kubelet waits so long for the model to load; the mock loads none and is asked after 10s";
            found.push((format!("{name}.initialDelaySeconds"), effect.to_owned()));
        }
    }
    found
}
