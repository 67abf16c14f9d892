//! Looks at pickers of others, which are servers of this test.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use controller::cluster::{Cluster, Kind};
use controller::facts::Facts;
use controller::objects;
use controller::plan::Work;
use controller::probe::{Connection, ProbeError};
use controller::probes::{self, Found, Probes, Resolver, Target};
use controller::reconciler::Reconciler;
use controller::resolve;
use controller::setup::Setup;
use controller::sweep;
use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeadersResponse, HttpBody, ImmediateResponse,
    ProcessingRequest, ProcessingResponse, StreamedBodyResponse,
};
use gateway_config::xds::Trust;
use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::BodyMode;
use kube::core::DynamicObject;
use kube::runtime::watcher::Event;
use pool_watch::connect;
use pool_watch::watches::Watches;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Status, Streaming};

use crate::api_server::ApiServer;
use crate::fixtures::{alpha_pool, facts, metrics, place, pool, v1_pool};
use crate::process::{self, HERE, Running};

/// Longest wait for anything; only a hang reaches it.
const HANG: Duration = Duration::from_secs(60);

/// The ways in which pickers answer headers and a part of a body.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Each part at once, headers at the end.
    Parts,
    /// Nothing before the end.
    Silent,
    /// Headers at once, then each part, streamed back.
    Streams,
    /// A response of its own.
    Immediate,
    /// An error.
    Refuses,
}

#[derive(Debug)]
struct Picker {
    way: Way,
    n_streams: Arc<AtomicUsize>,
    /// True once a body has ended: then the picker has picked.
    has_picked: Arc<AtomicBool>,
}

fn answers(way: Way, message: &ProcessingRequest) -> Vec<Response> {
    let unchanged = || Response::RequestBody(BodyResponse { response: Some(CommonResponse::default()) });
    let streamed = |part: &HttpBody| {
        let chunk = StreamedBodyResponse { body: part.body.clone(), ..StreamedBodyResponse::default() };
        let mutation = BodyMutation { mutation: Some(Mutation::StreamedResponse(chunk)) };
        let response = CommonResponse { body_mutation: Some(mutation), ..CommonResponse::default() };
        Response::RequestBody(BodyResponse { response: Some(response) })
    };
    match (way, message.request.as_ref().unwrap()) {
        (Way::Parts, Request::RequestBody(_)) => vec![unchanged()],
        (Way::Streams, Request::RequestHeaders(_)) => {
            vec![Response::RequestHeaders(HeadersResponse::default())]
        }
        (Way::Streams, Request::RequestBody(part)) => vec![streamed(part)],
        (Way::Immediate, _) => vec![Response::ImmediateResponse(ImmediateResponse::default())],
        _ => Vec::new(),
    }
}

#[tonic::async_trait]
impl ExternalProcessor for Picker {
    type ProcessStream = ReceiverStream<Result<ProcessingResponse, Status>>;

    async fn process(
        &self,
        request: tonic::Request<Streaming<ProcessingRequest>>,
    ) -> Result<tonic::Response<Self::ProcessStream>, Status> {
        self.n_streams.fetch_add(1, Ordering::Relaxed);
        let (way, has_picked) = (self.way, Arc::clone(&self.has_picked));
        if matches!(way, Way::Refuses) {
            return Err(Status::internal("no pods available"));
        }
        let mut messages = request.into_inner();
        let (tx, rx) = mpsc::channel(16);
        #[expect(clippy::disallowed_methods, reason = "the stream ends with its connection")]
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                if let Some(Request::RequestBody(HttpBody { end_of_stream: true, .. })) = message.request {
                    has_picked.store(true, Ordering::Relaxed);
                }
                for response in answers(way, &message) {
                    let response =
                        ProcessingResponse { response: Some(response), ..ProcessingResponse::default() };
                    let _ = tx.send(Ok(response)).await;
                }
            }
            // Without an answer, a server sends no headers either.
        });
        Ok(tonic::Response::new(ReceiverStream::new(rx)))
    }
}

/// A picker with a certificate that nobody has signed. Its end closes its connections, too.
struct Served {
    address: SocketAddr,
    n_streams: Arc<AtomicUsize>,
    has_picked: Arc<AtomicBool>,
    runtime: Option<Runtime>,
}

