//! Builds a pod from its settings (engine, driver, tokenizer and replies) and serves it on a listener until the stop.
//! Several pods of one process are a `fleet`: each has its own engine, cache, metrics and ports, and all use one
//! `Shared`.

pub mod fleet;
pub mod ports;

use crate::cache_log::CacheLog;
use crate::clock::{Clock, TimeScale};
use crate::driver::backlog::QueueLimits;
use crate::driver::{self, DriverConfig};
use crate::faults::Rule;
use crate::faults::active::PodFaults;
use crate::faults::socket::{Connection, Door, FaultListener, TcpDoor};
use crate::http::dev::SleepSwitch;
use crate::http::faults::{SetFaultsError, keeper};
use crate::http::lora::{LoraModule, LoraRegistry};
use crate::http::{self, Pod, PodConfig, ServerLoad};
use crate::kv_events::config::KvEventsConfig;
use crate::kv_events::encoding::WireFormat;
use crate::kv_events::publisher::KvEventPublisher;
use crate::kv_events::service::{self, BoundService, KvEventService};
use crate::metrics::cache_config::{CacheConfig, CacheFlags};
use crate::metrics::http::HttpMetrics;
use crate::metrics::{Metrics, MetricsConfig, Runtime};
use crate::request_log::RequestLog;
use crate::send_schedule::SendSchedule;
use parking_lot::Mutex;
use std::future::Future;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use vllm_engine::config::{ConfigError, EngineConfig};
use vllm_engine::engine::Engine;
use vllm_engine::hash::HashAlgorithm;
use vllm_engine::latency::LatencyModel;
use vllm_text::reply::Replier;
use vllm_text::reply::scripted::{Script, ScriptError};
use vllm_text::tokens::chat_template::{ChatTemplate, ChatTemplateConfig, TemplateSyntaxError};
use vllm_text::tokens::{Tokenizer, TokenizerError, TokenizerSource};

/// Settings of one pod.
#[derive(Clone, Debug)]
pub struct PodSettings {
    pub http: PodConfig,
    pub engine: EngineConfig,
    pub latency: LatencyModel,
    /// Relative standard deviation per step; 0 for none.
    pub jitter: f64,
    pub seed: u64,
    pub time_scale: TimeScale,
    pub tokenizer: TokenizerSource,
    pub chat: ChatTemplateConfig,
    /// File of scripted replies; `None` for the built-in one.
    pub scripted_replies: Option<PathBuf>,
    pub request_log: Option<PathBuf>,
    pub cache_log: Option<PathBuf>,
    pub faults: Vec<Rule>,
    pub cache_flags: CacheFlags,
    pub kv_events: KvEventsConfig,
    pub kv_event_format: WireFormat,
    pub runtime: Runtime,
    /// Show the metrics that this release hides.
    pub hidden_metrics: bool,
    /// Show the mock's own metrics beside vLLM's.
    pub mock_metrics: bool,
    /// Data-parallel rank: the label `engine` of the metrics, and the rank in KV events.
    pub rank: u16,
    pub queue_limits: QueueLimits,
    /// Adapters to load before the first request.
    pub lora_modules: Vec<LoraModule>,
}

/// Objects that all pods of a process use: read-only, or safe to share.
#[derive(Clone, Debug)]
pub struct Shared {
    tokenizer: Tokenizer,
    template: Arc<ChatTemplate>,
    script: Arc<Script>,
    log: Arc<RequestLog>,
    clock: Clock,
}

/// Result of `build`: a pod whose engine waits for requests, and the service of its KV events, which `bind` starts.
#[derive(Debug)]
pub struct BuiltPod {
    pub pod: Arc<Pod>,
    /// Service of KV events; `None` if they are off.
    pub kv_events: Option<KvEventService>,
}

