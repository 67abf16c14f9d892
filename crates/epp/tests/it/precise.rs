//! Pools that use their engines' KV events: bytes of the events, gaps and losses, and the picks that follow from them.

use std::path::PathBuf;

use bytes::Bytes;
use epp::kv_events::wire::{self, Message, WireError};
use epp::server::{BoundPorts, Server, Settings, Shutdown};
use prefix_index::blocks::{BlockEvent, Bounds, EngineHash, Stored};
use rmpv::Value as Msgpack;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tracing::subscriber::DefaultGuard;

use crate::fixtures::{Engine, Form, IMAGE_TOKENS, Log, Pod, Proxy, get, settings, until};

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata:
  name: p
  annotations:
    inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE
    inference.networking.x-k8s.io/prefix-cache-mode: MODE
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";
const PODS: usize = 4;
/// Characters of a prompt, which are its tokens; the last one is always computed.
const PROMPT: usize = 101;

struct Lab {
    pods: Vec<Pod>,
    engines: Vec<Engine>,
    ports: BoundPorts,
    pool: PathBuf,
    log: Log,
    shutdown: Shutdown,
    server: JoinSet<anyhow::Result<()>>,
    _dir: TempDir,
    _subscriber: DefaultGuard,
}

impl Lab {
    async fn start(form: Form, change: impl FnOnce(&mut Settings, &mut Vec<Engine>)) -> Self {
        let dir = TempDir::new().unwrap();
        let (pool, endpoints) = (dir.path().join("pool.yaml"), dir.path().join("endpoints.yaml"));
        let (mut pods, mut engines) = (Vec::new(), Vec::new());
        let mut lines = String::new();
        for idx in 0..PODS {
            let (pod, engine) = (Pod::start(format!("pod-{idx}")).await, Engine::start(form).await);
            pod.tokenize();
            lines += &format!(
                "- {{name: pod-{idx}, address: '{}', kvEvents: '{}', kvReplay: '{}', labels: {{app: a, only: pod-{idx}}}}}\n",
                pod.address, engine.events, engine.replay
            );
            pods.push(pod);
            engines.push(engine);
        }
        std::fs::write(&pool, POOL.replace("MODE", "precise")).unwrap();
        std::fs::write(&endpoints, lines).unwrap();
        let mut settings = settings(&pool, &endpoints, 1 << 20);
        change(&mut settings, &mut engines);
        let (log, _subscriber) = Log::start();
        let server = Server::bind(settings).await.unwrap();
        let ports = server.ports().unwrap();
        let (mut tasks, shutdown) = (JoinSet::new(), Shutdown::default());
        tasks.spawn(server.run(shutdown.clone()));
        let lab = Self { pods, engines, ports, pool, log, shutdown, server: tasks, _dir: dir, _subscriber };
        until(async || lab.metric("epp_kv_event_streams ").await >= 4.0).await;
        lab
    }

    /// Sends a chat with `prompt` and returns the decision.
    async fn ask(&self, prompt: &str) -> Value {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{prompt}"}}]}}"#);
        self.send("/v1/chat/completions", &body).await
    }

    /// Sends a request and returns the decision.
    async fn send(&self, path: &str, body: &str) -> Value {
        let proxy = Proxy::connect(self.ports.grpc).await;
        proxy.full_duplex(&crate::fixtures::post(path), &[body.as_bytes(), b""]).await;
        let list = get(self.ports.metrics, "/debug/decisions?after=0").await;
        let list: Value = serde_json::from_str(&list).unwrap();
        list["decisions"].as_array().unwrap().last().unwrap().clone()
    }

    async fn metric(&self, name: &str) -> f64 {
        let metrics = get(self.ports.metrics, "/metrics").await;
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(-1.0, |value| value.parse().unwrap())
    }

    /// Publishes events of one engine and waits until they are applied.
    async fn publish(&mut self, engine: usize, events: Vec<Msgpack>) {
        let due = self.metric("epp_kv_events_total ").await + f64::from(u32::try_from(events.len()).unwrap());
        self.engines[engine].publish(events).await;
        until(async || self.metric("epp_kv_events_total ").await >= due).await;
    }

    fn set_mode(&self, mode: &str) {
        self.set_pool(&POOL.replace("MODE", mode));
    }

    fn set_pool(&self, text: &str) {
        let part = self.pool.with_extension("part");
        std::fs::write(&part, text).unwrap();
        std::fs::rename(part, &self.pool).unwrap();
    }

