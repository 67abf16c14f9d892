//! Requests whose response goes past the picker: the name that the proxy gets at the pick, and repeats on the stream that
//! reports the response.

use envoy_proto::google::protobuf::value::Kind;
use envoy_proto::google::protobuf::{Struct, Value};
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse};
use inference_api::keys;

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
        let lb = message.metadata_context.as_ref()?.filter_metadata.get(keys::LB_METADATA)?;
        let ticket = text(lb, keys::TICKET)?.to_owned();
        let destination = text(lb, keys::DESTINATION_ENDPOINT).unwrap_or_default().to_owned();
        Some(Self { ticket, destination })
    }
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
