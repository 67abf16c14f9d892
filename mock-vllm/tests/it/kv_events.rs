//! KV events: the bytes of batches, and the flag that configures them.

use expect_test::{Expect, expect};
use mock_vllm::kv_events::config::{KvEventsConfig, ZmqEndpoint};
use mock_vllm::kv_events::encoding::{HashForm, WireFormat, encode_batch};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use vllm_engine::event::KvEvent;
use vllm_engine::hash::BlockHash;
use vllm_engine::request::LoraAdapter;
use vllm_engine::vllm_version::VllmVersion;

/// Bytes that msgspec wrote for the classes of vLLM 0.33, 0.11 and 0.8.
const GOLDEN_V0_33: &str = "93cb3ff800000000000093de000ba474797065ab426c6f636b53746f726564ac626c6f636b5f6861736865739107\
    b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473920102aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756d\
    a3475055a96c6f72615f6e616d65c0aa65787472615f6b65797391c0a967726f75705f69647800b26b765f63616368655f737065635f6b696e64\
    ae66756c6c5f617474656e74696f6e84a474797065ac426c6f636b52656d6f766564ac626c6f636b5f6861736865739107a66d656469756da3475055\
    a967726f75705f6964780081a474797065b0416c6c426c6f636b73436c656172656400";
const GOLDEN_V0_11: &str = "93cb3ff80000000000009397ab426c6f636b53746f7265649107c092010202c0a347505593ac426c6f636b52656d6f7665\
    649107a347505591b0416c6c426c6f636b73436c656172656400";

const GOLDEN_V0_8: &str = "92cb3ff80000000000009396ab426c6f636b53746f7265649107c092010202c092ac426c6f636b52656d6f76656491\
    0791b0416c6c426c6f636b73436c6561726564";

/// Makes a hash whose event form is `int`.
pub(crate) fn hash(int: u64) -> BlockHash {
    let mut digest = [0xaa; 32];
    digest[24..].copy_from_slice(&int.to_be_bytes());
    BlockHash(digest)
}

/// Makes an event of blocks of two tokens.
pub(crate) fn stored(hashes: &[u64], parent: Option<u64>) -> KvEvent {
    KvEvent::BlockStored {
        block_hashes: hashes.iter().map(|int| hash(*int)).collect(),
        parent: parent.map(hash),
        token_ids: (1..=2 * u32::try_from(hashes.len()).unwrap()).collect(),
        block_size: 2,
        lora: None,
        cache_salt: None,
    }
}

fn golden_events() -> Vec<KvEvent> {
    vec![stored(&[7], None), KvEvent::BlockRemoved { block_hash: hash(7) }, KvEvent::AllBlocksCleared]
}

