//! The local provider with stubs for its programs: what it starts, replaces, writes and ends.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use lab::cluster::fault::Fault;
use lab::cluster::manifests::Manifests;
use lab::cluster::programs::Programs;
use lab::cluster::supervisor::{self, ClusterState, Phase};
use lab::cluster::{Cluster, Fresh, Options, Progress, ProgressEvent, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::timeout;

use crate::stubs::{Lab, free_port, read, until};

async fn up(
    state_dir: &Path,
    options: &Options,
    programs: &Programs,
    progress: &Progress,
) -> Result<ClusterState> {
    let up = supervisor::up(state_dir, options, programs, progress, std::future::pending()).await?;
    Ok(up.expect("nothing stops it"))
}

fn names(status: &Status) -> Vec<&str> {
    status.pods.iter().map(|pod| pod.name.as_str()).collect()
}

fn endpoints(cluster: &Cluster) -> String {
    read(cluster.files().endpoints())
}

fn eds(cluster: &Cluster) -> String {
    read(cluster.files().envoy_dir().join("xds/eds-httproute_default_qwen-backend_rule_0.json"))
}

#[tokio::test]
async fn it_starts_what_the_manifests_ask_for_and_ends_it() {
    let lab = Lab::new();
    let cluster = lab.start().await;
    let status = cluster.status();
    assert!(status.settled);
    assert_eq!(cluster.gateway("llm-gw").unwrap().port(), lab.ports[1]);
    assert!(cluster.gateway("other").unwrap_err().to_string().contains("only http, llm-gw"));
    let [first, second] = status.pods.as_slice() else { panic!("{:?}", status.pods) };
    assert!(first.name.starts_with("qwen-") && first.name != second.name && first.address != second.address);
    let arguments = read(&first.log);
    let served = "arguments: serve /models/Qwen2.5-7B-Instruct --port 8000 --trust-remote-code --served-model-name /model/qwen";
    assert!(arguments.starts_with(served), "{arguments}");
    for pod in &status.pods {
        let address = pod.address.to_string();
        assert!(
            endpoints(&cluster).contains(&address) && eds(&cluster).contains(&pod.address.port().to_string())
        );
    }
    let [picker] = status.pickers.as_slice() else { panic!("{:?}", status.pickers) };
    assert_eq!(picker.name, "epp-default-inference-gateway-ext-proc");
    assert!(read(cluster.files().pools(&picker.name)).contains("InferenceModel"));
    assert_eq!((lab.n_alive("engine"), lab.n_alive("picker"), lab.n_alive("envoy")), (2, 1, 1));
    cluster.stop().await.unwrap();
    assert_eq!(lab.alive(), Vec::<String>::new());
}

#[tokio::test]
async fn a_killed_pod_is_replaced_under_another_name() {
    let lab = Lab::new();
    let cluster = lab.start().await;
    let before = cluster.status();
    let killed = &before.pods[0];
    cluster.inflict(&Fault::KillPod(killed.name.clone())).await.unwrap();
    assert!(!endpoints(&cluster).contains(&killed.name));
    let after = cluster.settled().await.unwrap();
    assert_eq!(after.pods.len(), 2);
    assert!(
        !names(&after).contains(&killed.name.as_str())
            && names(&after).contains(&before.pods[1].name.as_str())
    );
    let again = cluster.inflict(&Fault::KillPod(killed.name.clone())).await.unwrap_err();
    assert!(format!("{again:#}").contains("there is no pod"), "{again:#}");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_pod_that_dies_by_itself_is_replaced() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let cluster = lab.start().await;
    let victim = lab.alive().into_iter().find(|name| name.starts_with("engine")).unwrap();
    let before = cluster.status();
    kill(Pid::from_raw(victim.split('-').nth(1).unwrap().parse().unwrap()), Signal::SIGKILL).unwrap();
    until("the pods have changed", || names(&cluster.status()) != names(&before)).await;
    assert_eq!(cluster.settled().await.unwrap().pods.len(), 2);
    let told = lab
        .events()
        .iter()
        .any(|event| matches!(event, ProgressEvent::Warning(text) if text.contains("has ended")));
    assert!(told, "{:?}", lab.events());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn edits_of_the_manifests_take_effect() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let cluster = lab.start().await;
    let mut manifests = lab.manifests();
    manifests.replace("replicas: 2", "replicas: 3").unwrap();
    lab.write(&manifests);
    until("there are three pods", || cluster.pods().len() == 3).await;
    manifests.replace("replicas: 3", "replicas: 1").unwrap();
    lab.write(&manifests);
    until("there is one pod", || cluster.pods().len() == 1 && cluster.status().settled).await;

    let pools = cluster.files().pools(&cluster.status().pickers[0].name);
    manifests.replace("PREFIX_CACHE", "DEFAULT").unwrap();
    lab.write(&manifests);
    until("the picker's file has the strategy", || read(&pools).contains(r#""DEFAULT""#)).await;

    let listener = |port: u16| format!("    - name: llm-gw\n      protocol: HTTP\n      port: {port}");
    let other = free_port();
    manifests.replace(&listener(lab.ports[1]), &listener(other)).unwrap();
    lab.write(&manifests);
    until("the listener has moved", || cluster.gateway("llm-gw").unwrap().port() == other).await;
    cluster.stop().await.unwrap();
}

/// The programs of both bind their ports well after both have chosen.
#[tokio::test]
async fn clusters_that_start_at_once_share_no_port() {
    let (lab, other) = (Lab::new(), Lab::new());
    other.write(&lab.manifests());
    let (first, second) = tokio::join!(lab.start(), other.start());
    let ports = |cluster: &Cluster| ["http", "llm-gw"].map(|name| cluster.gateway(name).unwrap().port());
    let mut bound = [ports(&first), ports(&second)];
    bound.sort_unstable();
    assert_eq!(bound[0], lab.ports);
    assert!(bound[1].iter().all(|port| !lab.ports.contains(port)), "{bound:?}");
    first.stop().await.unwrap();
    second.stop().await.unwrap();
}

#[tokio::test]
async fn the_replicas_option_holds_until_the_number_is_edited() {
    let lab = Lab::new();
    let options = Options { replicas: Some(1), ..lab.options() };
    let cluster = Cluster::start(options, lab.programs.clone(), lab.progress()).await.unwrap();
    assert_eq!(cluster.pods().len(), 1);
    let mut manifests = cluster.manifests();
    manifests.replace("PREFIX_CACHE", "DEFAULT").unwrap();
    cluster.apply(&manifests).await.unwrap();
    assert_eq!(cluster.pods().len(), 1);
    manifests.replace("replicas: 2", "replicas: 3").unwrap();
    cluster.apply(&manifests).await.unwrap();
    assert_eq!(cluster.pods().len(), 3);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn an_invalid_edit_is_reported_and_changes_nothing() {
    let lab = Lab::new();
    let cluster = lab.start().await;
    let before = cluster.settled().await.unwrap();
    let valid = lab.manifests();
    let invalid = [
        (
            "targetPortNumber: 8000",
            "targetPortNumber: eight",
            "inference-pool.yaml, document 1, InferencePool",
        ),
        ("    - name: llm-gw", "    - name: http", "http is used twice"),
        // Only Envoy detects this error; the stub replaces it here.
        ("  name: qwen-backend\n", "  name: poison\n", "stub: poison"),
    ];
    for (from, to, part) in invalid {
        let mut manifests = valid.clone();
        manifests.replace(from, to).unwrap();
        lab.write(&manifests);
        until(part, || cluster.status().config_error.as_ref().is_some_and(|error| error.contains(part)))
            .await;
        let status = cluster.settled().await.unwrap();
        assert_eq!((&status.pods, &status.gateways), (&before.pods, &before.gateways));
        let refused = cluster.apply(&manifests).await.unwrap_err().to_string();
        assert!(refused.contains(part), "{refused}");
    }
    lab.write(&valid);
    until("the error is gone", || cluster.status().config_error.is_none()).await;
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn applied_manifests_leave_the_users_files_alone() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let cluster = lab.start().await;
    let users = lab.manifests();
    let mut manifests = cluster.manifests();
    assert_eq!(manifests, users);
    manifests.replace("replicas: 2", "replicas: 1").unwrap();
    cluster.apply(&manifests).await.unwrap();
    let in_force = (cluster.pods().len(), cluster.manifests(), lab.manifests());
    assert_eq!(in_force, (1, manifests.clone(), users.clone()));
    cluster.reset_manifests().await.unwrap();
    assert_eq!((cluster.pods().len(), cluster.manifests()), (2, users.clone()));
    cluster.apply(&manifests).await.unwrap();
    cluster.restart(Fresh::default()).await.unwrap();
    assert_eq!((cluster.pods().len(), cluster.manifests()), (2, users), "a restart takes them back, too");
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn restart_gives_fresh_pods_other_arguments() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let cluster = lab.start().await;
    let before = cluster.status();
    let picker = lab.alive().into_iter().find(|name| name.starts_with("picker"));
    let envoy = lab.alive().into_iter().find(|name| name.starts_with("envoy"));
    let fresh = Fresh { engine_args: vec!["--no-enable-prefix-caching".to_owned()], ..Fresh::default() };
    cluster.restart(fresh).await.unwrap();
    let after = cluster.status();
    assert_eq!(after.pods.len(), 2);
    assert!(names(&after).iter().all(|name| !names(&before).contains(name)));
    assert!(after.pods.iter().all(|pod| read(&pod.log).contains("--no-enable-prefix-caching")));
    assert!(before.pods.iter().all(|pod| !read(&pod.log).contains("--no-enable-prefix-caching")));
    assert_ne!(lab.alive().into_iter().find(|name| name.starts_with("picker")), picker);
    assert_eq!(lab.alive().into_iter().find(|name| name.starts_with("envoy")), envoy);
    assert_eq!(after.pickers, before.pickers);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn pickers_stay_down_until_they_are_started() {
    let lab = Lab::new();
    let cluster = lab.start().await;
    cluster.inflict(&Fault::KillPickers).await.unwrap();
    assert_eq!(lab.n_alive("picker"), 0);
    let status = cluster.settled().await.unwrap();
    assert!(!status.pickers[0].running);
    cluster.end(&Fault::KillPickers).await.unwrap();
    assert!(cluster.status().pickers[0].running && lab.n_alive("picker") == 1);
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn it_is_not_settled_while_envoy_waits_for_a_health_check() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let cluster = lab.start().await;
    let warming = lab.dir.path().join("warming");
    std::fs::write(&warming, "").unwrap();
    assert!(timeout(Duration::from_secs(1), cluster.settled()).await.is_err());
    std::fs::remove_file(&warming).unwrap();
    cluster.settled().await.unwrap();
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_taken_port_is_named_and_another_is_used() {
    let lab = Lab::new();
    let wanted = lab.ports[1];
    let _taken = TcpListener::bind(("127.0.0.1", wanted)).unwrap();
    let cluster = lab.start().await;
    let port = cluster.gateway("llm-gw").unwrap().port();
    assert!(port != wanted && port % 1000 == wanted % 1000, "{port} for {wanted}");
    let told = |part: &str| {
        lab.events().iter().any(|event| matches!(event, ProgressEvent::Note(text) if text.contains(part)))
    };
    let (taken, used) = (format!("port {wanted} is taken"), format!("{port} for {wanted}"));
    assert!(told(&taken) && told(&used), "{:?}", lab.events());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn an_engine_that_cannot_start_is_quoted() {
    let lab = Lab::new();
    let mut options = lab.options();
    options.engine_args = vec!["--fail".to_owned()];
    let error = Cluster::start(options, lab.programs.clone(), lab.progress()).await.unwrap_err().to_string();
    assert!(
        error.contains("before it was ready") && error.contains("--fail is not a flag of this engine"),
        "{error}"
    );
    assert_eq!(lab.alive(), Vec::<String>::new());
}

#[tokio::test]
async fn dropping_the_cluster_ends_it() {
    let lab = Lab::new();
    let cluster = lab.start().await;
    drop(cluster);
    until("every stub has ended", || lab.alive().is_empty()).await;
}

#[tokio::test]
async fn up_refuses_a_second_one_and_down_ends_the_first() {
    let lab = Lab::new();
    let state_dir = lab.dir.path().join("state");
    assert_eq!(supervisor::status(&state_dir).unwrap(), None);
    let (options, programs, progress) = (lab.options(), &lab.programs, lab.progress());
    let state = up(&state_dir, &options, programs, &progress).await.unwrap();
    assert!(matches!(&state.phase, Phase::Running { status } if status.pods.len() == 2), "{state:?}");
    // `e2e status --json` prints this, and scripts read it.
    let json = serde_json::to_value(&state).unwrap();
    let first = format!("127.0.0.1:{}", lab.ports[0]);
    assert_eq!(json["phase"]["status"]["gateways"][0]["address"], first, "{json}");
    let refused = up(&state_dir, &options, programs, &progress).await.unwrap_err().to_string();
    assert!(
        refused.contains(&format!("pid {}", state.pid))
            && refused.contains(&format!("127.0.0.1:{}", lab.ports[1])),
        "{refused}"
    );
    let logs = supervisor::logs(&state_dir, "epp").unwrap();
    assert_eq!(logs.len(), 1, "{logs:?}");
    assert!(supervisor::down(&state_dir).await.unwrap());
    assert_eq!((supervisor::status(&state_dir).unwrap(), lab.alive()), (None, Vec::new()));
    assert!(!supervisor::down(&state_dir).await.unwrap());
}

#[tokio::test]
async fn nothing_outlives_a_killed_supervisor() {
    let lab = Lab::new();
    let state_dir = lab.dir.path().join("state");
    let (options, progress) = (lab.options(), lab.progress());
    let state = up(&state_dir, &options, &lab.programs, &progress).await.unwrap();
    assert_eq!(lab.alive().len(), 4);
    kill(Pid::from_raw(state.pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    until("every stub has ended", || lab.alive().is_empty()).await;
    // On a busy machine the supervisor may be the last to go.
    until("the state is gone", || supervisor::status(&state_dir).unwrap().is_none()).await;
    let again = up(&state_dir, &options, &lab.programs, &progress).await.unwrap();
    assert_ne!(again.pid, state.pid);
    supervisor::down(&state_dir).await.unwrap();
}

/// The stub accepts everything, so this test asks Envoy itself, which wants a picker that is healthy. The first run builds
/// the other programs and installs Envoy.
#[tokio::test]
async fn envoy_itself_accepts_the_tutorial() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    let cluster = lab.start().await;
    let mut manifests = cluster.manifests();
    manifests
        .replace(
            "    name: inference-gateway-ext-proc",
            "    name: inference-gateway-ext-proc\n    failureMode: FailOpen",
        )
        .unwrap();
    cluster.apply(&manifests).await.unwrap();
    manifests.replace("replicas: 2", "replicas: 1").unwrap();
    cluster.apply(&manifests).await.unwrap();
    assert_eq!(cluster.pods().len(), 1);
    cluster.stop().await.unwrap();
}

/// The files in the repository must be what the shells make of the tutorial's commands.
#[test]
fn the_requests_are_what_the_shells_make() {
    let requests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/doc/requests");
    let dir = tempfile::tempdir().unwrap();
    if Command::new("dash").args(["-c", "true"]).status().is_err() {
        test_skips::skipped("no dash: install dash");
        return;
    }
    assert!(Command::new(format!("{requests}/make.sh")).arg(dir.path()).status().unwrap().success());
    for (shell, sizes) in [("bash", [538, 970]), ("quoted", [538, 972]), ("dash", [538, 963])] {
        for (round, size) in ["round1.txt", "round2.txt"].iter().zip(sizes) {
            let made = std::fs::read(dir.path().join(shell).join(round)).unwrap();
            assert_eq!(made.len(), size, "{shell}/{round}");
            assert_eq!(
                made,
                std::fs::read(format!("{requests}/{shell}/{round}")).unwrap(),
                "{shell}/{round}"
            );
        }
    }
    assert_eq!(Manifests::tutorial().files.len(), 3);
}
