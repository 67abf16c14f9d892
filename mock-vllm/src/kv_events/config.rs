//! `--kv-events-config`: vLLM's keys and defaults, and which of its endpoints are listened on.

use serde::Deserialize;
use serde_json::{Map, Value};
use std::fmt;
use std::str::FromStr;

/// What the flag asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KvEventsConfig {
    /// Not enabled, or enabled for the publisher `null`: the engine need not record events.
    #[default]
    Off,
    Zmq(ZmqConfig),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZmqConfig {
    pub endpoint: Endpoint,
    /// Always listened on.
    pub replay_endpoint: Option<Address>,
    /// Batches kept for replay; 0 = none.
    pub buffer_steps: usize,
    /// Messages that wait for one slow subscriber; 0 = no limit.
    pub hwm: usize,
    /// Batches between the engine and the socket; 0 = no limit.
    pub max_queue_size: usize,
    /// The first frame of every message.
    pub topic: String,
}

/// vLLM's rule: an address with `*` or `::` is listened on, any other is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Bind(Address),
    Connect(Address),
}

/// Host and port of a `tcp://` endpoint; displays as `host:port`, with the wildcard as an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {reason}")]
    Json { path: String, reason: String },
    #[error("{0:?} is neither a JSON object nor key=value")]
    NoPair(String),
    #[error("endpoint {0:?} is not of the form tcp://host:port")]
    Endpoint(String),
    #[error("port {port} plus data-parallel rank {rank} is no port")]
    Port { port: u16, rank: u16 },
}

/// The flag's JSON. Defaults: vLLM 0.33 `config/kv_events.py`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    enable_kv_cache_events: bool,
    /// `None`: `zmq` when events are enabled.
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
    type Err = ConfigError;

    /// From the flag's JSON object.
    fn from_str(json: &str) -> Result<Self, ConfigError> {
        let raw = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(json))
            .map_err(|error| ConfigError::from_json(&error))?;
        Self::try_from_raw(raw)
    }
}

impl KvEventsConfig {
    /// From every value of the flag, in order: a JSON object replaces all before it, `key=value` (what
    /// `--kv-events-config.key value` stands for) sets one key, with JSON where the value is some and text elsewhere.
    ///
    /// # Errors
    /// Names the key that is unknown or has a value of the wrong kind.
    pub fn from_args<'a>(args: impl IntoIterator<Item = &'a str>) -> Result<Self, ConfigError> {
        let mut object = Map::new();
        for arg in args {
            if arg.trim_start().starts_with('{') {
                object = serde_json::from_str(arg).map_err(|error| ConfigError::Json {
                    path: "object".to_owned(),
                    reason: error.to_string(),
                })?;
            } else {
                let (key, value) = arg.split_once('=').ok_or_else(|| ConfigError::NoPair(arg.to_owned()))?;
                let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
                object.insert(key.to_owned(), value);
            }
        }
        let raw = serde_path_to_error::deserialize(Value::Object(object))
            .map_err(|error| ConfigError::from_json(&error))?;
        Self::try_from_raw(raw)
    }

    /// The configuration of one data-parallel rank: ports are counted up from rank 0's.
    ///
    /// # Errors
    /// When a port would pass 65535.
    pub fn for_rank(self, rank: u16) -> Result<Self, ConfigError> {
        let Self::Zmq(mut config) = self else { return Ok(self) };
        config.endpoint = match config.endpoint {
            Endpoint::Bind(address) => Endpoint::Bind(address.for_rank(rank)?),
            Endpoint::Connect(address) => Endpoint::Connect(address.for_rank(rank)?),
        };
        config.replay_endpoint = config.replay_endpoint.map(|address| address.for_rank(rank)).transpose()?;
        Ok(Self::Zmq(config))
    }

    /// For `EngineConfig::kv_events`.
    pub fn is_on(&self) -> bool {
        matches!(self, Self::Zmq(_))
    }

    fn try_from_raw(raw: RawConfig) -> Result<Self, ConfigError> {
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
        let address: Address = endpoint.parse()?;
        let config = ZmqConfig {
            endpoint: if endpoint.contains('*') || endpoint.contains("::") {
                Endpoint::Bind(address)
            } else {
                Endpoint::Connect(address)
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

// === impl ConfigError ===

impl ConfigError {
    fn from_json(error: &serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = match error.path().to_string().as_str() {
            "." => "object".to_owned(),
            path => path.to_owned(),
        };
        Self::Json { path, reason: error.inner().to_string() }
    }
}

// === impl Address ===

impl FromStr for Address {
    type Err = ConfigError;

    fn from_str(endpoint: &str) -> Result<Self, ConfigError> {
        let error = || ConfigError::Endpoint(endpoint.to_owned());
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

impl Address {
    /// Port 0, which lets the system choose, stays 0.
    fn for_rank(self, rank: u16) -> Result<Self, ConfigError> {
        let Self { host, port } = self;
        let ranked = if port == 0 { Some(0) } else { port.checked_add(rank) };
        Ok(Self { host, port: ranked.ok_or(ConfigError::Port { port, rank })? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
