//! Files in the shape of published ones: nothing of them is refused, and a chat is answered through the picker.

use clap::Parser as _;
use http::{HeaderName, StatusCode};
use lab::cluster::explain::{self, Answer};
use lab::cluster::programs::{ProgramOptions, Programs};
use lab::cluster::{Cluster, Options, Strictness};
use load::client::Client;
use serde_json::json;

use crate::stubs::{Lab, free_port};

/// The files, each with the model that its guide asks for, and the objects and fields that must be listed.
const SHAPES: [(&str, &str, &str, &[&str]); 3] = [
    (
        "guide-v1alpha2",
        include_str!("../shapes/guide-v1alpha2.yaml"),
        "review",
        &["DestinationRule/epp-tls", "Deployment/llm-epp", "ClusterRole/pod-read"],
    ),
    ("guide-v1", include_str!("../shapes/guide-v1.yaml"), "review-1", &["Deployment/llm-epp"]),
    ("ai-gateway", include_str!("../shapes/ai-gateway.yaml"), "small:latest", &["AIServiceBackend/provider"]),
];

#[derive(clap::Parser)]
struct CommandLine {
    #[command(flatten)]
    programs: ProgramOptions,
}

#[test]
fn no_published_shape_is_refused() {
    for (name, text, _, listed) in SHAPES {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("all.yaml");
        std::fs::write(&file, text).unwrap();
        let explanation = explain::explain(&[file], Strictness::Lenient).unwrap();
        assert!(explanation.is_good(), "{name}: {explanation:?}");
        let without = explanation.objects.iter().filter(|object| object.answer == Answer::WithoutEffect);
        let without: Vec<String> = without.map(|object| format!("{}/{}", object.kind, object.name)).collect();
        for object in listed {
            assert!(without.iter().any(|found| found == object), "{name}: {object} is not among {without:?}");
        }
        let pool = explanation.objects.iter().find(|object| object.kind == "InferencePool").unwrap();
        assert_eq!(pool.answer, Answer::Translated, "{name}: {pool:?}");
    }
}

#[tokio::test]
async fn every_published_shape_answers_through_the_picker() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let options = CommandLine::parse_from(["e2e"]).programs;
    let programs =
        Programs::resolve_for(lab.programs.driver.clone(), &options, &lab.progress()).await.unwrap();
    for (name, text, model, _) in SHAPES {
        let file = lab.dir.path().join(format!("{name}.yaml"));
        std::fs::write(&file, text.replace("port: 80,", &format!("port: {},", free_port()))).unwrap();
        let options = Options { time_scale: 1000.0, ..Options::new(file, lab.dir.path().join(name)) };
        let cluster = Cluster::start(options, programs.clone(), lab.progress()).await.unwrap();
        let url = format!("http://{}/v1/chat/completions", cluster.gateway("http").unwrap());
        let ask = |model: &str| {
            let body =
                json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1 });
            let explain = [(HeaderName::from_static("x-warmpath-explain"), "true")];
            let (url, body) = (url.clone(), body.to_string());
            async move { Client::default().post(&url, &explain, body.into()).await.unwrap() }
        };
        let reply = ask(model).await;
        assert_eq!(reply.status, StatusCode::OK, "{name}: {}", String::from_utf8_lossy(&reply.body));
        let decision = reply.headers.get("x-warmpath-decision").expect("a picker has picked");
        assert!(decision.to_str().unwrap().contains("endpoint"), "{name}: {decision:?}");
        let unknown = ask("no-such-model").await;
        assert!(unknown.status == StatusCode::NOT_FOUND, "{name}: the control: {}", unknown.status);
        cluster.stop().await.unwrap();
    }
}
