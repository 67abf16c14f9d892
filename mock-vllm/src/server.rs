//! A pod from its settings: engine, driver, tokenizer and replies put together, then served on a listener until told to stop.

use crate::driver::clock::{Clock, TimeScale};
use crate::driver::{self, DriverConfig};
use crate::engine::Engine;
use crate::engine::config::{ConfigError, EngineConfig};
use crate::engine::hash::HashAlgorithm;
use crate::engine::latency::LatencyModel;
use crate::http::{self, Pod, PodConfig, ServerLoad};
use crate::kv_events::config::KvEventsConfig;
use crate::kv_events::encoding::WireFormat;
use crate::kv_events::service::{self, BoundService, KvEventService};
use crate::metrics::cache_config::CacheConfig;
use crate::metrics::http::HttpMetrics;
use crate::metrics::{Metrics, MetricsConfig};
use crate::reply::Replier;
use crate::reply::scripted::{Script, ScriptError};
use crate::request_log::RequestLog;
use crate::tokens::chat_template::ChatTemplate;
use crate::tokens::{Tokenizer, TokenizerError};
use axum::serve::ListenerExt;
use parking_lot::Mutex;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// There is one rank.
const DATA_PARALLEL_RANK: u16 = 0;

/// What one pod is made of.
#[derive(Clone, Debug)]
pub struct PodSettings {
    pub http: PodConfig,
    pub engine: EngineConfig,
    pub latency: LatencyModel,
    /// Relative standard deviation per step; 0 = none.
    pub jitter: f64,
    pub seed: u64,
    pub time_scale: TimeScale,
    /// `None`: the built-in Qwen2.5.
    pub tokenizer: Option<PathBuf>,
    /// `None`: the built-in file.
    pub scripted_replies: Option<PathBuf>,
    pub request_log: Option<PathBuf>,
    pub gpu_memory_utilization: f64,
    pub kv_events: KvEventsConfig,
    pub kv_event_format: WireFormat,
}

/// What `build` made: a pod whose engine waits for requests, and the service of its KV events, which `bind` starts to listen.
#[derive(Debug)]
pub struct BuiltPod {
    pub pod: Arc<Pod>,
    /// `None` unless KV events are on.
    pub kv_events: Option<KvEventService>,
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("invalid engine settings")]
    Engine(#[from] ConfigError),
    #[error("cannot load the tokenizer")]
    Tokenizer(#[from] TokenizerError),
    #[error("cannot load the scripted replies")]
    Script(#[from] ScriptError),
    #[error("cannot open the request log {path}")]
    RequestLog { path: PathBuf, source: std::io::Error },
    #[error("cannot start the engine's thread")]
    Thread(#[source] std::io::Error),
}

/// Starts the engine's thread and loads what the pod needs; listens on nothing.
///
/// # Errors
/// When a file cannot be loaded or the engine's settings contradict each other.
pub fn build(settings: PodSettings) -> Result<BuiltPod, BuildError> {
    let metrics_config = metrics_config(&settings);
    let PodSettings {
        http: config,
        engine,
        latency,
        jitter,
        seed,
        time_scale,
        tokenizer,
        scripted_replies,
        request_log,
        gpu_memory_utilization: _,
        kv_events,
        kv_event_format,
    } = settings;
    let engine = Engine::try_new(engine)?;
    let tokenizer = match &tokenizer {
        Some(path) => Tokenizer::load(path)?,
        None => Tokenizer::qwen25(),
    };
    let script = match &scripted_replies {
        Some(path) => Script::load(path, &tokenizer)?,
        None => Script::built_in(&tokenizer),
    };
    let log = match request_log {
        Some(path) => RequestLog::open(&path).map_err(|source| BuildError::RequestLog { path, source })?,
        None => RequestLog::default(),
    };
    let http_metrics = HttpMetrics::new(metrics_config.created);
    let metrics = Arc::new(Mutex::new(Metrics::new(metrics_config)));
    let (publisher, kv_events) = match kv_events {
        KvEventsConfig::Off => (None, None),
        KvEventsConfig::Zmq(config) => {
            let (publisher, service) = service::channel(config, kv_event_format, DATA_PARALLEL_RANK);
            (Some(publisher), Some(service))
        }
    };
    let driver_config = DriverConfig { engine, latency, jitter, seed, kv_events: publisher };
    let driver = driver::start(driver_config, Clock::start(time_scale), metrics.clone())
        .map_err(BuildError::Thread)?;
    let pod = Arc::new(Pod {
        config,
        template: ChatTemplate::new(tokenizer.clone()),
        replier: Replier::new(script, &tokenizer, seed),
        tokenizer,
        driver,
        metrics,
        http_metrics,
        log,
        server_load: ServerLoad::default(),
    });
    Ok(BuiltPod { pod, kv_events })
}

/// Serves the API and the KV events until `shutdown`, then gives the requests in flight `grace` to end.
///
/// # Errors
/// When the listener breaks.
pub async fn run(
    listener: TcpListener,
    pod: Arc<Pod>,
    kv_events: Option<BoundService>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> std::io::Result<()> {
    // Without this, Nagle's algorithm and delayed acknowledgements hold a token back for 40 ms.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "Cannot set TCP_NODELAY");
        }
    });
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let announced = async move {
        shutdown.await;
        let _receiver_gone = stopping.send(());
    };
    let serving = axum::serve(listener, http::router(pod)).with_graceful_shutdown(announced);
    let out_of_time = async move {
        let _sender_gone = stopped.await;
        tokio::time::sleep(grace).await;
    };
    // Dropped when the API has ended: the events of its last step go out.
    let (api_serves, api_ended) = tokio::sync::oneshot::channel::<()>();
    let api = async move {
        let _until_the_end = api_serves;
        tokio::select! {
            result = serving.into_future() => result,
            () = out_of_time => Ok(()),
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

fn metrics_config(settings: &PodSettings) -> MetricsConfig {
    let PodSettings { http: pod, engine, gpu_memory_utilization, .. } = settings;
    let prefix_caching_hash_algo = match engine.hash {
        HashAlgorithm::Sha256 => "sha256",
        HashAlgorithm::Sha256Cbor => "sha256_cbor",
    };
    let cache_config = CacheConfig {
        block_size: engine.block_size,
        user_specified_block_size: false,
        gpu_memory_utilization: *gpu_memory_utilization,
        num_gpu_blocks: engine.n_blocks,
        num_gpu_blocks_override: None,
        kv_cache_memory_bytes: None,
        enable_prefix_caching: engine.prefix_caching,
        prefix_caching_hash_algo,
        max_model_len: engine.max_model_len,
    };
    MetricsConfig {
        version: pod.version,
        show_hidden: false,
        model_name: pod.displayed_model().to_owned(),
        max_model_len: pod.max_model_len,
        cache_config: cache_config.labels(pod.version),
        max_loras: None,
        created: Clock::unix_now().as_secs_f64(),
    }
}
