//! The access log service, in which the proxy tells how requests have ended whose response went past the picker. Its
//! streams last as long as the picker takes new streams of requests.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use envoy_proto::service::accesslog::v3::access_log_service_server::{
    AccessLogService, AccessLogServiceServer,
};
use envoy_proto::service::accesslog::v3::stream_access_logs_message::LogEntries;
use envoy_proto::service::accesslog::v3::{StreamAccessLogsMessage, StreamAccessLogsResponse};
use ext_proc::observation::Ending;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::director::Now;
use crate::reports::Reports;

/// Takes the entries of all proxies.
#[derive(Clone, Debug)]
pub(super) struct AccessLog {
    reports: Arc<Reports>,
    /// Cancelled when the picker takes no new streams: the proxy goes to another one then.
    closed: CancellationToken,
    /// Ends of logs that are still read after their answer. Their connections last as long.
    rests: TaskTracker,
}

impl AccessLog {
    pub(super) fn service(reports: Arc<Reports>, closed: CancellationToken) -> AccessLogServiceServer<Self> {
        AccessLogServiceServer::new(Self { reports, closed, rests: TaskTracker::new() })
    }

    /// Reads until the proxy ends the log.
    async fn read(&self, messages: &mut Streaming<StreamAccessLogsMessage>) {
        while let Ok(Some(message)) = messages.message().await {
            self.take(message);
        }
    }

    fn take(&self, message: StreamAccessLogsMessage) {
        let Some(LogEntries::HttpLogs(entries)) = message.log_entries else { return };
        for ending in entries.log_entry.iter().filter_map(Ending::of) {
            self.reports.take(ending, now());
        }
    }
}

#[tonic::async_trait]
impl AccessLogService for AccessLog {
    async fn stream_access_logs(
        &self,
        request: Request<Streaming<StreamAccessLogsMessage>>,
    ) -> Result<Response<StreamAccessLogsResponse>, Status> {
        let mut messages = request.into_inner();
        tokio::select! {
            () = self.read(&mut messages) => {}
            () = self.closed.cancelled() => {
                // The proxy goes on until it has the answer.
                let log = self.clone();
                self.rests.spawn(async move { log.read(&mut messages).await });
            }
        }
        Ok(Response::new(StreamAccessLogsResponse {}))
    }
}

#[expect(clippy::disallowed_methods, reason = "the server is the edge that hands the time in")]
fn now() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::now() }
}