    async fn stop(mut self) {
        self.shutdown.abort.cancel();
        self.server.join_next().await.unwrap().unwrap().unwrap();
    }
}

fn text(letter: char) -> String {
    std::iter::repeat_n(letter, PROMPT).collect()
}

/// Token ids of a text in these tests: its bytes.
fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// Cached tokens of each pod in the record.
fn cached(decision: &Value) -> Vec<Option<u64>> {
    let candidates = decision["candidates"].as_array().unwrap();
    candidates.iter().map(|candidate| candidate["cached_tokens"].as_u64()).collect()
}

async fn an_engines_word_decides(form: Form) {
    let mut lab = Lab::start(form, |_, _| {}).await;
    let prompt = text('x');
    let decision = lab.ask(&prompt).await;
    assert_eq!(decision["reason"], "load", "{decision}");
    let prompt = text('y');
    // This picker sent the prompt to no pod: the engine got it from elsewhere.
    let stored = lab.engines[2].stored(&tokens(&prompt), 70);
    lab.publish(2, vec![stored]).await;
    let decision = lab.ask(&prompt).await;
    assert_eq!((&decision["pod"], &decision["reason"]), (&"pod-2".into(), &"prefix".into()), "{decision}");
    assert_eq!(cached(&decision), [Some(0), Some(0), Some(96), Some(0)]);
    // The prompt is evicted from its end on, and another pod holds it.
    let stored = lab.engines[1].stored(&tokens(&prompt), 7);
    lab.publish(1, vec![stored]).await;
    let removed = [75, 74, 73, 72].map(|hash| lab.engines[2].removed(hash)).to_vec();
    lab.publish(2, removed).await;
    let decision = lab.ask(&prompt).await;
    assert_eq!((&decision["pod"], cached(&decision)[2]), (&"pod-1".into(), Some(32)), "{decision}");
    lab.stop().await;
}

#[tokio::test]
async fn an_engines_word_decides_in_arrays() {
    an_engines_word_decides(Form::Array).await;
}

#[tokio::test]
async fn an_engines_word_decides_in_maps() {
    an_engines_word_decides(Form::Map).await;
}

#[tokio::test]
async fn the_annotation_chooses_live_what_is_gone_by() {
    let mut lab = Lab::start(Form::Map, |_, _| {}).await;
    let prompt = text('x');
    let stored = lab.engines[3].stored(&tokens(&prompt), 1);
    lab.publish(3, vec![stored]).await;
    lab.set_mode("estimate");
    until(async || lab.metric("epp_kv_event_streams ").await <= 0.0).await;
    let decision = lab.ask(&prompt).await;
    assert_eq!((&decision["reason"], cached(&decision)), (&"load".into(), vec![None; PODS]), "{decision}");
    lab.set_mode("precise");
    until(async || lab.metric("epp_kv_event_streams ").await >= 4.0).await;
    // The picker asks for past events again.
    assert_eq!(cached(&lab.ask(&prompt).await)[3], Some(96));
    lab.stop().await;
}

#[tokio::test]
async fn what_was_stored_before_is_asked_for_and_so_is_what_was_missed() {
    let prompt = text('x');
    let ids = tokens(&prompt);
    let mut lab = Lab::start(Form::Array, |_, engines| {
        let stored = engines[0].stored(&ids, 1);
        engines[0].keep(vec![stored]);
    })
    .await;
    assert_eq!(cached(&lab.ask(&prompt).await)[0], Some(96));
    // A batch is lost on its way.
    let missed = lab.engines[0].removed(6);
    lab.engines[0].keep(vec![missed]);
    let next = lab.engines[0].removed(5);
    lab.engines[0].publish(vec![next]).await;
    until(async || lab.metric("epp_kv_event_gaps_total ").await >= 1.0).await;
    until(async || lab.metric("epp_kv_events_total ").await >= 3.0).await;
    assert_eq!(cached(&lab.ask(&prompt).await)[0], Some(64));
    assert!(lab.metric("epp_kv_event_losses_total ").await <= 0.0);
    lab.stop().await;
}

#[tokio::test]
async fn what_cannot_be_told_any_more_counts_as_nothing() {
    let mut lab = Lab::start(Form::Array, |_, _| {}).await;
    let prompt = text('x');
    let ids = tokens(&prompt);
    let stored = lab.engines[0].stored(&ids, 1);
    lab.publish(0, vec![stored]).await;
    let missed = lab.engines[0].removed(6);
    lab.engines[0].keep(vec![missed]);
    lab.engines[0].drop_past();
    let other = text('y');
    let next = lab.engines[0].stored(&tokens(&other), 11);
    lab.publish(0, vec![next]).await;
    until(async || lab.metric("epp_kv_event_losses_total ").await >= 1.0).await;
    assert_eq!(cached(&lab.ask(&prompt).await)[0], Some(0));
    assert_eq!(cached(&lab.ask(&other).await)[0], Some(96));
    lab.stop().await;
}

