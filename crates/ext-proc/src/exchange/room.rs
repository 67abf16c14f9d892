//! Room in a message's headers for those that the picker adds.
//!
//! Envoy checks the headers again after a mutation. If they are too many or too long, the client gets 500 with an empty
//! body, which the picker must prevent.

use envoy_proto::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_proto::service::ext_proc::v3::HttpHeaders;
use inference_api::keys;

use crate::refusal::HeadersFault;

/// Most headers of a message, pseudo-headers included: the default of Envoy's `max_headers_count`.
const MAX_HEADERS: usize = 100;
/// Most bytes of their names and values: the default of Envoy's `max_request_headers_kb`.
const MAX_HEADER_BYTES: usize = 60 << 10;
/// Headers, and their bytes, that Envoy itself may have added after its check of the client's. A message with more than
/// the limit and these shows that Envoy is configured with another limit, which is unknown here.
const OWN_HEADERS: usize = 16;
const OWN_BYTES: usize = 1 << 10;
/// Longest destination that gets room: four IPv6 endpoints with their ports.
const DESTINATION_BYTES: usize = 192;
/// Length of a request id that the picker creates, a UUID.
const REQUEST_ID_BYTES: usize = 36;

/// The headers of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room<'a> {
    came: &'a [HeaderValue],
    n_headers: usize,
    n_bytes: usize,
}

impl<'a> Room<'a> {
    pub(super) fn new(headers: &'a HttpHeaders) -> Self {
        let came = headers.headers.as_ref().map(|map| map.headers.as_slice()).unwrap_or_default();
        Self { came, n_headers: came.len(), n_bytes: came.iter().map(length).sum() }
    }

    /// Checks that there is room for the headers that a pick adds to a request.
    ///
    /// # Errors
    /// The limit that would be exceeded.
    pub(super) fn for_pick(mut self) -> Result<(), HeadersFault> {
        let Self { n_headers, n_bytes, .. } = self;
        self.add(keys::DESTINATION_ENDPOINT, DESTINATION_BYTES);
        self.add(keys::REQUEST_ID, REQUEST_ID_BYTES);
        if self.is_too_many() {
            return Err(HeadersFault::TooMany { n_headers, limit: MAX_HEADERS });
        }
        if self.is_too_long() {
            return Err(HeadersFault::TooLong { n_bytes, limit: MAX_HEADER_BYTES });
        }
        Ok(())
    }

    /// Removes headers from `added` that do not fit, the last ones first.
    pub(super) fn fit(mut self, added: &mut Vec<HeaderValueOption>) {
        added.retain(|option| {
            let Some(header) = &option.header else { return true };
            let before = self;
            self.add(&header.key, length(header) - header.key.len());
            let fits = !self.is_too_many() && !self.is_too_long();
            if !fits {
                self = before;
            }
            fits
        });
    }

    fn add(&mut self, key: &str, n_value_bytes: usize) {
        // A longer value may replace a shorter one, so only the header's own place is free.
        if !self.came.iter().any(|header| header.key == key) {
            self.n_headers += 1;
            self.n_bytes += key.len();
        }
        self.n_bytes += n_value_bytes;
    }

    /// Returns true if the added headers exceed the proxy's limit.
    fn is_too_many(&self) -> bool {
        self.n_headers > MAX_HEADERS && self.came.len() <= MAX_HEADERS + OWN_HEADERS
    }

    fn is_too_long(&self) -> bool {
        let n_bytes_came: usize = self.came.iter().map(length).sum();
        self.n_bytes > MAX_HEADER_BYTES && n_bytes_came <= MAX_HEADER_BYTES + OWN_BYTES
    }
}

/// Bytes of a header's name and of its value, in whichever of the two fields it is.
fn length(header: &HeaderValue) -> usize {
    header.key.len() + header.value.len().max(header.raw_value.len())
}
