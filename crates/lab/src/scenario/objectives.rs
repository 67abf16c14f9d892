//! InferenceObjectives and InferenceModelRewrites that are applied while the pickers run: the next requests follow them.

use std::time::Duration;

use anyhow::{Result, bail};
use futures::future::join_all;
use tokio::time::sleep;

use crate::check::{Check, Claim, Group};
use crate::cluster::Fresh;
use crate::patience::{self, Patience};
use crate::requests::body;
use crate::scenario::lab::{Answer, GOOD, Lab, Shot, Via};
use crate::scenario::{part, texts};

const FILE: &str = "objectives.yaml";
const OBJECTS: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata:
  name: batch
spec:
  priority: -1
  poolRef:
    group: inference.networking.x-k8s.io
    name: vllm-qwen-pool
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModelRewrite
metadata:
  name: alias
spec:
  poolRef:
    group: inference.networking.x-k8s.io
    name: vllm-qwen-pool
  rules:
  - matches:
    - model:
        value: /model/alias
    targets:
    - modelRewrite: /model/qwen
";
const ALIAS: &str = "/model/alias";
/// Header by which a request names its objective, and the one that is applied.
const OBJECTIVE: (&str, &str) = ("x-gateway-inference-objective", "batch");
/// A pod with a stream has no capacity for requests that may be refused.
const PICKER_ARGS: [&str; 2] = ["--saturation-kv-usage", "0"];
/// Streams for each pod. The picker does not spread them evenly: with three times as many as pods, every pod has one.
const STREAMS: usize = 3;
/// Tokens of a stream, which is long: the pods are free only for moments.
const TOKENS: u32 = 4000;
/// Time between two looks at what the pickers follow.
const LOOK: Duration = Duration::from_millis(100);

pub async fn run(lab: &Lab<'_>) {
    part(lab, Group::Faults, "objectives applied", applied).await;
}

async fn applied(lab: &Lab<'_>) -> Result<()> {
    let claims = lab.announce([
        Check::of_faults("objectives/alias-control", "A model that nothing names is not known"),
        Check::of_faults("objectives/alias", "A rewrite that is applied gives a model another name"),
        Check::of_faults(
            "objectives/refused",
            "An objective below 0 that is applied lets busy pools refuse its requests",
        ),
        Check::of_faults(
            "objectives/control",
            "Without the objective, pools that are as busy answer such requests",
        ),
    ]);
    let picker_args = PICKER_ARGS.map(str::to_owned).to_vec();
    lab.start_anew(Fresh { picker_args, ..Fresh::default() }).await?;
    tokio::select! {
        () = keep_busy(lab) => bail!("no pod runs that could be kept busy"),
        followed = followed(lab, claims) => followed?,
    }
    lab.reset().await
}

/// Applies the objects to busy pools, and removes them again.
async fn followed(lab: &Lab<'_>, [unknown, rewritten, refused, control]: [Claim; 4]) -> Result<()> {
    let plain = lab.cluster.manifests();
    lab.check(unknown.equal("404".to_owned(), ask(lab, Ask::Alias).await.side.status.to_string()));
    let mut manifests = plain.clone();
    manifests.files.insert(FILE.to_owned(), OBJECTS.to_owned());
    lab.apply(&manifests).await?;
    lab.check(rewritten.equal(GOOD.to_owned(), until(lab, Ask::Alias, GOOD).await));
    lab.check(refused.equal("429".to_owned(), until(lab, Ask::Objective, "429").await));
    lab.apply(&plain).await?;
    lab.check(control.equal(GOOD.to_owned(), until(lab, Ask::Objective, GOOD).await));
    Ok(())
}

/// A request that the objects concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    Alias,
    Objective,
}

async fn ask(lab: &Lab<'_>, ask: Ask) -> Answer {
    let model = match ask {
        Ask::Alias => ALIAS.to_owned(),
        Ask::Objective => lab.requests.model(),
    };
    let request = body(&texts::chat(&model, "Does somebody have time for me?"));
    let shot = Shot::new(Group::Faults, format!("{ask:?}"), Via::Picker, request);
    let (header, name) = OBJECTIVE;
    lab.send(match ask {
        Ask::Alias => shot,
        Ask::Objective => shot.header(header, name),
    })
    .await
}

/// Asks until the answer is the wanted one, as long as a picker may take to follow objects. Returns the last answer.
async fn until(lab: &Lab<'_>, asked: Ask, wanted: &str) -> String {
    let mut patience = Patience::start(patience::LOGS);
    loop {
        let answer = ask(lab, asked).await;
        let seen = if answer.chat.is_some() { answer.verdict() } else { answer.side.status.to_string() };
        if seen == wanted || !patience.lasts(seen.clone()) {
            return seen;
        }
        sleep(LOOK).await;
    }
}

/// Keeps every pod busy with streams through the picker: a user whose stream ends begins another one.
async fn keep_busy(lab: &Lab<'_>) {
    let model = lab.requests.model();
    let users = (0..STREAMS * lab.cluster.pods().len()).map(|number| {
        let text = format!("{number} is the number of this stream.");
        let request = body(&texts::long_chat(&model, &text, TOKENS));
        async move {
            loop {
                let shot = Shot::new(Group::Faults, format!("stream {number}"), Via::Picker, request.clone());
                lab.send(shot).await;
                sleep(LOOK).await;
            }
        }
    });
    join_all(users).await;
}