#[tokio::test]
async fn blocks_for_which_there_is_no_room_are_counted_and_said_once() {
    let bounds = Bounds { endpoint: 4, ..Bounds::default() };
    let mut lab = Lab::start(Form::Map, |settings, _| settings.director.kv_bounds = bounds).await;
    let n_said = |lab: &Lab| lab.log.lines().iter().filter(|line| line.contains("no room")).count();
    let (x, y) = (text('x'), text('y'));
    // Four blocks have room: this is the control.
    let fitting = lab.engines[2].stored(&tokens(&x)[..64], 1);
    lab.publish(2, vec![fitting]).await;
    assert_eq!((lab.metric("epp_kv_index_refused_blocks ").await, n_said(&lab)), (0.0, 0));
    assert_eq!(cached(&lab.ask(&x).await)[2], Some(64));
    for (text, first_hash, n_refused) in [(&x, 1, 2.0), (&y, 50, 8.0)] {
        let stored = lab.engines[2].stored(&tokens(text), first_hash);
        lab.publish(2, vec![stored]).await;
        assert_eq!((lab.metric("epp_kv_index_refused_blocks ").await, n_said(&lab)), (n_refused, 1));
    }
    assert_eq!(cached(&lab.ask(&x).await)[2], Some(64));
    // What the engine evicts is forgotten, whether it had room or not, and makes room. It stored four blocks twice.
    let removed = (1..=6).chain(1..=4).map(|hash| lab.engines[2].removed(hash)).collect();
    lab.publish(2, removed).await;
    assert_eq!(cached(&lab.ask(&x).await)[2], Some(0));
    let stored = lab.engines[2].stored(&tokens(&y), 50);
    lab.publish(2, vec![stored]).await;
    assert_eq!(cached(&lab.ask(&y).await)[2], Some(64));
    lab.stop().await;
}

#[tokio::test]
async fn a_request_without_ids_and_a_pod_without_events_are_estimated() {
    let mut lab = Lab::start(Form::Map, |_, _| {}).await;
    let prompt = text('x');
    let stored = lab.engines[1].stored(&tokens(&text('z')), 1);
    lab.publish(1, vec![stored]).await;
    lab.pods.iter().for_each(Pod::stop_tokenizing);
    let first = lab.ask(&prompt).await;
    let second = lab.ask(&prompt).await;
    assert_eq!((&second["pod"], &second["reason"]), (&first["pod"], &"prefix".into()));
    assert_eq!(cached(&second), [None; PODS]);
    assert!(lab.metric("epp_tokenize_failures_total ").await >= 2.0);
    // The second pod's events end: only this pod is estimated.
    lab.pods.iter().for_each(Pod::tokenize);
    drop(lab.engines.remove(1));
    until(async || lab.metric("epp_kv_event_streams ").await <= 3.0).await;
    assert_eq!(cached(&lab.ask(&prompt).await)[1], None);
    lab.stop().await;
}