impl Served {
    fn start(way: Way, port: u16) -> Self {
        let certified = rcgen::generate_simple_self_signed(vec!["somebody.test".to_owned()]).unwrap();
        let identity = Identity::from_pem(certified.cert.pem(), certified.signing_key.serialize_pem());
        let (n_streams, has_picked) = (Arc::default(), Arc::default());
        let picker = Picker { way, n_streams: Arc::clone(&n_streams), has_picked: Arc::clone(&has_picked) };
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            let tls = ServerTlsConfig::new().identity(identity);
            let mut server = tonic::transport::Server::builder().tls_config(tls).unwrap();
            let server = server.add_service(ExternalProcessorServer::new(picker));
            server.serve_with_incoming(listener).await.unwrap();
        });
        Self { address, n_streams, has_picked, runtime: Some(runtime) }
    }

    fn end(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.end();
    }
}

async fn look(way: Way) -> Result<BodyMode, ProbeError> {
    let picker = Served::start(way, 0);
    let connection = Connection::open(picker.address).await.unwrap();
    let mode = timeout(HANG, connection.body_mode()).await.unwrap();
    assert!(!picker.has_picked.load(Ordering::Relaxed), "{way:?}: a look is no request");
    assert_eq!(picker.n_streams.load(Ordering::Relaxed), 1, "{way:?}");
    mode
}

#[tokio::test]
async fn a_part_of_a_body_shows_the_mode() {
    assert_eq!(look(Way::Parts).await.unwrap(), BodyMode::Streamed);
    assert_eq!(look(Way::Silent).await.unwrap(), BodyMode::FullDuplexStreamed);
    assert_eq!(look(Way::Streams).await.unwrap(), BodyMode::FullDuplexStreamed);
}

/// A picker that answers with an error, or not at all, shows nothing.
#[tokio::test]
async fn an_error_shows_no_mode() {
    assert!(matches!(look(Way::Refuses).await, Err(ProbeError::Refused(_))));
    assert!(matches!(look(Way::Immediate).await, Err(ProbeError::Immediate)));
    let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    assert!(matches!(Connection::open(free).await, Err(ProbeError::Connect(_))));
}

fn with_service() -> Facts {
    let mut facts = Facts { services: [ObjectKey::new("default", "ext-proc")].into(), ..facts() };
    facts.pools.push(pool(v1_pool()));
    facts
}

fn target() -> Target {
    Target { address: "ext-proc.default.svc.cluster.local.".to_owned(), port: 9009 }
}

#[test]
fn only_pickers_of_others_are_looked_at() {
    let services = ObjectKey::new("default", "qwen-pods");
    assert_eq!(probes::targets(&with_service()), [(target(), vec![services])].into());
    let mut ours = facts();
    ours.pools.push(pool(alpha_pool()));
    assert_eq!(probes::targets(&ours), BTreeMap::new());
    let mut missing = facts();
    missing.pools.push(pool(v1_pool()));
    assert_eq!(probes::targets(&missing), BTreeMap::new());
    let mut said = v1_pool();
    said["metadata"]["annotations"] = json!({ keys::PICKER_BODY_MODE: "streamed" });
    let said = Facts { pools: vec![pool(said)], ..with_service() };
    assert_eq!(probes::targets(&said), BTreeMap::new());
}

async fn until(found: &mut watch::Receiver<Found>, expected: &Found) {
    let reached = found.wait_for(|found| found == expected);
    timeout(HANG, reached).await.unwrap_or_else(|_| panic!("{expected:?}")).unwrap();
}

