//! An engine under its driver, with requests that all arrive at known virtual times, and the metrics page that results.

use mock_vllm::clock::{Clock, SimTime};
use mock_vllm::driver::backlog::QueueLimits;
use mock_vllm::driver::{self, Delivery, DriverConfig, DriverHandle, RequestHandle, Submission};
use mock_vllm::metrics::http::HttpMetrics;
use mock_vllm::metrics::render::Scrape;
use mock_vllm::metrics::{Metrics, MetricsConfig, Runtime};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;
use vllm_engine::config::EngineConfig;
use vllm_engine::engine::Engine;
use vllm_engine::latency::LatencyModel;
use vllm_engine::request::EngineRequest;
use vllm_engine::vllm_version::VllmVersion;

/// Virtual seconds per wall second.
const SCALE: NonZeroU64 = NonZeroU64::new(100).unwrap();
const MAX_LORAS: u32 = 2;

pub(crate) struct Lab {
    pub(crate) driver: DriverHandle,
    pub(crate) metrics: Arc<Mutex<Metrics>>,
}

/// Values by series, as the page spells them, without the labels that all of vLLM's series have.
pub(crate) struct Page(BTreeMap<String, f64>);

pub(crate) fn latency() -> LatencyModel {
    LatencyModel::preset("a10-doc").unwrap()
}

pub(crate) fn metrics(version: VllmVersion) -> Metrics {
    Metrics::new(MetricsConfig {
        engine: 0,
        runtime: Runtime::Vllm,
        version,
        show_hidden: false,
        model_name: "m".to_owned(),
        max_model_len: EngineConfig::default().max_model_len,
        cache_config: Vec::new(),
        lateness: None,
        max_loras: Some(MAX_LORAS),
        created: 1.0,
    })
}

// === impl Lab ===

impl Lab {
    pub(crate) fn new(version: VllmVersion, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let mut config = EngineConfig::default();
        change(&mut config);
        let engine = Engine::try_new(config).unwrap();
        let config = DriverConfig {
            engine,
            latency: latency(),
            jitter: 0.0,
            seed: 0,
            kv_events: None,
            cache_log: None,
            send_schedule: None,
            queue_limits: QueueLimits::default(),
        };
        let metrics = Arc::new(Mutex::new(metrics(version)));
        let driver = driver::start(config, Clock::start(SCALE.into()), metrics.clone()).unwrap();
        Self { driver, metrics }
    }

    /// Submits all requests before the driver looks at the first. Arrivals are in milliseconds of virtual time.
    pub(crate) async fn submit(&self, requests: Vec<(u64, EngineRequest)>) -> Vec<RequestHandle> {
        let (release, held) = std::sync::mpsc::channel();
        let hold = self.driver.inspect(move |_engine| held.recv());
        let submit = async {
            let submissions = requests.into_iter().map(|(arrival_ms, request)| Submission {
                max_tokens: u32::try_from(request.output.len()).unwrap(),
                request,
                request_id: "r".into(),
                arrival: SimTime(Duration::from_millis(arrival_ms)),
                group: None,
            });
            let handles: Vec<_> =
                submissions.map(|submission| self.driver.submit(submission).unwrap()).collect();
            release.send(()).unwrap();
            handles
        };
        let (held, handles) = futures::join!(hold, submit);
        held.unwrap().unwrap();
        handles
    }

    /// Runs all requests to their ends.
    pub(crate) async fn run(&self, requests: Vec<(u64, EngineRequest)>) {
        for mut handle in self.submit(requests).await {
            while let Some(delivery) = handle.next().await {
                assert!(!matches!(delivery, Delivery::Rejected(_)), "{delivery:?}");
            }
        }
    }

    pub(crate) fn page(&self) -> Page {
        Page::of(&self.metrics.lock())
    }

    /// Returns the page once `reached` holds.
    pub(crate) async fn page_when(&self, reached: impl Fn(&Page) -> bool) -> Page {
        let page = async {
            loop {
                let page = self.page();
                if reached(&page) {
                    return page;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), page).await.expect("it comes to that")
    }
}

// === impl Page ===

impl Page {
    pub(crate) fn of(metrics: &Metrics) -> Self {
        let text = Scrape::default().render(metrics, &HttpMetrics::new(1.0));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let own = series.replace(r#"engine="0","#, "").replace(r#"model_name="m""#, "");
            let own = own.replace(",}", "}").replace("{,", "{").replace("{}", "");
            (own, value.parse().unwrap())
        });
        Self(series.collect())
    }

    /// Returns the value of a series, whose name comes without `vllm:`.
    #[track_caller]
    pub(crate) fn get(&self, series: &str) -> f64 {
        *self.0.get(&format!("vllm:{series}")).unwrap_or_else(|| panic!("no {series} in {:#?}", self.0))
    }

    pub(crate) fn series(&self, name: &str) -> Vec<&str> {
        let prefix = format!("vllm:{name}");
        self.0.keys().filter_map(|series| series.strip_prefix(&prefix)).collect()
    }
}
