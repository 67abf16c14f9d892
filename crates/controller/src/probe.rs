//! One look at somebody else's picker: in which body mode does it take requests?
//!
//! ```text
//! connect ─► headers and a part of a body ─┬─(an answer to the part)──► the mode that it is of
//!                                          └─(silence)─► another call ─(answered)─► FullDuplexStreamed
//! ```
//! The body never ends, so the picker picks nothing. Envoy trusts any certificate of such a picker, and so does this.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use envoy_proto::config::core::v3::{HeaderMap, HeaderValue};
use envoy_proto::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::external_processor_client::ExternalProcessorClient;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{
    BodyResponse, HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use inference_api::pool::BodyMode;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::http::uri::{PathAndQuery, Uri};
use tonic::codegen::{Service, http};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

/// Longest wait for a connection, and for the answer to a call that every server of gRPC answers.
const ANSWER: Duration = Duration::from_secs(5);
/// Wait for an answer to a part of a body. A picker that reads whole bodies gives none.
const SILENCE: Duration = Duration::from_secs(2);
/// A call that servers answer, also those that do not know it.
const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// Name that the connection is for. Nobody verifies it.
const SERVER_NAME: &str = "picker";
/// Name by which the picker's log may know the request.
const USER_AGENT: &str = "warmpath-controller";

/// Why a look shows nothing.
#[derive(Debug, Error)]
pub enum ProbeError {
    #[error("no connection within {ANSWER:?}")]
    Slow,
    #[error("no connection")]
    Connect(#[source] std::io::Error),
    #[error("no HTTP/2")]
    Http(#[from] hyper::Error),
    #[error("the picker refuses the request")]
    Refused(#[source] Box<Status>),
    #[error("the picker answers the request itself")]
    Immediate,
    #[error("the picker ends the stream")]
    Ended,
    #[error("the picker is silent")]
    Silent,
}

/// A connection to a picker.
#[derive(Debug)]
pub struct Connection {
    requests: SendRequest<Body>,
    /// Drives the connection until its end.
    driver: JoinSet<()>,
}

impl Connection {
    /// Connects to a picker.
    ///
    /// # Errors
    /// If nothing there speaks HTTP/2 over TLS.
    pub async fn open(address: SocketAddr) -> Result<Self, ProbeError> {
        let opening = async {
            let socket = TcpStream::connect(address).await.map_err(ProbeError::Connect)?;
            let name = ServerName::try_from(SERVER_NAME).expect("a DNS name");
            let connector = TlsConnector::from(Arc::new(any_certificate()));
            let stream = connector.connect(name, socket).await.map_err(ProbeError::Connect)?;
            let (requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            let mut driver = JoinSet::new();
            driver.spawn(async { drop(connection.await) });
            Ok(Self { requests, driver })
        };
        timeout(ANSWER, opening).await.unwrap_or(Err(ProbeError::Slow))
    }

    /// Returns when the picker has closed the connection.
    pub async fn closed(&mut self) {
        self.driver.join_next().await;
    }

    /// The body mode of the picker.
    ///
    /// # Errors
    /// If it refuses the request, or answers nothing at all.
    pub async fn body_mode(&self) -> Result<BodyMode, ProbeError> {
        let (requests, queue) = mpsc::channel(2);
        let asking = async {
            // The queue has room for both, and ends when this does.
            let _ = requests.send(headers()).await;
            let _ = requests.send(part()).await;
            let mut client = ExternalProcessorClient::with_origin(Requests(self.requests.clone()), origin());
            let answers = client.process(ReceiverStream::new(queue)).await;
            let mut answers = answers.map_err(|status| ProbeError::Refused(Box::new(status)))?.into_inner();
            first_about_the_body(&mut answers).await
        };
        match timeout(SILENCE, asking).await {
            Ok(mode) => mode,
            Err(_) => self.is_served().await.map(|()| BodyMode::FullDuplexStreamed),
        }
    }

    /// Ok if the picker answers calls: then its silence means something.
    async fn is_served(&self) -> Result<(), ProbeError> {
        let mut client = Grpc::with_origin(Requests(self.requests.clone()), origin());
        let asking = async {
            client.ready().await.map_err(|_| ProbeError::Ended)?;
            let path = PathAndQuery::from_static(HEALTH);
            let answer = client.unary(tonic::Request::new(()), path, ProstCodec::<(), ()>::default()).await;
            match answer {
                Err(status) if status.code() == Code::Unavailable => {
                    Err(ProbeError::Refused(Box::new(status)))
                }
                Ok(_) | Err(_) => Ok(()),
            }
        };
        timeout(ANSWER, asking).await.unwrap_or(Err(ProbeError::Silent))
    }
}

/// The connection as a service that clients of gRPC call.
#[derive(Clone, Debug)]
struct Requests(SendRequest<Body>);

impl Service<http::Request<Body>> for Requests {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.send_request(request).boxed()
    }
}

/// The mode of the first answer to a part of a body.
async fn first_about_the_body(answers: &mut Streaming<ProcessingResponse>) -> Result<BodyMode, ProbeError> {
    loop {
        let answer = answers.message().await.map_err(|status| ProbeError::Refused(Box::new(status)))?;
        match answer.ok_or(ProbeError::Ended)?.response {
            Some(Response::RequestBody(answer)) => return Ok(mode(&answer)),
            Some(Response::ImmediateResponse(_) | Response::StreamedImmediateResponse(_)) => {
                return Err(ProbeError::Immediate);
            }
            // A picker may answer headers before it has the body.
            Some(
                Response::RequestHeaders(_)
                | Response::RequestTrailers(_)
                | Response::ResponseHeaders(_)
                | Response::ResponseBody(_)
                | Response::ResponseTrailers(_),
            )
            | None => {}
        }
    }
}

fn mode(answer: &BodyResponse) -> BodyMode {
    let mutation = answer.response.as_ref().and_then(|response| response.body_mutation.as_ref());
    match mutation.and_then(|mutation| mutation.mutation.as_ref()) {
        Some(Mutation::StreamedResponse(_)) => BodyMode::FullDuplexStreamed,
        Some(Mutation::Body(_) | Mutation::ClearBody(_)) | None => BodyMode::Streamed,
    }
}

/// The first message of Envoy's for a request with a body.
fn headers() -> ProcessingRequest {
    let header = |key: &str, value: &'static str| HeaderValue {
        key: key.to_owned(),
        raw_value: Bytes::from_static(value.as_bytes()),
        ..HeaderValue::default()
    };
    let headers = vec![
        header(":method", "POST"),
        header(":scheme", "http"),
        header(":authority", SERVER_NAME),
        header(":path", "/v1/completions"),
        header("content-type", "application/json"),
        header("user-agent", USER_AGENT),
    ];
    let headers = HttpHeaders { headers: Some(HeaderMap { headers }), ..HttpHeaders::default() };
    ProcessingRequest {
        request: Some(Request::RequestHeaders(headers)),
        protocol_config: Some(ProtocolConfiguration {
            request_body_mode: BodySendMode::FullDuplexStreamed.into(),
            response_body_mode: BodySendMode::FullDuplexStreamed.into(),
            ..ProtocolConfiguration::default()
        }),
        ..ProcessingRequest::default()
    }
}

/// A part of a body that goes on.
fn part() -> ProcessingRequest {
    let part = HttpBody { body: Bytes::from_static(b"{"), ..HttpBody::default() };
    ProcessingRequest { request: Some(Request::RequestBody(part)), ..ProcessingRequest::default() }
}

fn origin() -> Uri {
    Uri::from_static("https://picker")
}

fn any_certificate() -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(AnyCertificate(Arc::clone(&provider)));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has versions of TLS")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols.push(b"h2".to_vec());
    config.enable_sni = false;
    config
}

/// Takes every certificate.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
