//! Requests whose response goes past the picker: the name that the proxy gets at the pick, and repeats where it tells of
//! the response: in its access log, and on the streams that report a share of the responses.

use envoy_proto::config::core::v3::Metadata;
use envoy_proto::data::accesslog::v3::{HttpAccessLogEntry, ResponseFlags};
use envoy_proto::google::protobuf::value::Kind;
use envoy_proto::google::protobuf::{Struct, Value};
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use inference_api::keys;
use serde::{Deserialize, Serialize};

use crate::exchange::ResponseReport;

/// The facts about a pick that the proxy needs after the request's stream has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// The picker's name of the request.
    pub ticket: String,
    /// `ip:port` of the picker, if it knows the address at which the proxy reached it.
    pub picker: Option<String>,
    /// The decision as JSON, which the proxy adds to the response if the client asked for it.
    pub decision: Option<String>,
}

/// The start of a stream that reports the response of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub ticket: String,
    /// The endpoints that the proxy was told to try.
    pub destination: String,
}

/// The name of a request whose end the proxy tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    Ticket(String),
    /// The request's id, if the proxy has no ticket: its client may have hung up before the proxy had the answer.
    Id(String),
}

/// The end of a request, according to the proxy's access log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    pub name: Name,
    /// The endpoint that served, if it is not the first of those that the proxy was told to try.
    pub served_elsewhere: Option<String>,
    /// HTTP status; `None` if there was no response.
    pub status: Option<u16>,
    /// Length in bytes of the response's body.
    pub n_bytes: u64,
    /// False if the client, the proxy or the engine broke off.
    pub complete: bool,
}

impl Naming {
    /// Adds the facts to the metadata of the answer that has the pick; answers without a pick stay as they are.
    pub fn apply(self, answers: &mut [ProcessingResponse]) {
        let metadata = answers.iter_mut().find_map(|answer| answer.dynamic_metadata.as_mut());
        let lb = metadata.and_then(|metadata| metadata.fields.get_mut(keys::LB_METADATA));
        let Some(Kind::StructValue(lb)) = lb.and_then(|value| value.kind.as_mut()) else { return };
        let Self { ticket, picker, decision } = self;
        let facts = [(keys::TICKET, Some(ticket)), (keys::PICKER, picker), (keys::DECISION, decision)];
        for (key, text) in facts {
            let value = text.map(|text| Value { kind: Some(Kind::StringValue(text)) });
            lb.fields.extend(value.map(|value| (key.to_owned(), value)));
        }
    }
}

impl Report {
    /// The report that begins with `message`; `None` if the message belongs to another stream. Clients cannot write the
    /// metadata in which the proxy repeats the ticket.
    #[must_use]
    pub fn begun_by(message: &ProcessingRequest) -> Option<Self> {
        if !message.observability_mode || !matches!(message.request, Some(Request::RequestHeaders(_))) {
            return None;
        }
        let lb = lb(message.metadata_context.as_ref())?;
        let ticket = text(lb, keys::TICKET)?.to_owned();
        let destination = text(lb, keys::DESTINATION_ENDPOINT).unwrap_or_default().to_owned();
        Some(Self { ticket, destination })
    }
}

impl Ending {
    /// The end that `entry` tells; `None` if the request has no name, or it goes on.
    #[must_use]
    pub fn of(entry: &HttpAccessLogEntry) -> Option<Self> {
        let common = entry.common_properties.as_ref().filter(|common| !common.intermediate_log_entry)?;
        let lb = lb(common.metadata.as_ref());
        let text = |key| lb.and_then(|lb| text(lb, key));
        let name = match text(keys::TICKET) {
            Some(ticket) => Name::Ticket(ticket.to_owned()),
            None => Name::Id(entry.request.as_ref()?.request_id.clone()),
        };
        let picked = text(keys::DESTINATION_ENDPOINT).and_then(|list| list.split(',').next());
        let served = text(keys::DESTINATION_ENDPOINT_SERVED).filter(|served| Some(*served) != picked);
        let response = entry.response.as_ref();
        let status = response.and_then(|response| u16::try_from(response.response_code?).ok());
        let status = status.filter(|status| *status != 0);
        let has_broken_off = common.response_flags.as_ref().is_some_and(has_broken_off);
        Some(Self {
            name,
            served_elsewhere: served.map(str::to_owned),
            status,
            n_bytes: response.map_or(0, |response| response.response_body_bytes),
            complete: status.is_some() && !has_broken_off,
        })
    }

    /// The facts about the response.
    #[must_use]
    pub fn report(&self) -> ResponseReport {
        let Self { name: _, served_elsewhere: _, status, n_bytes, complete } = *self;
        ResponseReport { status, usage: None, n_bytes, complete: Some(complete) }
    }
}

/// Returns true if the response is not whole.
fn has_broken_off(flags: &ResponseFlags) -> bool {
    let ResponseFlags {
        upstream_request_timeout,
        local_reset,
        upstream_remote_reset,
        upstream_connection_termination,
        downstream_connection_termination,
        stream_idle_timeout,
        downstream_protocol_error,
        upstream_max_stream_duration_reached,
        duration_timeout,
        upstream_protocol_error,
        overload_manager,
        downstream_remote_reset,
    } = *flags;
    let by_client = downstream_connection_termination || downstream_protocol_error || downstream_remote_reset;
    let by_engine = upstream_remote_reset || upstream_connection_termination || upstream_protocol_error;
    let by_proxy = upstream_request_timeout
        || local_reset
        || stream_idle_timeout
        || upstream_max_stream_duration_reached
        || duration_timeout
        || overload_manager;
    by_client || by_engine || by_proxy
}

/// The metadata that pickers write.
fn lb(metadata: Option<&Metadata>) -> Option<&Struct> {
    metadata?.filter_metadata.get(keys::LB_METADATA)
}

fn text<'a>(fields: &'a Struct, key: &str) -> Option<&'a str> {
    match fields.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        Kind::NullValue(_)
        | Kind::NumberValue(_)
        | Kind::BoolValue(_)
        | Kind::StructValue(_)
        | Kind::ListValue(_) => None,
    }
}
