//! An API server with lists, watches and writes, held in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{OriginalUri, Query, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

/// API version and plural name, namespace, name.
type Key = (String, String, String);

/// A handle of the server; clones share it.
#[derive(Clone)]
pub(crate) struct ApiServer {
    address: SocketAddr,
    state: Arc<Mutex<Stored>>,
    /// Counts changes, so that watches look again.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Stored {
    version: u64,
    objects: BTreeMap<Key, Value>,
    events: Vec<Event>,
    /// Answers 503 to everything, and breaks every watch.
    is_down: bool,
    n_breaks: u64,
    /// Time by which watches are behind.
    lag: Duration,
    /// Writes so far: method and path.
    writes: Vec<(Method, String)>,
}

#[derive(Clone)]
struct Event {
    version: u64,
    key: Key,
    kind: &'static str,
    object: Value,
}

/// A path of the API.
struct Place {
    collection: String,
    namespace: Option<String>,
    name: Option<String>,
    is_status: bool,
}

impl Place {
    fn new(path: &str) -> Self {
        let mut parts = path.trim_start_matches('/').split('/').map(str::to_owned);
        let is_core = parts.next().unwrap() == "api";
        let version = parts.next().unwrap();
        let version = if is_core { version } else { format!("{version}/{}", parts.next().unwrap()) };
        let mut plural = parts.next().unwrap();
        let mut namespace = None;
        if plural == "namespaces" {
            namespace = parts.next();
            plural = parts.next().unwrap();
        }
        let collection = format!("{version}/{plural}");
        Self { collection, namespace, name: parts.next(), is_status: parts.next().is_some() }
    }

    fn key(&self) -> Key {
        (
            self.collection.clone(),
            self.namespace.clone().unwrap_or_default(),
            self.name.clone().unwrap_or_default(),
        )
    }

    fn contains(&self, key: &Key) -> bool {
        self.collection == key.0 && self.namespace.as_ref().is_none_or(|namespace| *namespace == key.1)
    }
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(Stored { version: 1, ..Stored::default() }));
        let server = Self { address, state, changes: watch::channel(0).0 };
        let router = Router::new().fallback(answer).with_state(server.clone());
        #[expect(clippy::disallowed_methods, reason = "the server ends with the test's runtime")]
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    /// The text of a kubeconfig for this server.
    pub(crate) fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", self.address) } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": {} }],
        })
        .to_string()
    }

    /// Puts an object there as a user would; `collection` is such as `v1/services`.
    pub(crate) fn apply(&self, collection: &str, object: &Value) {
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let key = (collection.to_owned(), text("namespace"), text("name"));
        self.state.lock().put(key, object.clone());
        self.changes.send_modify(|n| *n += 1);
    }

    pub(crate) fn delete(&self, collection: &str, namespace: &str, name: &str) {
        let key = (collection.to_owned(), namespace.to_owned(), name.to_owned());
        self.state.lock().remove(&key).unwrap();
        self.changes.send_modify(|n| *n += 1);
    }

    pub(crate) fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (collection.to_owned(), namespace.to_owned(), name.to_owned());
        self.state.lock().objects.get(&key).cloned()
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        let mut state = self.state.lock();
        state.is_down = is_down;
        state.n_breaks += 1;
        drop(state);
        self.changes.send_modify(|n| *n += 1);
    }

    pub(crate) fn set_lag(&self, lag: Duration) {
        self.state.lock().lag = lag;
    }

    /// Writes since the last call.
    pub(crate) fn take_writes(&self) -> Vec<(Method, String)> {
        std::mem::take(&mut self.state.lock().writes)
    }

    /// Lines for what has happened since `from`, and the version that they reach; `None` if the watch breaks.
    fn lines(&self, place: &Place, n_breaks: u64, from: u64) -> Option<(String, u64)> {
        let state = self.state.lock();
        if state.n_breaks != n_breaks {
            return None;
        }
        let new = state.events.iter().filter(|event| event.version > from && place.contains(&event.key));
        let lines = new.map(|event| format!("{}\n", json!({ "type": event.kind, "object": event.object })));
        Some((lines.collect(), state.version))
    }

    fn watch(self, place: Place, from: u64) -> Response {
        let (changes, n_breaks) = (self.changes.subscribe(), self.state.lock().n_breaks);
        let lines = futures::stream::unfold(
            (self, place, changes, from),
            move |(server, place, mut changes, from)| async move {
                loop {
                    changes.borrow_and_update();
                    match server.lines(&place, n_breaks, from)? {
                        (lines, version) if !lines.is_empty() => {
                            let lag = server.state.lock().lag;
                            sleep(lag).await;
                            return Some((
                                Ok::<_, Infallible>(Bytes::from(lines)),
                                (server, place, changes, version),
                            ));
                        }
                        _ => changes.changed().await.ok()?,
                    }
                }
            },
        );
        Body::from_stream(lines).into_response()
    }
}

