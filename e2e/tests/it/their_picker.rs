//! The picker's own Deployment among the files: it runs if that is asked for, and what keeps it from running is named.

#![expect(clippy::unwrap_used, reason = "a cluster that cannot be made fails its test")]

use std::time::Duration;

use http::StatusCode;
use lab::cluster::picker_choice::PickerChoice;
use lab::cluster::{Cluster, Options};
use load::client::Client;
use serde_json::json;

use crate::stubs::{Lab, free_port};

const FILE: &str = include_str!("../shapes/own-picker.yaml");
/// Flags of the lab's picker, which plays the user's here.
const FLAGS: &str = "--pool-file /etc/picker/pools.yaml --health-port=0 --metrics-port=0";
const THEIRS: PickerChoice = PickerChoice::Theirs { program: None };

/// The file on ports that are free, with this command of the picker.
fn file(command: &str) -> String {
    FILE.replace("COMMAND", command)
        .replace("port: 80}", &format!("port: {}}}", free_port()))
        .replace("9999", &free_port().to_string())
}

fn options(lab: &Lab, (name, text): (&str, &str), picker: PickerChoice) -> Options {
    let file = lab.dir.path().join(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    Options { time_scale: 1000.0, picker, ..Options::new(file, lab.dir.path().join(name)) }
}

async fn error(lab: &Lab, text: &str, picker: PickerChoice) -> String {
    let options = options(lab, ("refused", text), picker);
    format!("{:#}", Cluster::start(options, lab.programs.clone(), lab.progress()).await.unwrap_err())
}

/// The control is the lab's picker, which does not know the name.
#[tokio::test]
async fn the_users_picker_runs_as_its_deployment_says() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    let epp = lab.programs.picker.display();
    let args = format!("[{}, --endpoints-file, $(WARMPATH_ENDPOINTS_FILE)]", FLAGS.replace(' ', ", "));
    let args = args.replace(']', ", --grpc-port, $(PORT)");
    let named = format!("args: {args}, --secure-serving]");
    let script = format!(
        "command: [sh, -c, 'exec {epp} {FLAGS} --endpoints-file $WARMPATH_ENDPOINTS_FILE --grpc-port $PORT']"
    );
    let path = format!("command: [{epp}]\n        args: {args}]");
    let program = Some(lab.programs.picker.clone());
    for (name, command, picker, expected) in [
        ("given", named.as_str(), PickerChoice::Theirs { program }, StatusCode::OK),
        ("path", &path, THEIRS, StatusCode::OK),
        ("script", &script, THEIRS, StatusCode::OK),
        ("ours", &script, PickerChoice::Ours, StatusCode::NOT_FOUND),
    ] {
        let options = options(&lab, (name, &file(command)), picker);
        let cluster = Cluster::start(options, lab.programs.clone(), lab.progress()).await.unwrap();
        let url = format!("http://{}/v1/chat/completions", cluster.gateway("http").unwrap());
        let body =
            json!({ "model": "secret", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1 });
        let reply = Client::default().post(&url, &[], body.to_string().into()).await.unwrap();
        assert_eq!(reply.status, expected, "{name}: {}", String::from_utf8_lossy(&reply.body));
        cluster.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_program_that_ends_or_never_serves_is_quoted() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    let wrong = format!("command: [{}, --no-such-flag]", lab.programs.picker.display());
    let error = error(&lab, &file(&wrong), THEIRS).await;
    assert!(
        error.contains("the picker epp-default-llm-epp has ended") && error.contains("--no-such-flag"),
        "{error}"
    );
    let web = file("command: [python3, -m, http.server, $(PORT)]");
    let options = options(&lab, ("web", &web), THEIRS);
    let options = Options { ready_timeout: Duration::from_secs(15), ..options };
    let started = Cluster::start(options, lab.programs.clone(), lab.progress()).await;
    let error = format!("{:#}", started.unwrap_err());
    assert!(error.contains("does not serve gRPC on 127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn what_keeps_a_picker_from_running_is_named() {
    let lab = Lab::new();
    let way_out = "--picker theirs=FILE";
    let missing = error(&lab, &file("command: [/app/no-such-picker]"), THEIRS).await;
    let part = "the program of Deployment default/llm-epp, /app/no-such-picker, is not on the PATH";
    assert!(missing.contains(part) && missing.contains(way_out), "{missing}");

    let image = error(&lab, &file("args: [--pool-name, llm]"), THEIRS).await;
    assert!(image.contains("example.com/epp") && image.contains(way_out), "{image}");

    let program = Some(lab.dir.path().join("none"));
    let wrong = error(&lab, &file(""), PickerChoice::Theirs { program }).await;
    assert!(wrong.contains("there is no such file"), "{wrong}");

    let text = file("command: [sh]");
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let text = text.split("- name: epp").collect::<Vec<_>>();
    let from = text[1].split_once("containerPort: ").unwrap().1.split_once('}').unwrap().0;
    let busy = error(&lab, &text.join("- name: epp").replace(from, &port.to_string()), THEIRS).await;
    assert!(busy.contains(&format!("port {port} is taken")), "{busy}");

    let unnamed = file("command: [sh]").replace("targetPort: grpc", "targetPort: other");
    let unnamed = error(&lab, &unnamed, THEIRS).await;
    assert!(unnamed.contains("Service default/llm-epp: spec.ports: port 9002"), "{unnamed}");

    let modes =
        "metadata: {name: llm, annotations: {\"inference.networking.x-k8s.io/picker-body-mode\": buffered}}";
    let mode = file("command: [sh]").replacen("metadata: {name: llm}", modes, 1);
    let mode = error(&lab, &mode, THEIRS).await;
    let part = "InferencePool default/llm: metadata.annotations[inference.networking.x-k8s.io/picker-body-mode]: \"buffered\" is not `full-duplex-streamed` or `streamed`";
    assert!(mode.contains(part), "{mode}");

    let none = file("command: [sh]")
        .replace("metadata: {labels: {app: llm-epp}}", "metadata: {labels: {app: other}}");
    let none = error(&lab, &none, THEIRS).await;
    assert!(none.contains("among the files is no Deployment behind a Service"), "{none}");
}