fn encode(version: VllmVersion, hashes: HashForm, events: &[KvEvent], rank: u16) -> String {
    let mut bytes = Vec::new();
    encode_batch(&mut bytes, WireFormat { version, hashes }, Duration::from_millis(1_500), events, rank);
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

#[test]
fn batches_have_the_bytes_that_msgspec_writes() {
    assert_eq!(encode(VllmVersion::V0_33, HashForm::Int, &golden_events(), 0), GOLDEN_V0_33);
    assert_eq!(encode(VllmVersion::V0_11, HashForm::Int, &golden_events(), 0), GOLDEN_V0_11);
    assert_eq!(encode(VllmVersion::V0_8, HashForm::Int, &golden_events(), 0), GOLDEN_V0_8);
}

#[test]
fn every_input_moves_the_bytes() {
    let golden = golden_events();
    let other_rank = encode(VllmVersion::V0_33, HashForm::Int, &golden, 1);
    assert_eq!(other_rank, format!("{}01", &GOLDEN_V0_33[..GOLDEN_V0_33.len() - 2]));
    let with_parent = encode(VllmVersion::V0_11, HashForm::Int, &[stored(&[7], Some(300))], 0);
    assert_eq!(with_parent, "93cb3ff80000000000009197ab426c6f636b53746f7265649107cd012c92010202c0a347505500");
}

#[test]
fn hashes_are_all_their_bytes_on_request() {
    let removed = [KvEvent::BlockRemoved { block_hash: hash(7) }];
    let digest = "aa".repeat(24) + "0000000000000007";
    assert_eq!(
        encode(VllmVersion::V0_11, HashForm::Bytes, &removed, 0),
        format!("93cb3ff80000000000009193ac426c6f636b52656d6f76656491c420{digest}a347505500")
    );
    let large = [KvEvent::BlockRemoved { block_hash: hash(u64::MAX) }];
    assert_eq!(
        encode(VllmVersion::V0_11, HashForm::Int, &large, 0),
        "93cb3ff80000000000009193ac426c6f636b52656d6f76656491cfffffffffffffffffa347505500"
    );
}

/// Checks the entries of `extra_keys`, in hex: the adapter's name in both blocks, the salt in the first.
#[test]
fn extra_keys_come_per_block() {
    let event = |lora: Option<Arc<LoraAdapter>>, salt: Option<&str>| {
        let mut event = stored(&[7, 8], None);
        if let KvEvent::BlockStored { lora: event_lora, cache_salt, .. } = &mut event {
            (*event_lora, *cache_salt) = (lora, salt.map(Arc::from));
        }
        encode(VllmVersion::V0_33, HashForm::Int, &[event], 0)
    };
    let check = |encoded: String, id_name: (&str, &str), extra_keys: &str| {
        // "lora_id", .., "lora_name", .., "extra_keys", array of two
        for (key, value) in [
            ("a76c6f72615f6964", id_name.0),
            ("a96c6f72615f6e616d65", id_name.1),
            ("aa65787472615f6b65797392", extra_keys),
        ] {
            assert!(encoded.contains(&format!("{key}{value}a")), "{key}{value} in {encoded}");
        }
    };
    let lora = || Some(Arc::new(LoraAdapter { id: 3, name: "l".to_owned(), path: "/p".to_owned() }));
    check(event(None, None), ("c0", "c0"), "c0c0");
    check(event(None, Some("s")), ("c0", "c0"), "91a173c0");
    check(event(lora(), None), ("03", "a16c"), "91a16c91a16c");
    check(event(lora(), Some("s")), ("03", "a16c"), "92a16ca17391a16c");
}

#[track_caller]
fn check_config(args: &[&str], expected: &Expect) {
    expected.assert_debug_eq(&KvEventsConfig::from_args(args.iter().copied()));
}

#[track_caller]
fn check_error(args: &[&str], expected: &str) {
    assert_eq!(KvEventsConfig::from_args(args.iter().copied()).unwrap_err().to_string(), expected);
}

#[test]
fn keys_have_vllms_defaults() {
    check_config(
        &[r#"{"enable_kv_cache_events": true}"#],
        &expect![[r#"
            Ok(
                Zmq(
                    ZmqConfig {
                        endpoint: Bind(
                            TcpAddress {
                                host: "0.0.0.0",
                                port: 5557,
                            },
                        ),
                        replay_endpoint: None,
                        buffer_steps: 10000,
                        hwm: 100000,
                        max_queue_size: 100000,
                        topic: "",
                    },
                ),
            )
        "#]],
    );
    let all = r#"{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://indexer:5557",
        "replay_endpoint":"tcp://[::]:5558","buffer_steps":5,"hwm":6,"max_queue_size":7,"topic":"kv@10.0.0.1:8000@qwen"}"#;
    check_config(
        &[all],
        &expect![[r#"
            Ok(
                Zmq(
                    ZmqConfig {
                        endpoint: Connect(
                            TcpAddress {
                                host: "indexer",
                                port: 5557,
                            },
                        ),
                        replay_endpoint: Some(
                            TcpAddress {
                                host: "[::]",
                                port: 5558,
                            },
                        ),
                        buffer_steps: 5,
                        hwm: 6,
                        max_queue_size: 7,
                        topic: "kv@10.0.0.1:8000@qwen",
                    },
                ),
            )
        "#]],
    );
    assert_eq!(all.parse::<KvEventsConfig>().unwrap(), KvEventsConfig::from_args([all]).unwrap());
}

#[test]
fn events_are_off_unless_enabled_for_a_publisher_that_sends() {
    let is_on = |args: &[&str]| KvEventsConfig::from_args(args.iter().copied()).unwrap().is_on();
    assert!(!is_on(&[]));
    assert!(!is_on(&[r#"{"publisher":"zmq"}"#]));
    assert!(!is_on(&[r#"{"enable_kv_cache_events":true,"publisher":"null"}"#]));
    assert!(is_on(&[r#"{"enable_kv_cache_events":true,"publisher":null}"#]));
    // Dotted keys, and a later object that replaces everything before it.
    assert!(is_on(&["enable_kv_cache_events=true", "topic=kv"]));
    assert!(!is_on(&["enable_kv_cache_events=true", "{}"]));
    assert!(is_on(&["{}", "enable_kv_cache_events=true"]));
}

#[test]
fn errors_name_the_key() {
    check_error(
        &[r#"{"hwmark":1}"#],
        "hwmark: unknown field `hwmark`, expected one of `enable_kv_cache_events`, `publisher`, `endpoint`, \
         `replay_endpoint`, `buffer_steps`, `hwm`, `max_queue_size`, `topic`",
    );
    check_error(&["hwm=many"], "hwm: invalid type: string \"many\", expected usize");
    check_error(&["buffer_steps=-1"], "buffer_steps: invalid value: integer `-1`, expected usize");
    check_error(&[r#"{"publisher":"nats"}"#], "publisher: unknown variant `nats`, expected `null` or `zmq`");
    check_error(&["true"], "\"true\" is neither a JSON object nor key=value");
    for endpoint in ["ipc:///tmp/kv", "tcp://*", "tcp://*:http", "tcp://:5557", "tcp://*:65536"] {
        let expected = format!("endpoint {endpoint:?} is not of the form tcp://host:port");
        check_error(&[&format!("endpoint={endpoint}")], &expected);
    }
}

#[test]
fn ranks_count_ports_up() {
    let config = |endpoint: &str, rank| {
        let args =
            ["enable_kv_cache_events=true", &format!("endpoint={endpoint}"), "replay_endpoint=tcp://*:0"];
        KvEventsConfig::from_args(args).unwrap().for_rank(rank)
    };
    let KvEventsConfig::Zmq(third) = config("tcp://collector:5557", 3).unwrap() else {
        panic!("events are on")
    };
    assert!(
        matches!(third.endpoint, ZmqEndpoint::Connect(address) if address.to_string() == "collector:5560")
    );
    assert_eq!(third.replay_endpoint.unwrap().to_string(), "0.0.0.0:0");
    let error = config("tcp://*:65535", 1).unwrap_err();
    assert_eq!(error.to_string(), "port 65535 plus data-parallel rank 1 is no port");
    config("tcp://*:65535", 0).unwrap();
    assert!(!KvEventsConfig::Off.for_rank(u16::MAX).unwrap().is_on());
}
