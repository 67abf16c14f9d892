//! The client of a request: the id that it gave its request, and the connection that the answer goes to.

use super::X_REQUEST_ID;
use crate::faults::socket::Connection;
use crate::send_schedule::Outbox;
use axum::extract::{ConnectInfo, FromRequestParts};
use http::request::Parts;
use std::convert::Infallible;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) request_id: Option<String>,
    /// Outbox of the client's connection; `None` if tokens leave as soon as they are written.
    pub(super) outbox: Option<Arc<Outbox>>,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        let id = parts.headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
        let connection = parts.extensions.get::<ConnectInfo<Connection>>();
        Ok(Self {
            request_id: id.map(str::to_owned),
            outbox: connection.and_then(|ConnectInfo(connection)| connection.outbox().cloned()),
        })
    }
}
