//! A server with fixed answers, for tests: an API server, or what listens at a Gateway's address.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::api::Access;

/// Answers by path. A path without one is answered by 404.
type Answers = Arc<Mutex<BTreeMap<String, Value>>>;

pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    answers: Answers,
    asked: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl Stub {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, answers, asked) =
            (listener.local_addr().unwrap(), Answers::default(), Arc::<Mutex<Vec<String>>>::default());
        let mut task = JoinSet::new();
        let served = (Arc::clone(&answers), Arc::clone(&asked));
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (answers, asked) = served.clone();
                connections.spawn(async move { drop(serve(socket, &answers, &asked).await) });
            }
        });
        Self { address, answers, asked, _task: task }
    }

    /// Answers a path with these objects from now on.
    pub(crate) fn list(&self, path: &str, items: Value) {
        let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items });
        self.answers.lock().unwrap().insert(path.to_owned(), list);
    }

    /// Requests so far, by their paths.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// Access to this server as the API server.
    pub(crate) async fn access(&self) -> Access {
        let dir = TempDir::new().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", self.address) } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": {} }],
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        Access::new(Some(&kubeconfig), None).await.unwrap()
    }
}

/// Answers the requests of a connection, which have no bodies.
async fn serve(socket: TcpStream, answers: &Answers, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut stream = BufStream::new(socket);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let target = head.split_whitespace().nth(1).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let answer = answers.lock().unwrap().get(&path).cloned();
        asked.lock().unwrap().push(path);
        let missing = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404 });
        let code = if answer.is_some() { "200 OK" } else { "404 Not Found" };
        let body = answer.unwrap_or(missing).to_string();
        let head = format!(
            "HTTP/1.1 {code}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        stream.flush().await?;
    }
}