/// The picker's end, and another one in its place, are seen by the connection's end.
#[tokio::test]
async fn a_picker_is_looked_at_again_when_it_goes() {
    let (facts, found, stop) = (
        watch::channel(Some(Arc::new(with_service()))).0,
        watch::channel(Found::new()).0,
        CancellationToken::new(),
    );
    let mut picker = Served::start(Way::Parts, 0);
    let port = picker.address.port();
    let resolver = Resolver::Table([(target(), picker.address)].into());
    let probes = Probes::new(facts.subscribe(), found.clone(), metrics(), resolver);
    #[expect(clippy::disallowed_methods, reason = "the test stops it")]
    let running = tokio::spawn(probes.run(stop.clone()));
    let mut seen = found.subscribe();
    until(&mut seen, &[(target(), BodyMode::Streamed)].into()).await;
    // While it stays, it is left alone.
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(picker.n_streams.load(Ordering::Relaxed), 1);
    picker.end();
    let picker = timeout(HANG, async {
        loop {
            if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Served::start(Way::Streams, port);
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let _picker = picker.await.unwrap();
    until(&mut seen, &[(target(), BodyMode::FullDuplexStreamed)].into()).await;
    // A pool that goes takes what was found with it.
    facts.send_replace(Some(Arc::new(crate::fixtures::facts())));
    until(&mut seen, &Found::new()).await;
    stop.cancel();
    running.await.unwrap();
}

/// The Service of the pods notes what was found, and a controller that starts knows it from there.
#[test]
fn a_found_mode_is_noted_and_read_again() {
    let service = |facts: &Facts| objects::pods_service(&pool(v1_pool()), facts).unwrap();
    let trust = |facts: &Facts| resolve::pool(&pool(v1_pool()), facts).unwrap().picker.trust;
    let key = ObjectKey::new("default", "qwen-pods");
    let found = Facts { body_modes: [(key.clone(), BodyMode::Streamed)].into(), ..with_service() };
    let noted = service(&found);
    assert_eq!(noted["metadata"]["annotations"][keys::PICKER_BODY_MODE], "streamed");
    assert_eq!(trust(&found), Trust::Any(BodyMode::Streamed));

    let mut cluster = Cluster::default();
    let object: DynamicObject = serde_json::from_value(noted.clone()).unwrap();
    assert_eq!(noted["metadata"]["labels"][sweep::MANAGED_BY], sweep::MANAGER);
    cluster.apply(Kind::Service, Event::Apply(object));
    assert_eq!(cluster.facts(&place(), "CA").body_modes, found.body_modes);

    // The user's word counts more. Controls: nothing is noted of what is not known, or of a managed picker.
    let mut said = v1_pool();
    said["metadata"]["annotations"] = json!({ keys::PICKER_BODY_MODE: "full-duplex-streamed" });
    let said = resolve::pool(&pool(said), &found).unwrap().picker.trust;
    assert_eq!(said, Trust::Any(BodyMode::FullDuplexStreamed));
    assert_eq!(service(&with_service())["metadata"].get("annotations"), None);
    let managed = Facts { body_modes: found.body_modes, ..facts() };
    let managed = objects::pods_service(&pool(alpha_pool()), &managed).unwrap();
    assert_eq!(managed["metadata"].get("annotations"), None);
}

/// The reconciler notes what the looks find, and the hooks answer by it.
#[tokio::test]
async fn a_found_mode_is_part_of_the_next_plan() {
    let api = ApiServer::start().await;
    api.apply("inference.networking.k8s.io/v1/inferencepools", &v1_pool());
    let service = json!({ "metadata": { "name": "ext-proc", "namespace": "default" }, "spec": {} });
    api.apply("v1/services", &service);
    // A whole controller makes the authority and the Services, and finds nothing: there is no such name.
    let running = Running::start(api, None).await;
    process::until(async || {
        let exists = |namespace, name| running.api.get("v1/services", namespace, name).is_some();
        running.api.get("v1/secrets", HERE, "warmpath-authority").is_some() && exists("default", "qwen-pods")
    })
    .await;
    let api = running.stop().await;
    let dir = TempDir::new().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
    let client = connect::client(connect::config(Some(&kubeconfig)).await.unwrap()).unwrap();
    let setup = Setup { image: "epp:1".to_owned(), replicas: None, arguments: Vec::new(), explains: false };
    let (watches, _state) = Watches::new();
    let reconciler = Reconciler::new((client, place()), setup, watches, metrics(), || SystemTime::UNIX_EPOCH);
    let told = reconciler.told();
    let (found, mut facts, work) = (told.found.clone(), told.facts.subscribe(), told.work.subscribe());
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "the test stops it")]
    let running = tokio::spawn(reconciler.run(stop.clone()));
    let mode = |facts: &Option<Arc<Facts>>| {
        facts.as_deref().map(|facts| resolve::pool(&facts.pools[0], facts).unwrap().picker.trust)
    };
    let is = |expected: BodyMode| move |facts: &Option<Arc<Facts>>| mode(facts) == Some(Trust::Any(expected));
    timeout(HANG, facts.wait_for(is(BodyMode::FullDuplexStreamed))).await.unwrap().unwrap();
    found.send_replace([(target(), BodyMode::Streamed)].into());
    timeout(HANG, facts.wait_for(is(BodyMode::Streamed))).await.unwrap().unwrap();
    let notes = || match work.borrow().as_deref() {
        Some(Work::Plan(plan, _)) => plan
            .apply
            .iter()
            .any(|object| object["metadata"]["annotations"][keys::PICKER_BODY_MODE] == "streamed"),
        Some(Work::Authority) | None => false,
    };
    process::until(async || notes()).await;
    stop.cancel();
    running.await.unwrap();
}
