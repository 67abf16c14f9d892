//! Settings for traffic from clients and to backends, in the words of Envoy Gateway's policies.

use inference_api::gateway::HttpRouteRule;
use inference_api::traffic::{
    BackOff, BackendTimeout, BackendTrafficPolicySpec, CircuitBreaker, ClientTimeout,
    ClientTrafficPolicySpec, Connection, HttpTimeout, LoadBalancer, PerEndpoint, PerRetry, Retry, RetryOn,
    TcpTimeout,
};

/// Settings of a listener for its clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTraffic {
    pub connection: Connection,
    pub timeout: ClientTimeout,
}

/// Settings of a route and of the clusters that it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Without a request timeout, Envoy's default of 15 s counts, as under Envoy Gateway; zero means none.
    pub timeout: BackendTimeout,
    /// `None`: no retries.
    pub retry: Option<Retry>,
    pub circuit_breaker: CircuitBreaker,
    /// `None`: least request.
    pub load_balancer: Option<LoadBalancer>,
    pub connection: Connection,
}

impl ClientTraffic {
    pub(super) fn of(spec: &ClientTrafficPolicySpec) -> Self {
        Self { connection: spec.connection.clone(), timeout: spec.timeout.clone() }
    }
}

impl Traffic {
    pub(super) fn of(spec: &BackendTrafficPolicySpec) -> Self {
        Self {
            timeout: spec.timeout.clone(),
            retry: spec.retry.clone(),
            circuit_breaker: spec.circuit_breaker.clone(),
            load_balancer: spec.load_balancer.clone(),
            connection: spec.connection.clone(),
        }
    }

    /// Lets the settings of a rule itself count before those of policies. With retries, the time for a backend is that of
    /// each try.
    pub(super) fn with_rule(mut self, rule: &HttpRouteRule) -> Self {
        let request = rule.timeouts.as_ref().and_then(|timeouts| timeouts.request);
        let backend = rule.timeouts.as_ref().and_then(|timeouts| timeouts.backend_request);
        let own = match &rule.retry {
            None => backend.or(request),
            Some(retry) => {
                let back_off = BackOff { base_interval: retry.backoff, max_interval: None };
                let http_status_codes = retry.codes.clone();
                self.retry = Some(Retry {
                    num_retries: retry.attempts,
                    retry_on: (!http_status_codes.is_empty())
                        .then_some(RetryOn { triggers: Vec::new(), http_status_codes }),
                    per_retry: PerRetry { timeout: backend, back_off },
                });
                request
            }
        };
        let http = &mut self.timeout.http;
        http.request_timeout = own.or(http.request_timeout);
        self
    }

    /// True if clusters of the two settings are the same.
    pub(super) fn is_same_cluster(&self, other: &Self) -> bool {
        let of_cluster = |traffic: &Self| {
            let HttpTimeout { connection_idle_timeout, max_connection_duration, .. } = traffic.timeout.http;
            (traffic.timeout.tcp.connect_timeout, connection_idle_timeout, max_connection_duration)
        };
        of_cluster(self) == of_cluster(other)
            && self.circuit_breaker == other.circuit_breaker
            && self.load_balancer == other.load_balancer
            && self.connection == other.connection
    }

    /// These settings, and those of `parent` for what they leave open.
    pub(super) fn over(self, parent: Self) -> Self {
        let Self { timeout: BackendTimeout { tcp, http }, retry, circuit_breaker, load_balancer, connection } =
            self;
        let under = parent.timeout.http;
        let connect_timeout = tcp.connect_timeout.or(parent.timeout.tcp.connect_timeout);
        let http = HttpTimeout {
            request_timeout: http.request_timeout.or(under.request_timeout),
            stream_idle_timeout: http.stream_idle_timeout.or(under.stream_idle_timeout),
            max_stream_duration: http.max_stream_duration.or(under.max_stream_duration),
            connection_idle_timeout: http.connection_idle_timeout.or(under.connection_idle_timeout),
            max_connection_duration: http.max_connection_duration.or(under.max_connection_duration),
        };
        let retry = match (retry, parent.retry) {
            (Some(own), Some(under)) => Some(retry_over(own, under)),
            (own, under) => own.or(under),
        };
        let under = parent.circuit_breaker;
        let per_endpoint = PerEndpoint {
            max_connections: circuit_breaker
                .per_endpoint
                .max_connections
                .or(under.per_endpoint.max_connections),
        };
        let circuit_breaker = CircuitBreaker {
            max_connections: circuit_breaker.max_connections.or(under.max_connections),
            max_pending_requests: circuit_breaker.max_pending_requests.or(under.max_pending_requests),
            max_parallel_requests: circuit_breaker.max_parallel_requests.or(under.max_parallel_requests),
            max_parallel_retries: circuit_breaker.max_parallel_retries.or(under.max_parallel_retries),
            max_requests_per_connection: circuit_breaker
                .max_requests_per_connection
                .or(under.max_requests_per_connection),
            per_endpoint,
            retry_budget: circuit_breaker.retry_budget.or(under.retry_budget),
        };
        Self {
            timeout: BackendTimeout { tcp: TcpTimeout { connect_timeout }, http },
            retry,
            circuit_breaker,
            load_balancer: load_balancer.or(parent.load_balancer),
            connection: Connection {
                buffer_limit: connection.buffer_limit.or(parent.connection.buffer_limit),
            },
        }
    }
}

fn retry_over(own: Retry, under: Retry) -> Retry {
    let retries_over = |own: RetryOn, under: RetryOn| RetryOn {
        triggers: if own.triggers.is_empty() { under.triggers } else { own.triggers },
        http_status_codes: match own.http_status_codes.is_empty() {
            true => under.http_status_codes,
            false => own.http_status_codes,
        },
    };
    let retry_on = match (own.retry_on, under.retry_on) {
        (Some(own), Some(under)) => Some(retries_over(own, under)),
        (own, under) => own.or(under),
    };
    let (own_back_off, under_back_off) = (own.per_retry.back_off, under.per_retry.back_off);
    Retry {
        num_retries: own.num_retries.or(under.num_retries),
        retry_on,
        per_retry: PerRetry {
            timeout: own.per_retry.timeout.or(under.per_retry.timeout),
            back_off: BackOff {
                base_interval: own_back_off.base_interval.or(under_back_off.base_interval),
                max_interval: own_back_off.max_interval.or(under_back_off.max_interval),
            },
        },
    }
}
