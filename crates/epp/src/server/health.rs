//! Liveness and readiness of the picker: gRPC health on two ports, and the answer of `/readyz`.
//!
//! `liveness` holds as long as the process lives. Readiness means that a request would be placed with knowledge: a pool
//! is known, and each endpoint that was there at the start has been scraped, successfully or not. It ends with the last
//! pool, and with the drain.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService, health_reporter};
use tracing::info;

use super::grpc::SERVICE;
use crate::director::Director;

/// Upstream's names of the service that takes requests.
const READINESS: [&str; 3] = ["", "readiness", SERVICE];
const LIVENESS: &str = "liveness";
/// Time between two looks at the readiness.
const PERIOD: Duration = Duration::from_millis(50);

/// The health services, and the reporter that sets their answers.
#[derive(Debug)]
pub(super) struct Health {
    reporter: HealthReporter,
    service: HealthServer<HealthService>,
}

impl Health {
    /// Creates the services: alive, but not ready.
    pub(super) async fn new() -> Self {
        let (reporter, _) = health_reporter();
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let health = Self { reporter, service };
        health.reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
        health.report(ServingStatus::NotServing).await;
        health
    }

    pub(super) fn service(&self) -> HealthServer<HealthService> {
        self.service.clone()
    }

    /// Follows the director until the drain; from then on, the picker is not ready.
    pub(super) async fn follow(self, director: Arc<Director>, drain: CancellationToken) {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_ready = false;
        loop {
            tokio::select! {
                biased;
                () = drain.cancelled() => return self.report(ServingStatus::NotServing).await,
                _ = ticks.tick() => {}
            }
            let is_ready = director.is_ready();
            if is_ready != was_ready {
                info!(is_ready, "Readiness changes");
                let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
                self.report(status).await;
                was_ready = is_ready;
            }
        }
    }

    async fn report(&self, status: ServingStatus) {
        for name in READINESS {
            self.reporter.set_service_status(name, status).await;
        }
    }
}
