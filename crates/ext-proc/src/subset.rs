//! The endpoints to which the proxy limits the pick, compared as addresses: an IPv6 address can be written in many
//! ways.

use std::net::{IpAddr, SocketAddr};

use envoy_proto::config::core::v3::Metadata;
use envoy_proto::google::protobuf::value::Kind as ValueKind;
use inference_api::keys;

/// The proxy's subset hint. An entry that is not an address matches no endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subset {
    wanted: Vec<Wanted>,
}

/// An entry of the hint. IPv4 addresses that are mapped into IPv6 count as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    ip: IpAddr,
    /// `None` matches every port.
    port: Option<u16>,
}

// === impl Subset ===

impl Subset {
    /// Parses entries such as `10.0.0.1`, `10.0.0.1:8000`, `2001:db8::1`, `[2001:db8::1]` and `[2001:db8::1]:8000`.
    #[must_use]
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        Self { wanted: entries.into_iter().flat_map(Wanted::readings).collect() }
    }

    /// The hint in the request's filter metadata; `None` if the proxy sent none.
    #[must_use]
    pub fn from_metadata(metadata: Option<&Metadata>) -> Option<Self> {
        let hint = metadata?.filter_metadata.get(keys::SUBSET_METADATA)?;
        let subset = match hint.fields.get(keys::DESTINATION_ENDPOINT_SUBSET)?.kind.as_ref() {
            Some(ValueKind::ListValue(list)) => {
                Self::parse(list.values.iter().filter_map(|value| match value.kind.as_ref()? {
                    ValueKind::StringValue(text) => Some(text.as_str()),
                    ValueKind::NullValue(_)
                    | ValueKind::NumberValue(_)
                    | ValueKind::BoolValue(_)
                    | ValueKind::StructValue(_)
                    | ValueKind::ListValue(_) => None,
                }))
            }
            Some(ValueKind::StringValue(text)) => Self::parse(text.split(',')),
            Some(
                ValueKind::NullValue(_)
                | ValueKind::NumberValue(_)
                | ValueKind::BoolValue(_)
                | ValueKind::StructValue(_),
            )
            | None => Self::parse([]),
        };
        Some(subset)
    }

    #[must_use]
    pub fn contains(&self, endpoint: SocketAddr) -> bool {
        let ip = endpoint.ip().to_canonical();
        let is_wanted =
            |wanted: &Wanted| wanted.ip == ip && wanted.port.is_none_or(|port| port == endpoint.port());
        self.wanted.iter().any(is_wanted)
    }
}

// === impl Wanted ===

impl Wanted {
    /// The possible meanings of an entry. Without brackets it may be both an address and an address with a port, as
    /// `::1:8000`.
    fn readings(entry: &str) -> impl Iterator<Item = Self> + use<> {
        let entry = entry.trim();
        let address = without_brackets(entry).parse().ok().map(|ip: IpAddr| (ip, None));
        let with_port = entry.rsplit_once(':').and_then(|(host, port)| {
            let ip: IpAddr = without_brackets(host).parse().ok()?;
            Some((ip, Some(port.parse().ok()?)))
        });
        let wanted = |(ip, port): (IpAddr, Option<u16>)| Self { ip: ip.to_canonical(), port };
        address.into_iter().chain(with_port).map(wanted)
    }
}

fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
