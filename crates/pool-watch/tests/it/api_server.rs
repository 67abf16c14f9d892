//! An API server with lists, watches and label selectors, held in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{OriginalUri, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use kube::Config;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub(crate) const PODS: &str = "/api/v1/namespaces/ai/pods";
pub(crate) const POOLS_X: &str = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/ai/inferencepools";
pub(crate) const POOLS: &str = "/apis/inference.networking.k8s.io/v1/namespaces/ai/inferencepools";
/// InferenceObjectives of the older group, and of the newer one.
pub(crate) const OBJECTIVES: [&str; 2] = [
    "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/ai/inferenceobjectives",
    "/apis/llm-d.ai/v1alpha2/namespaces/ai/inferenceobjectives",
];
pub(crate) const REWRITES: [&str; 2] = [
    "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/ai/inferencemodelrewrites",
    "/apis/llm-d.ai/v1alpha2/namespaces/ai/inferencemodelrewrites",
];
pub(crate) const MODELS: &str = "/apis/inference.networking.x-k8s.io/v1alpha2/namespaces/ai/inferencemodels";

/// A handle of the server; clones share it.
#[derive(Clone)]
pub(crate) struct ApiServer {
    address: SocketAddr,
    state: Arc<Mutex<ServerState>>,
    /// Counts changes, so that watches look again.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct ServerState {
    version: u64,
    /// Objects by collection and name; a collection that is missing is a kind that is not installed.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    events: Vec<Event>,
    /// Answers 503 to everything, and breaks every watch.
    is_down: bool,
    /// Counts the times that all watches were broken.
    n_breaks: u64,
    /// Watches from an older version than this are answered by 410.
    oldest: u64,
    /// Lists and watches so far: collection and label selector.
    requests: Vec<(String, String)>,
}

#[derive(Clone)]
struct Event {
    version: u64,
    collection: String,
    before: Option<Value>,
    after: Option<Value>,
}

impl ApiServer {
    /// Starts a server on a free port that has the given collections.
    pub(crate) async fn start(collections: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let objects = collections.iter().map(|name| ((*name).to_owned(), BTreeMap::new())).collect();
        let state = Arc::new(Mutex::new(ServerState { version: 1, objects, ..ServerState::default() }));
        let server = Self { address, state, changes: watch::channel(0).0 };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    pub(crate) fn config(&self) -> Config {
        Config::new(format!("http://{}", self.address).parse().unwrap())
    }

    pub(crate) fn apply(&self, collection: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.change(collection, &name, Some(object));
    }

    pub(crate) fn delete(&self, collection: &str, name: &str) {
        self.change(collection, name, None);
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.state.lock().is_down = is_down;
        self.break_watches();
    }

    pub(crate) fn break_watches(&self) {
        self.state.lock().n_breaks += 1;
        self.changes.send_modify(|n| *n += 1);
    }

    /// Forgets the past: watches from any version before now are told that it is gone.
    pub(crate) fn compact(&self) {
        let mut server_state = self.state.lock();
        server_state.version += 1;
        server_state.oldest = server_state.version;
        server_state.events.clear();
        drop(server_state);
        self.break_watches();
    }

    pub(crate) fn requests(&self) -> Vec<(String, String)> {
        self.state.lock().requests.clone()
    }

    fn change(&self, collection: &str, name: &str, after: Option<Value>) {
        let mut server_state = self.state.lock();
        server_state.version += 1;
        let version = server_state.version;
        let after = after.map(|mut object| {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            object
        });
        let objects = server_state.objects.get_mut(collection).unwrap();
        let before = match after.clone() {
            Some(object) => objects.insert(name.to_owned(), object),
            None => objects.remove(name),
        };
        let collection = collection.to_owned();
        server_state.events.push(Event { version, collection, before, after });
        drop(server_state);
        self.changes.send_modify(|n| *n += 1);
    }
}

fn selects(selector: &str, object: &Value) -> bool {
    selector.split(',').filter(|pair| !pair.is_empty()).all(|pair| {
        let (key, value) = pair.split_once('=').unwrap();
        object["metadata"]["labels"][key] == value
    })
}

fn status(code: StatusCode) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": "Test" })
}

fn failed(code: StatusCode) -> Response {
    (code, status(code).to_string()).into_response()
}

async fn answer(
    State(server): State<ApiServer>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let selector = query.get("labelSelector").cloned().unwrap_or_default();
    let mut server_state = server.state.lock();
    server_state.requests.push((uri.path().to_owned(), selector.clone()));
    if server_state.is_down {
        return failed(StatusCode::SERVICE_UNAVAILABLE);
    }
    let Some(objects) = server_state.objects.get(uri.path()) else {
        return failed(StatusCode::NOT_FOUND);
    };
    if query.contains_key("watch") {
        let (n_breaks, from) = (server_state.n_breaks, query["resourceVersion"].parse().unwrap());
        drop(server_state);
        let watcher = Watcher { server: server.clone(), path: uri.path().to_owned(), selector, n_breaks };
        return watcher.answer(from);
    }
    let items: Vec<&Value> = objects.values().filter(|object| selects(&selector, object)).collect();
    let meta = json!({ "resourceVersion": server_state.version.to_string() });
    json!({ "kind": "List", "apiVersion": "v1", "metadata": meta, "items": items })
        .to_string()
        .into_response()
}

/// One watch.
struct Watcher {
    server: ApiServer,
    path: String,
    selector: String,
    n_breaks: u64,
}

impl Watcher {
    fn answer(self, from: u64) -> Response {
        let changes = self.server.changes.subscribe();
        let lines =
            futures::stream::unfold((self, changes, from), |(watcher, mut changes, from)| async move {
                loop {
                    changes.borrow_and_update();
                    match watcher.next(from)? {
                        (lines, version) if !lines.is_empty() => {
                            return Some((
                                Ok::<_, Infallible>(Bytes::from(lines)),
                                (watcher, changes, version),
                            ));
                        }
                        _ => changes.changed().await.ok()?,
                    }
                }
            });
        Body::from_stream(lines).into_response()
    }

    /// Lines for what has happened since `from`, and the version that they reach. None: the watch breaks.
    fn next(&self, from: u64) -> Option<(String, u64)> {
        let server_state = self.server.state.lock();
        if from < server_state.oldest {
            let gone = json!({ "type": "ERROR", "object": status(StatusCode::GONE) });
            return Some((format!("{gone}\n"), u64::MAX));
        }
        if server_state.n_breaks != self.n_breaks {
            return None;
        }
        let new =
            server_state.events.iter().filter(|event| event.version > from && event.collection == self.path);
        let lines = new.filter_map(|event| self.line(event)).collect();
        Some((lines, server_state.version))
    }

    fn line(&self, event: &Event) -> Option<String> {
        let matching =
            |object: &Option<Value>| object.clone().filter(|object| selects(&self.selector, object));
        let (kind, object) = match (matching(&event.before), matching(&event.after)) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
        };
        Some(format!("{}\n", json!({ "type": kind, "object": object })))
    }
}