impl Stored {
    fn put(&mut self, key: Key, mut object: Value) -> Value {
        let known = self.objects.get(&key);
        if let Some(known) = known {
            object["metadata"]["uid"] = known["metadata"]["uid"].clone();
            object["metadata"]["resourceVersion"] = known["metadata"]["resourceVersion"].clone();
            if *known == object {
                return object;
            }
        }
        let kind = if known.is_none() { "ADDED" } else { "MODIFIED" };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        }
        self.objects.insert(key.clone(), object.clone());
        self.events.push(Event { version: self.version, key, kind, object: object.clone() });
        object
    }

    fn remove(&mut self, key: &Key) -> Option<Value> {
        let object = self.objects.remove(key)?;
        self.version += 1;
        self.events.push(Event {
            version: self.version,
            key: key.clone(),
            kind: "DELETED",
            object: object.clone(),
        });
        Some(object)
    }

    fn write(&mut self, method: &Method, place: &Place, body: Value) -> Result<Value, StatusCode> {
        let mut key = place.key();
        if *method == Method::POST {
            key.2 = body["metadata"]["name"].as_str().unwrap().to_owned();
            return if self.objects.contains_key(&key) {
                Err(StatusCode::CONFLICT)
            } else {
                Ok(self.put(key, body))
            };
        }
        if *method == Method::DELETE {
            return self.remove(&key).ok_or(StatusCode::NOT_FOUND);
        }
        let known = self.objects.get(&key).cloned();
        let version = &body["metadata"]["resourceVersion"];
        if let Some(known) = &known
            && !version.is_null()
            && *version != known["metadata"]["resourceVersion"]
        {
            return Err(StatusCode::CONFLICT);
        }
        if known.is_none() && place.is_status {
            return Err(StatusCode::NOT_FOUND);
        }
        let mut object = known.unwrap_or(json!({}));
        merge(&mut object, if place.is_status { json!({ "status": body["status"] }) } else { body });
        Ok(self.put(key, object))
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().shift_remove(&name);
        } else {
            merge(&mut target[name], value);
        }
    }
}

fn failed(code: StatusCode) -> Response {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": "Test" });
    (code, status.to_string()).into_response()
}

async fn answer(
    State(server): State<ApiServer>,
    OriginalUri(uri): OriginalUri,
    Query(query): Query<BTreeMap<String, String>>,
    method: Method,
    body: Bytes,
) -> Response {
    let place = Place::new(uri.path());
    let mut state = server.state.lock();
    if state.is_down {
        return failed(StatusCode::SERVICE_UNAVAILABLE);
    }
    if method != Method::GET {
        state.writes.push((method.clone(), uri.path().to_owned()));
        let written = state.write(&method, &place, serde_json::from_slice(&body).unwrap_or_default());
        drop(state);
        server.changes.send_modify(|n| *n += 1);
        return written.map_or_else(failed, |object| object.to_string().into_response());
    }
    if query.contains_key("watch") {
        drop(state);
        return server.watch(place, query["resourceVersion"].parse().unwrap());
    }
    let is_selected = |object: &Value| {
        let selector = query.get("labelSelector").map(String::as_str).unwrap_or_default();
        selector.split_once('=').is_none_or(|(label, value)| object["metadata"]["labels"][label] == value)
    };
    let items = state.objects.iter().filter(|(key, object)| place.contains(key) && is_selected(object));
    let items: Vec<&Value> = items.map(|(_, object)| object).collect();
    let meta = json!({ "resourceVersion": state.version.to_string() });
    json!({ "kind": "List", "apiVersion": "v1", "metadata": meta, "items": items })
        .to_string()
        .into_response()
}
