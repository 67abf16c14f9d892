//! `--kv-events-config`: vLLM's keys and defaults, and the endpoints on which the pod listens.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::fmt;
use std::str::FromStr;

/// Configuration that the flag asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KvEventsConfig {
    /// No events, or events with the publisher `null`: the engine need not record events.
    #[default]
    Off,
    Zmq(ZmqConfig),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZmqConfig {
    pub endpoint: ZmqEndpoint,
    /// Replay endpoint, on which the pod always listens.
    pub replay_endpoint: Option<TcpAddress>,
    /// Batches that are kept for replay; 0 for none.
    pub buffer_steps: usize,
    /// Most messages that wait for one slow subscriber; 0 for no limit.
    pub hwm: usize,
    /// Most batches between the engine and the socket; 0 for no limit.
    pub max_queue_size: usize,
    /// First frame of every message.
    pub topic: String,
}

/// Endpoint by vLLM's rule: the pod listens on an address with `*` or `::`, and connects to any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZmqEndpoint {
    Bind(TcpAddress),
    Connect(TcpAddress),
}

/// Host and port of a `tcp://` endpoint. It displays as `host:port`, with the wildcard as an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpAddress {
    host: String,
    port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum KvEventsConfigError {
    #[error("{path}: {reason}")]
    Json { path: String, reason: String },
    #[error("{0:?} is neither a JSON object nor key=value")]
    NoPair(String),
    #[error("endpoint {0:?} is not of the form tcp://host:port")]
    Endpoint(String),
    #[error("port {port} plus data-parallel rank {rank} is no port")]
    Port { port: u16, rank: u16 },
}

/// JSON of the flag, with the defaults of vLLM 0.33 `config/kv_events.py`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    enable_kv_cache_events: bool,
    /// Publisher; `None` means `zmq` if events are enabled.
    publisher: Option<PublisherKind>,
    endpoint: String,
    replay_endpoint: Option<String>,
    buffer_steps: usize,
    hwm: usize,
    max_queue_size: usize,
    topic: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PublisherKind {
    Null,
    Zmq,
}

// === impl KvEventsConfig ===

impl FromStr for KvEventsConfig {
    type Err = KvEventsConfigError;

    /// Reads the flag's JSON object.
    fn from_str(json: &str) -> Result<Self, KvEventsConfigError> {
        let raw = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(json))
            .map_err(|error| KvEventsConfigError::from_json(&error))?;
        Self::try_from_raw(raw)
    }
}

impl KvEventsConfig {
    /// Reads all values of the flag, in order. A JSON object replaces everything before it. `key=value`, which comes
    /// from `--kv-events-config.key value`, sets one key; a value that is not JSON is text.
    ///
    /// # Errors
    /// Names the key that is unknown or has a value of the wrong type.
    pub fn from_args<'a>(args: impl IntoIterator<Item = &'a str>) -> Result<Self, KvEventsConfigError> {
        let mut object = Map::new();
        for arg in args {
            if arg.trim_start().starts_with('{') {
                object = serde_json::from_str(arg).map_err(|error| KvEventsConfigError::Json {
                    path: "object".to_owned(),
                    reason: error.to_string(),
                })?;
            } else {
                let (key, value) =
                    arg.split_once('=').ok_or_else(|| KvEventsConfigError::NoPair(arg.to_owned()))?;
                let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
                object.insert(key.to_owned(), value);
            }
        }
        let raw = serde_path_to_error::deserialize(Value::Object(object))
            .map_err(|error| KvEventsConfigError::from_json(&error))?;
        Self::try_from_raw(raw)
    }

    /// Returns the configuration of one data-parallel rank: ports count up from rank 0's.
    ///
    /// # Errors
    /// Fails if a port would pass 65535.
    pub fn for_rank(self, rank: u16) -> Result<Self, KvEventsConfigError> {
        let Self::Zmq(mut config) = self else { return Ok(self) };
        config.endpoint = match config.endpoint {
            ZmqEndpoint::Bind(address) => ZmqEndpoint::Bind(address.for_rank(rank)?),
            ZmqEndpoint::Connect(address) => ZmqEndpoint::Connect(address.for_rank(rank)?),
        };
        config.replay_endpoint = config.replay_endpoint.map(|address| address.for_rank(rank)).transpose()?;
        Ok(Self::Zmq(config))
    }

    /// Returns the value for `EngineConfig::kv_events`.
    pub fn is_on(&self) -> bool {
        matches!(self, Self::Zmq(_))
    }

    fn try_from_raw(raw: RawConfig) -> Result<Self, KvEventsConfigError> {
        let RawConfig {
            enable_kv_cache_events,
            publisher,
            endpoint,
            replay_endpoint,
            buffer_steps,
            hwm,
            max_queue_size,
            topic,
        } = raw;
        let address: TcpAddress = endpoint.parse()?;
        let config = ZmqConfig {
            endpoint: if endpoint.contains('*') || endpoint.contains("::") {
                ZmqEndpoint::Bind(address)
            } else {
                ZmqEndpoint::Connect(address)
            },
            replay_endpoint: replay_endpoint.map(|endpoint| endpoint.parse()).transpose()?,
            buffer_steps,
            hwm,
            max_queue_size,
            topic,
        };
        Ok(match (enable_kv_cache_events, publisher) {
            (true, None | Some(PublisherKind::Zmq)) => Self::Zmq(config),
            (true, Some(PublisherKind::Null)) | (false, _) => Self::Off,
        })
    }
}

// === impl RawConfig ===

impl Default for RawConfig {
    fn default() -> Self {
        Self {
            enable_kv_cache_events: false,
            publisher: None,
            endpoint: "tcp://*:5557".to_owned(),
            replay_endpoint: None,
            buffer_steps: 10_000,
            hwm: 100_000,
            max_queue_size: 100_000,
            topic: String::new(),
        }
    }
}

// === impl KvEventsConfigError ===

impl KvEventsConfigError {
    fn from_json(error: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = match error.path().to_string().as_str() {
            "." => "object".to_owned(),
            path => path.to_owned(),
        };
        Self::Json { path, reason: error.inner().to_string() }
    }
}

// === impl TcpAddress ===

impl FromStr for TcpAddress {
    type Err = KvEventsConfigError;

    fn from_str(endpoint: &str) -> Result<Self, KvEventsConfigError> {
        let error = || KvEventsConfigError::Endpoint(endpoint.to_owned());
        let (host, port) =
            endpoint.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':')).ok_or_else(error)?;
        let port = match port {
            "*" => 0,
            port => port.parse().map_err(|_| error())?,
        };
        let host = match host {
            "" => return Err(error()),
            "*" => "0.0.0.0".to_owned(),
            host if host.contains(':') && !host.starts_with('[') => format!("[{host}]"),
            host => host.to_owned(),
        };
        Ok(Self { host, port })
    }
}

impl TcpAddress {
    /// Adds the rank to the port. Port 0, which lets the system choose, stays 0.
    fn for_rank(self, rank: u16) -> Result<Self, KvEventsConfigError> {
        let Self { host, port } = self;
        let ranked = if port == 0 { Some(0) } else { port.checked_add(rank) };
        Ok(Self { host, port: ranked.ok_or(KvEventsConfigError::Port { port, rank })? })
    }
}

impl fmt::Display for TcpAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
