//! Probes of a container: what the kubelet checks, how often, and how many results decide.

use serde::Deserialize;
use serde_json::Value;

use crate::port::TargetPort;

/// A `startupProbe`, `readinessProbe` or `livenessProbe`, with Kubernetes' defaults for fields that are missing or 0.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Wire")]
pub struct Probe {
    pub action: Action,
    pub initial_delay_seconds: u32,
    pub period_seconds: u32,
    pub timeout_seconds: u32,
    /// Successes in a row after which the probe passes.
    pub success_threshold: u32,
    /// Failures in a row after which the probe fails.
    pub failure_threshold: u32,
}

/// The check that a probe makes.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// GET request; a status from 200 to 399 is a success.
    HttpGet(HttpGet),
    /// Connection attempt; it succeeds if the connection opens.
    TcpSocket { port: TargetPort },
    /// Command inside the container.
    Exec,
    /// Call of gRPC's health service.
    Grpc,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    #[serde(default = "root")]
    pub path: String,
    pub port: TargetPort,
    #[serde(default)]
    pub scheme: Scheme,
    #[serde(default)]
    pub http_headers: Vec<HttpHeader>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct HttpHeader {
    pub name: String,
    pub value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    exec: Option<Value>,
    grpc: Option<Value>,
    #[serde(default)]
    initial_delay_seconds: u32,
    #[serde(default)]
    period_seconds: u32,
    #[serde(default)]
    timeout_seconds: u32,
    #[serde(default)]
    success_threshold: u32,
    #[serde(default)]
    failure_threshold: u32,
}

#[derive(Deserialize)]
struct TcpSocket {
    port: TargetPort,
}

impl TryFrom<Wire> for Probe {
    type Error = &'static str;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        let Wire {
            http_get,
            tcp_socket,
            exec,
            grpc,
            initial_delay_seconds,
            period_seconds,
            timeout_seconds,
            success_threshold,
            failure_threshold,
        } = wire;
        let actions = [
            http_get.map(Action::HttpGet),
            tcp_socket.map(|TcpSocket { port }| Action::TcpSocket { port }),
            exec.map(|_| Action::Exec),
            grpc.map(|_| Action::Grpc),
        ];
        let mut actions = actions.into_iter().flatten();
        let (Some(action), None) = (actions.next(), actions.next()) else {
            return Err("exactly one of httpGet, tcpSocket, exec and grpc must be given");
        };
        let or = |given: u32, default: u32| if given == 0 { default } else { given };
        Ok(Self {
            action,
            initial_delay_seconds,
            period_seconds: or(period_seconds, 10),
            timeout_seconds: or(timeout_seconds, 1),
            success_threshold: or(success_threshold, 1),
            failure_threshold: or(failure_threshold, 3),
        })
    }
}

fn root() -> String {
    "/".to_owned()
}