/// The client's own bytes go to the engine.
#[tokio::test]
async fn requests_of_every_api_are_rendered() {
    let mut lab = Lab::start(Form::Map, |_, _| {}).await;
    lab.pods.iter().for_each(Pod::render);
    let (x, y) = (text('x'), text('y'));
    let stored = [lab.engines[1].stored(&tokens(&x), 1), lab.engines[1].stored(&tokens(&y), 50)];
    lab.publish(1, stored.to_vec()).await;
    for (path, body, expected) in [
        ("/v1/chat/completions", format!(r#"{{"model":"m","messages":[{{"content":"{x}"}}]}} "#), 96),
        ("/v1/messages", format!(r#"{{"messages":[{{"role":"user","content":"{x}"}}],"model":"m"}}"#), 96),
        ("/v1/responses", format!(r#"{{"model":"m","input":"{x}","instructions":"-"}}"#), 96),
        ("/v1/completions", format!(r#"{{"model":"m","prompt":"{x}"}}"#), 96),
        // Several prompts, the third of which is cached nowhere.
        ("/v1/completions", format!(r#"{{"model":"m","prompt":["{x}","{y}","nowhere"]}}"#), 192),
    ] {
        let decision = lab.send(path, &body).await;
        assert_eq!(cached(&decision)[1], Some(expected), "{path} {body}: {decision}");
        assert_eq!(decision.get("untokenized"), None, "{decision}");
    }
    let asked: Vec<String> = lab.pods.iter().flat_map(Pod::paths).collect();
    assert!(!asked.iter().any(|path| path == "/tokenize"), "{asked:?}");
    lab.stop().await;
}

#[tokio::test]
async fn engines_are_asked_by_their_own_name_for_the_model() {
    let mut lab = Lab::start(Form::Map, |_, _| {}).await;
    lab.pods.iter().for_each(Pod::render);
    let prompt = text('x');
    let stored = lab.engines[1].stored(&tokens(&prompt), 1);
    lab.publish(1, vec![stored]).await;
    let model = "---\napiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata: {name: a}\n\
                 spec: {modelName: alias, poolRef: {name: p}, targetModels: [{name: m, weight: 1}]}\n";
    lab.set_pool(&(POOL.replace("MODE", "precise") + model));
    let body = format!(r#"{{"model":"alias","messages":[{{"role":"user","content":"{prompt}"}}]}}"#);
    until(async || lab.send("/v1/messages", &body).await["target_model"] == "m").await;
    let decision = lab.send("/v1/messages", &body).await;
    assert_eq!(cached(&decision)[1], Some(96), "{decision}");
    lab.stop().await;
}

#[tokio::test]
async fn a_request_that_is_refused_asks_no_engine_for_ids() {
    let lab = Lab::start(Form::Map, |_, _| {}).await;
    lab.pods.iter().for_each(Pod::render);
    let model = "---\napiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata: {name: a}\n\
                 spec: {modelName: m, criticality: Critical, poolRef: {name: p}}\n";
    lab.set_pool(&(POOL.replace("MODE", "precise") + model));
    let unknown = r#"{"model":"unknown","messages":[{"role":"user","content":"Hello"}]}"#;
    until(async || lab.send("/v1/chat/completions", unknown).await["outcome"] == "model_not_found").await;
    let n_asked = async || lab.metric("epp_tokenize_seconds_count ").await;
    let before = n_asked().await;
    for body in [unknown, r#"{"messages":[{"role":"user","content":"Hello"}]}"#] {
        let decision = lab.send("/v1/chat/completions", body).await;
        assert_eq!(decision["endpoint"], Value::Null, "{decision}");
    }
    assert_eq!(n_asked().await, before);
    // Control: a request that gets an endpoint asks one.
    assert_eq!(lab.ask("Hello").await["outcome"], "picked");
    assert_eq!(n_asked().await, before + 1.0);
    lab.stop().await;
}

#[tokio::test]
async fn the_same_text_behind_another_image_is_another_prompt() {
    let mut lab = Lab::start(Form::Map, |_, _| {}).await;
    lab.pods.iter().for_each(Pod::render);
    let prompt = text('x');
    let ids: Vec<u32> = std::iter::repeat_n(0, IMAGE_TOKENS).chain(tokens(&prompt)).collect();
    let Msgpack::Map(mut stored) = lab.engines[2].stored(&ids, 1) else { unreachable!("events are maps") };
    // The image begins in the first block and ends in the second.
    let key = |offset: i64| Msgpack::Array(vec![Msgpack::Array(vec!["one".into(), offset.into()])]);
    let mut keys = vec![Msgpack::Nil; ids.len() / 16];
    (keys[0], keys[1]) = (key(0), key(-16));
    stored.push(("extra_keys".into(), Msgpack::Array(keys)));
    lab.publish(2, vec![Msgpack::Map(stored)]).await;
    let chat = |url: &str| {
        format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"{url}"}}}},{{"type":"text","text":"{prompt}"}}]}}]}}"#
        )
    };
    let same = lab.send("/v1/chat/completions", &chat("one")).await;
    assert_eq!(cached(&same)[2], Some(112), "{same}");
    let other = lab.send("/v1/chat/completions", &chat("two")).await;
    assert_eq!(cached(&other)[2], Some(0), "{other}");
    lab.stop().await;
}

