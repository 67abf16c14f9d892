//! The proxy's modes of sending bodies, from `protocol_config`.

use envoy_proto::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_proto::service::ext_proc::v3::ProtocolConfiguration;

/// The body modes of both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    pub request: BodyMode,
    pub response: BodyMode,
}

/// The parts of a body that the proxy sends, and when it needs an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyMode {
    /// Chunks; the picker answers at any time with chunks of its own.
    FullDuplex,
    /// The whole body in one message, after the answer to the headers.
    Buffered,
    /// Like `Buffered`, but only the first part of a body that exceeds the proxy's buffer.
    BufferedPartial,
    /// Chunks with one answer each, after the answer to the headers.
    Streamed,
    /// Chunks with one answer each, sent without waiting for the answer to the headers.
    StreamedAhead,
    /// No body.
    None,
}

impl Default for Modes {
    /// The mode of the Endpoint Picker Protocol, for a proxy that announces none.
    fn default() -> Self {
        Self { request: BodyMode::FullDuplex, response: BodyMode::FullDuplex }
    }
}

impl Modes {
    #[must_use]
    pub fn new(config: &ProtocolConfiguration) -> Self {
        let ProtocolConfiguration {
            request_body_mode: _,
            response_body_mode: _,
            send_body_without_waiting_for_header_response: ahead,
        } = *config;
        let mode = |mode| match mode {
            BodySendMode::FullDuplexStreamed => BodyMode::FullDuplex,
            BodySendMode::Buffered => BodyMode::Buffered,
            BodySendMode::BufferedPartial => BodyMode::BufferedPartial,
            BodySendMode::Streamed if ahead => BodyMode::StreamedAhead,
            BodySendMode::Streamed => BodyMode::Streamed,
            // gRPC bodies are also full duplex, but they are not JSON, so they are never read.
            BodySendMode::None | BodySendMode::Grpc => BodyMode::None,
        };
        Self { request: mode(config.request_body_mode()), response: mode(config.response_body_mode()) }
    }
}

impl BodyMode {
    /// Returns true if the pick can wait for the body.
    pub(crate) fn shows_body_before_pick(self) -> bool {
        match self {
            Self::FullDuplex | Self::Buffered | Self::BufferedPartial | Self::StreamedAhead => true,
            Self::Streamed | Self::None => false,
        }
    }

    pub(crate) fn is_buffered(self) -> bool {
        matches!(self, Self::Buffered | Self::BufferedPartial)
    }
}