/// Signal to stop a server; clones share it.
#[derive(Clone, Debug)]
pub struct Stop {
    grace: Duration,
    begun: CancellationToken,
    hurried: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("invalid engine settings")]
    Engine(#[from] ConfigError),
    #[error("cannot load the tokenizer")]
    Tokenizer(#[from] TokenizerError),
    #[error("cannot read the chat template")]
    ChatTemplate(#[from] TemplateSyntaxError),
    #[error("cannot load the scripted replies")]
    Script(#[from] ScriptError),
    #[error("cannot open the request log {path}")]
    RequestLog { path: PathBuf, source: std::io::Error },
    #[error("cannot open the cache log {path}")]
    CacheLog { path: PathBuf, source: std::io::Error },
    #[error("invalid fault")]
    Fault(#[from] SetFaultsError),
    #[error("cannot start the engine's thread")]
    Thread(#[source] std::io::Error),
}

/// Error of a pod that a fault has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pod crashed, as a fault told it to")]
pub struct Crashed;

// === impl Shared ===

impl Shared {
    /// Loads the files that the settings name, and starts the clock.
    ///
    /// # Errors
    /// Fails if a file cannot be loaded.
    pub fn load(settings: &PodSettings) -> Result<Self, BuildError> {
        let tokenizer = Tokenizer::open(&settings.tokenizer)?;
        let template = ChatTemplate::try_new(tokenizer.clone(), settings.chat.clone(), Clock::unix_now)?;
        let script = match &settings.scripted_replies {
            Some(path) => Script::load(path, &tokenizer)?,
            None => Script::built_in(&tokenizer),
        };
        let log = match &settings.request_log {
            Some(path) => RequestLog::open(path)
                .map_err(|source| BuildError::RequestLog { path: path.clone(), source })?,
            None => RequestLog::default(),
        };
        Ok(Self {
            template: Arc::new(template),
            tokenizer,
            script: Arc::new(script),
            log: Arc::new(log),
            clock: Clock::start(settings.time_scale),
        })
    }
}

// === impl Stop ===

impl Stop {
    /// Makes a signal that is not given yet. Requests in flight will get `grace` to finish.
    pub fn after(grace: Duration) -> Self {
        Self { grace, begun: CancellationToken::new(), hurried: CancellationToken::new() }
    }

    /// Begins the stop: no new requests, but those in flight may finish.
    pub fn begin(&self) {
        self.begun.cancel();
    }

    /// Aborts the requests in flight.
    pub fn hurry(&self) {
        self.begun.cancel();
        self.hurried.cancel();
    }
}

/// Builds a single pod: loads what it needs, and starts its engine's thread. It does not listen.
///
/// # Errors
/// Fails if a file cannot be loaded, or if the engine's settings contradict each other.
pub fn build(settings: PodSettings) -> Result<BuiltPod, BuildError> {
    let shared = Shared::load(&settings)?;
    let (publisher, kv_events) = kv_event_channel(&settings).unzip();
    let pod = build_pod(&shared, settings, publisher)?;
    Ok(BuiltPod { pod, kv_events })
}

/// Builds one pod around shared objects; its engine's thread runs and waits for requests.
///
/// # Errors
/// Fails if the engine's settings contradict each other, or if the system has no thread left.
pub fn build_pod(
    shared: &Shared,
    settings: PodSettings,
    kv_events: Option<KvEventPublisher>,
) -> Result<Arc<Pod>, BuildError> {
    let metrics_config = metrics_config(&settings, Clock::unix_now());
    let PodSettings {
        http: config,
        engine,
        latency,
        jitter,
        seed,
        cache_log,
        queue_limits,
        lora_modules,
        faults,
        ..
    } = settings;
    let Shared { tokenizer, template, script, log, clock } = shared.clone();
    let engine =
        Engine::try_new(EngineConfig { kv_events: engine.kv_events || cache_log.is_some(), ..engine })?;
    let open_cache_log = |path: PathBuf| {
        let (pod, config) = (config.pod_name.clone(), engine.config().clone());
        CacheLog::start(&path, pod, config, latency, Clock::unix_now())
            .map_err(|source| BuildError::CacheLog { path, source })
    };
    let cache_log = cache_log.map(open_cache_log).transpose()?;
    let send_schedule = Some(Arc::new(SendSchedule::new(clock.clone(), metrics_config.lateness.clone())));
    let http_metrics = HttpMetrics::new(metrics_config.created);
    let metrics = Arc::new(Mutex::new(Metrics::new(metrics_config)));
    let driver_config = DriverConfig {
        engine,
        latency,
        jitter,
        seed,
        kv_events,
        cache_log,
        send_schedule: send_schedule.clone(),
        queue_limits,
    };
    let driver = driver::start(driver_config, clock.clone(), metrics.clone()).map_err(BuildError::Thread)?;
    let pod = Pod {
        config,
        template,
        replier: Replier::new(script, &tokenizer, seed),
        tokenizer,
        driver,
        send_schedule,
        metrics,
        http_metrics,
        log,
        server_load: ServerLoad::default(),
        loras: LoraRegistry::new(lora_modules),
        sleep: SleepSwitch::default(),
        faults: Arc::new(PodFaults::new(clock, seed)),
    };
    let own = |rule: &Rule| rule.pod.as_ref().is_none_or(|name| *name == pod.config.pod_name);
    pod.set_faults(faults.into_iter().filter(own).collect())?;
    Ok(Arc::new(pod))
}

/// Makes both ends of a pod's KV events; `None` if they are off.
fn kv_event_channel(settings: &PodSettings) -> Option<(KvEventPublisher, KvEventService)> {
    match &settings.kv_events {
        KvEventsConfig::Off => None,
        KvEventsConfig::Zmq(config) => {
            Some(service::channel(config.clone(), settings.kv_event_format, settings.rank))
        }
    }
}

/// Serves the API and the KV events until `shutdown`, then gives the requests in flight `grace` to finish.
///
/// # Errors
/// Fails if the listener breaks.
pub async fn run(
    listener: TcpListener,
    pod: Arc<Pod>,
    kv_events: Option<BoundService>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> std::io::Result<()> {
    let stop = Stop::after(grace);
    let announcing = stop.clone();
    let watching = async move {
        shutdown.await;
        announcing.begin();
    };
    let serving = run_on(TcpDoor::new(listener)?, pod, kv_events, stop);
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return result,
        () = watching => {}
    }
    serving.await
}

/// Serves a pod on any kind of socket until `stop`.
async fn run_on<D>(door: D, pod: Arc<Pod>, kv_events: Option<BoundService>, stop: Stop) -> std::io::Result<()>
where
    D: Door,
    D::Addr: std::fmt::Debug,
{
    let begun = stop.begun.clone();
    let listener = FaultListener::new(door, pod.faults.clone(), pod.send_schedule.clone());
    let dead = pod.faults.dead().clone();
    let keeping = keeper::keep(pod.clone());
    let service = http::router(pod).into_make_service_with_connect_info::<Connection>();
    let serving = axum::serve(listener, service).with_graceful_shutdown(begun.cancelled_owned());
    let out_of_time = async move {
        stop.begun.cancelled().await;
        tokio::select! {
            () = tokio::time::sleep(stop.grace) => {}
            () = stop.hurried.cancelled() => {}
        }
    };
    // Its sender is dropped when the API has ended, so that the events of the last step are still sent.
    let (api_serves, api_ended) = tokio::sync::oneshot::channel::<()>();
    let api = async move {
        let _until_the_end = api_serves;
        tokio::select! {
            result = serving.into_future() => result,
            () = out_of_time => Ok(()),
            () = dead.cancelled() => Err(std::io::Error::other(Crashed)),
            () = async { keeping.await; std::future::pending().await } => Ok(()),
        }
    };
    let events = async move {
        if let Some(service) = kv_events {
            service
                .run(async move {
                    let _sender_dropped = api_ended.await;
                })
                .await;
        }
    };
    let (result, ()) = tokio::join!(api, events);
    result
}

fn metrics_config(settings: &PodSettings, unix_time: Duration) -> MetricsConfig {
    let PodSettings { http: pod, engine, cache_flags, .. } = settings;
    let prefix_caching_hash_algo = match engine.hash {
        HashAlgorithm::Sha256 => "sha256",
        HashAlgorithm::Sha256Cbor => "sha256_cbor",
    };
    let cache_config = CacheConfig {
        block_size: engine.block_size,
        flags: *cache_flags,
        num_gpu_blocks: engine.n_blocks,
        enable_prefix_caching: engine.prefix_caching,
        prefix_caching_hash_algo,
        max_model_len: engine.max_model_len,
    };
    MetricsConfig {
        engine: settings.rank,
        runtime: settings.runtime,
        version: pod.version,
        show_hidden: settings.hidden_metrics,
        model_name: pod.displayed_model().to_owned(),
        max_model_len: pod.max_model_len,
        cache_config: cache_config.labels(pod.version),
        lateness: settings.mock_metrics.then(Arc::default),
        max_loras: settings.engine.max_loras.map(NonZeroU32::get),
        created: unix_time.as_secs_f64(),
    }
}
