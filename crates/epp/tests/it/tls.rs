//! ext_proc over TLS, with the operator's certificate or a generated one: only clients that trust it can connect.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use epp::server::tls::{Security, local_names};
use epp::server::{Server, Shutdown};
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::fixtures::{Proxy, settings, until};

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";
const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;

/// A picker without endpoints. It answers every request with 503, which shows that it was reached.
async fn start(dir: &Path, security: Security) -> anyhow::Result<(SocketAddr, JoinSet<anyhow::Result<()>>)> {
    let (address, tasks, _reload) = start_reloading(dir, security).await?;
    Ok((address, tasks))
}

/// A picker without endpoints, and the notification with which it reads its certificate again.
async fn start_reloading(
    dir: &Path,
    security: Security,
) -> anyhow::Result<(SocketAddr, JoinSet<anyhow::Result<()>>, Arc<Notify>)> {
    let (pool, endpoints) = (dir.join("pool.yaml"), dir.join("endpoints.yaml"));
    std::fs::write(&pool, POOL)?;
    std::fs::write(&endpoints, "[]\n")?;
    let server =
        Server::bind(epp::server::Settings { security, ..settings(&pool, &endpoints, 1 << 20) }).await?;
    let (address, reload) = (server.ports()?.grpc, server.reload());
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(Shutdown::default()));
    Ok((address, tasks, reload))
}

/// A channel that trusts `certificate` for `name`.
async fn connect(
    address: SocketAddr,
    name: &str,
    certificate: &str,
) -> Result<Channel, tonic::transport::Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certificate)).domain_name(name);
    Endpoint::new(format!("https://{address}"))?.tls_config(tls)?.connect().await
}

async fn code(channel: Channel) -> i32 {
    Proxy::over(channel).chat(CHAT).await.code()
}

fn certificate(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new([name.to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[tokio::test]
async fn a_made_certificate_is_for_those_who_trust_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("epp.crt");
    let security = Security::Made { names: local_names(), certificate_file: Some(file.clone()) };
    let (address, _server) = start(dir.path(), security).await.unwrap();
    let own = std::fs::read_to_string(file).unwrap();
    assert_eq!(code(connect(address, "localhost", &own).await.unwrap()).await, 503);
    // Another name, another authority, and no TLS at all.
    assert!(connect(address, "elsewhere", &own).await.is_err());
    let (strange, _) = certificate("localhost");
    assert!(connect(address, "localhost", &strange).await.is_err());
    let plain = Endpoint::new(format!("http://{address}")).unwrap().connect().await;
    match plain {
        Err(_) => {}
        Ok(channel) => assert!(Proxy::over(channel).try_open().await.is_err()),
    }
}

#[tokio::test]
async fn the_operators_certificate_is_served() {
    let dir = TempDir::new().unwrap();
    let (own, key) = certificate("epp.svc");
    std::fs::write(dir.path().join("tls.crt"), &own).unwrap();
    std::fs::write(dir.path().join("tls.key"), key).unwrap();
    let (address, _server) = start(dir.path(), Security::Directory(dir.path().to_owned())).await.unwrap();
    assert_eq!(code(connect(address, "epp.svc", &own).await.unwrap()).await, 503);
    assert!(connect(address, "localhost", &own).await.is_err());
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_at_the_start() {
    let dir = TempDir::new().unwrap();
    let missing = start(dir.path(), Security::Directory(dir.path().to_owned())).await.unwrap_err();
    assert!(format!("{missing:#}").contains("tls.crt (--cert-path)"), "{missing:#}");
    let names = vec!["no name: ü".to_owned()];
    let bad = start(dir.path(), Security::Made { names, certificate_file: None }).await.unwrap_err();
    assert!(format!("{bad:#}").contains("--cert-name"), "{bad:#}");
}

/// Writes a new certificate for `epp.svc` and its key, and returns the certificate.
fn renew(dir: &Path) -> String {
    let (own, key) = certificate("epp.svc");
    std::fs::write(dir.join("tls.crt"), &own).unwrap();
    std::fs::write(dir.join("tls.key"), key).unwrap();
    own
}

#[tokio::test]
async fn a_renewed_certificate_is_served_and_a_broken_one_is_not() {
    let dir = TempDir::new().unwrap();
    let first = renew(dir.path());
    let security = Security::Directory(dir.path().to_owned());
    let (address, _server, reload) = start_reloading(dir.path(), security).await.unwrap();
    let is_served = async |certificate: &str| connect(address, "epp.svc", certificate).await.is_ok();
    assert!(is_served(&first).await);
    let second = renew(dir.path());
    assert!(is_served(&first).await && !is_served(&second).await, "nobody has said so yet");
    reload.notify_one();
    until(async || is_served(&second).await).await;
    assert!(!is_served(&first).await);
    // Half of a renewal: a certificate without its key.
    std::fs::write(dir.path().join("tls.crt"), certificate("epp.svc").0).unwrap();
    for _ in 0..5 {
        reload.notify_one();
        assert!(is_served(&second).await);
    }
    let third = renew(dir.path());
    reload.notify_one();
    until(async || is_served(&third).await).await;
}