/// Engines before vLLM 0.33, and those without `--enable-scale-out`, do not render.
#[tokio::test]
async fn what_an_engine_cannot_tell_is_estimated_and_the_record_says_so() {
    let mut lab = Lab::start(Form::Map, |_, _| {}).await;
    let prompt = text('x');
    let stored = lab.engines[1].stored(&tokens(&prompt), 1);
    lab.publish(1, vec![stored]).await;
    // Each pod is asked to render only once.
    for _ in 0..2 * PODS {
        assert_eq!(cached(&lab.ask(&prompt).await)[1], Some(96));
    }
    lab.pods.iter().for_each(Pod::forget_paths);
    assert_eq!(cached(&lab.ask(&prompt).await)[1], Some(96));
    let asked: Vec<String> = lab.pods.iter().flat_map(Pod::paths).collect();
    assert!(!asked.iter().any(|path| path.ends_with("/render")), "{asked:?}");
    let user = format!(r#""messages":[{{"role":"user","content":"{prompt}"}}]"#);
    let image = format!(
        r#""messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"u"}}}},"{prompt}"]}}]"#
    );
    for (path, fields, reason) in [
        ("/v1/chat/completions", format!(r#"{user},"documents":[]"#), "documents"),
        ("/v1/chat/completions", format!(r#"{user},"reasoning_effort":"low""#), "reasoning_effort"),
        ("/v1/chat/completions", image, "media"),
        ("/v1/completions", format!(r#""prompt":["{prompt}","b"]"#), "one text"),
        ("/v1/responses", format!(r#""input":"{prompt}""#), "this API"),
        ("/v1/messages", user.clone(), "this API"),
        ("/v1/embeddings", format!(r#""input":"{prompt}""#), "this API"),
    ] {
        let decision = lab.send(path, &format!(r#"{{"model":"m",{fields}}}"#)).await;
        assert_eq!(cached(&decision), [None; PODS], "{path} {fields}: {decision}");
        let told = decision["untokenized"].as_str().unwrap_or_default();
        assert!(told.contains(reason), "{path} {fields}: {told:?}");
    }
    // Token ids need no tokenizer.
    let ids = tokens(&prompt);
    let given = lab.send("/v1/completions", &format!(r#"{{"model":"m","prompt":[{ids:?},[1]]}}"#)).await;
    assert_eq!(cached(&given)[1], Some(96), "{given}");
    lab.stop().await;
}

#[tokio::test]
async fn prompts_on_their_way_count_as_held() {
    let mut lab = Lab::start(Form::Map, |_, _| {}).await;
    let stored = lab.engines[0].stored(&tokens(&text('a')), 1);
    lab.publish(0, vec![stored]).await;
    let prompt = text('x');
    let body = format!(r#"{{"model":"m","prompt":"{prompt}"}}"#);
    let mut call = Proxy::connect(lab.ports.grpc).await.open().await;
    call.send_headers(None, &crate::fixtures::post("/v1/completions"), None, false).await;
    call.send_body(body.as_bytes(), true).await;
    let picked = call.full_duplex_answer().await.picked().to_owned();
    let proxy = Proxy::connect(lab.ports.grpc).await;
    let headers = crate::fixtures::post("/v1/completions");
    let second = proxy.full_duplex(&headers, &[body.as_bytes(), b""]).await;
    assert_eq!(second.picked(), picked, "the block is expected where the first one is on its way");
    lab.stop().await;
}

/// The blocks of another pool's engines say nothing of those of a pool whose engine has stored none.
#[tokio::test]
async fn the_size_of_a_block_is_the_pools_own() {
    let mut lab = Lab::start(Form::Map, |_, _| {}).await;
    let stored = lab.engines[0].stored(&tokens(&text('a')), 1);
    lab.publish(0, vec![stored]).await;
    let other = POOL
        .replace("MODE", "precise")
        .replace("name: p", "name: q")
        .replace("app: a", "only: pod-3")
        + "---\napiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata: {name: q}\n\
           spec: {modelName: q, poolRef: {name: q}}\n";
    lab.set_pool(&format!("{}---\n{other}", POOL.replace("MODE", "precise")));
    let prompt = text('x');
    let body = format!(r#"{{"model":"q","prompt":"{prompt}"}}"#);
    until(async || lab.send("/v1/completions", &body).await["pool"] == "default/q").await;
    let mut call = Proxy::connect(lab.ports.grpc).await.open().await;
    call.send_headers(None, &crate::fixtures::post("/v1/completions"), None, false).await;
    call.send_body(body.as_bytes(), true).await;
    assert_eq!(call.full_duplex_answer().await.picked(), lab.pods[3].address.to_string());
    assert_eq!(cached(&lab.send("/v1/completions", &body).await), [Some(0)]);
    // The control: once it has stored a block, the request on its way is expected to be cached.
    let stored = lab.engines[3].stored(&tokens(&text('a')), 1);
    lab.publish(3, vec![stored]).await;
    let mut call = Proxy::connect(lab.ports.grpc).await.open().await;
    call.send_headers(None, &crate::fixtures::post("/v1/completions"), None, false).await;
    call.send_body(body.as_bytes(), true).await;
    call.full_duplex_answer().await.picked();
    assert_eq!(cached(&lab.send("/v1/completions", &body).await), [Some(96)]);
    lab.stop().await;
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Bytes that msgspec wrote for the classes of vLLM 0.33, 0.11 and 0.8: one block stored, the same removed, all
/// cleared.
#[test]
fn every_form_that_vllm_has_had_is_read() {
    const V33: &str = "93cb3ff800000000000093de000ba474797065ab426c6f636b53746f726564ac626c6f636b5f6861736865739107b1706172\
        656e745f626c6f636b5f68617368c0a9746f6b656e5f696473920102aa626c6f636b5f73697a6502a76c6f72615f6964c0a6\
        6d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b65797391c0a967726f75705f69647800b26b765f63\
        616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e84a474797065ac426c6f636b52656d6f766564ac62\
        6c6f636b5f6861736865739107a66d656469756da3475055a967726f75705f6964780081a474797065b0416c6c426c6f636b\
        73436c656172656400";
    const V11: &str = "93cb3ff80000000000009397ab426c6f636b53746f7265649107c092010202c0a347505593ac426c6f636b52656d6f766564\
        9107a347505591b0416c6c426c6f636b73436c656172656400";
    const V8: &str = "92cb3ff80000000000009396ab426c6f636b53746f7265649107c092010202c092ac426c6f636b52656d6f766564910791b0\
        416c6c426c6f636b73436c6561726564";
    let stored = |extras| Stored {
        hashes: vec![EngineHash::of_integer(7)],
        tokens: vec![1, 2],
        block_size: 2,
        extras,
        ..Stored::default()
    };
    let removed = BlockEvent::Removed(vec![EngineHash::of_integer(7)]);
    let v33 = wire::events(&bytes(V33)).unwrap();
    assert_eq!(v33, [BlockEvent::Stored(stored(vec![Vec::new()])), removed.clone(), BlockEvent::Cleared]);
    let v11 = wire::events(&bytes(V11)).unwrap();
    assert_eq!(v11, [BlockEvent::Stored(stored(Vec::new())), removed.clone(), BlockEvent::Cleared]);
    let v8 = wire::events(&bytes(V8)).unwrap();
    assert_eq!(v8, [BlockEvent::Stored(stored(Vec::new())), removed, BlockEvent::Cleared]);
}

#[test]
fn blocks_elsewhere_and_unknown_events_are_left_out_and_nonsense_is_an_error() {
    let batch = |event: Msgpack| {
        let batch = Msgpack::Array(vec![Msgpack::from(1.0), Msgpack::Array(vec![event])]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &batch).unwrap();
        bytes
    };
    let removed = |medium: &str| {
        Msgpack::Array(vec![
            "BlockRemoved".into(),
            Msgpack::Array(vec![Msgpack::Binary(vec![1])]),
            medium.into(),
        ])
    };
    let gpu = BlockEvent::Removed(vec![EngineHash::of_bytes(&[1])]);
    assert_eq!(wire::events(&batch(removed("gpu"))), Ok(vec![gpu]));
    assert_eq!(wire::events(&batch(removed("CPU"))), Ok(vec![]));
    assert_eq!(wire::events(&batch(Msgpack::Array(vec!["BlockWarmed".into()]))), Ok(vec![]));
    let without = |what| Err(WireError::Missing(what));
    assert_eq!(wire::events(&batch(Msgpack::Array(vec!["BlockRemoved".into()]))), without("block_hashes"));
    let bare = Msgpack::Map(vec![("type".into(), "BlockStored".into())]);
    assert_eq!(wire::events(&batch(bare)), without("block_hashes"));
    assert_eq!(wire::events(b"\x01"), Err(WireError::NotABatch));
    assert!(matches!(wire::events(&[0x91; 64]), Err(WireError::Syntax(_))));
    assert!(matches!(wire::events(&[]), Err(WireError::Syntax(_))));
    assert_eq!(Message::new(&[Bytes::new()]), Err(WireError::Frames(1)));
    let short = [Bytes::new(), Bytes::from_static(b"1234"), Bytes::new()];
    assert_eq!(Message::new(&short), Err(WireError::Number(4)));
}
