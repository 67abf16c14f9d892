//! A batch of KV events in msgpack, byte for byte as vLLM's msgspec writes it.

use std::time::Duration;
use vllm_engine::event::KvEvent;
use vllm_engine::hash::BlockHash;
use vllm_engine::request::LoraAdapter;
use vllm_engine::vllm_version::VllmVersion;

/// Medium of all blocks.
const MEDIUM: &str = "GPU";

/// Index of the one KV-cache group, which has full attention.
const GROUP_IDX: u64 = 0;
const KV_CACHE_SPEC_KIND: &str = "full_attention";

/// Fields of a `BlockStored` map, its tag included. msgspec uses the three-byte head for structs of more than 15
/// fields; vLLM 0.33's has 16 and leaves out the last five.
const N_STORED_FIELDS: u16 = 11;

/// Form of versions and hashes on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireFormat {
    /// Version of events and replay answers. 0.33 sends maps, and the topic in replay answers (vLLM PR #42892). 0.11
    /// sends arrays. 0.8 sends arrays without a medium, in batches without a rank.
    pub version: VllmVersion,
    pub hashes: HashForm,
}

/// `VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashForm {
    /// Last eight bytes of the digest, big endian.
    #[default]
    Int,
    /// All 32 bytes.
    Bytes,
}

/// Appends `[timestamp, [event..], rank]` to `out`, in 0.8 without the rank. `at` is the time since the Unix epoch.
pub fn encode_batch(out: &mut Vec<u8>, format: WireFormat, at: Duration, events: &[KvEvent], rank: u16) {
    let with_rank = format.version > VllmVersion::V0_8;
    msgpack::array(out, if with_rank { 3 } else { 2 });
    msgpack::float(out, at.as_secs_f64());
    msgpack::array(out, events.len());
    for event in events {
        match format.version {
            VllmVersion::V0_8 => array_event(out, format.hashes, event, None),
            VllmVersion::V0_11 => array_event(out, format.hashes, event, Some(MEDIUM)),
            VllmVersion::V0_33 => map_event(out, format.hashes, event),
        }
    }
    if with_rank {
        msgpack::uint(out, u64::from(rank));
    }
}

fn map_event(out: &mut Vec<u8>, form: HashForm, event: &KvEvent) {
    match event {
        KvEvent::BlockStored { block_hashes, parent, token_ids, block_size, lora, cache_salt } => {
            msgpack::map_16(out, N_STORED_FIELDS);
            pair(out, "type", "BlockStored");
            msgpack::text(out, "block_hashes");
            hash_array(out, form, block_hashes);
            msgpack::text(out, "parent_block_hash");
            optional_hash(out, form, parent.as_ref());
            msgpack::text(out, "token_ids");
            token_array(out, token_ids);
            msgpack::text(out, "block_size");
            msgpack::uint(out, u64::from(*block_size));
            msgpack::text(out, "lora_id");
            lora_id(out, lora.as_deref());
            pair(out, "medium", MEDIUM);
            msgpack::text(out, "lora_name");
            match lora {
                Some(lora) => msgpack::text(out, &lora.name),
                None => msgpack::nil(out),
            }
            msgpack::text(out, "extra_keys");
            extra_keys(out, block_hashes.len(), lora.as_deref(), cache_salt.as_deref());
            msgpack::text(out, "group_idx");
            msgpack::uint(out, GROUP_IDX);
            pair(out, "kv_cache_spec_kind", KV_CACHE_SPEC_KIND);
        }
        KvEvent::BlockRemoved { block_hash } => {
            msgpack::map(out, 4);
            pair(out, "type", "BlockRemoved");
            msgpack::text(out, "block_hashes");
            hash_array(out, form, std::slice::from_ref(block_hash));
            pair(out, "medium", MEDIUM);
            msgpack::text(out, "group_idx");
            msgpack::uint(out, GROUP_IDX);
        }
        KvEvent::AllBlocksCleared => {
            msgpack::map(out, 1);
            pair(out, "type", "AllBlocksCleared");
        }
    }
}

fn array_event(out: &mut Vec<u8>, form: HashForm, event: &KvEvent, medium: Option<&str>) {
    let n_last = medium.iter().len();
    match event {
        KvEvent::BlockStored { block_hashes, parent, token_ids, block_size, lora, cache_salt: _ } => {
            msgpack::array(out, 6 + n_last);
            msgpack::text(out, "BlockStored");
            hash_array(out, form, block_hashes);
            optional_hash(out, form, parent.as_ref());
            token_array(out, token_ids);
            msgpack::uint(out, u64::from(*block_size));
            lora_id(out, lora.as_deref());
            medium.into_iter().for_each(|medium| msgpack::text(out, medium));
        }
        KvEvent::BlockRemoved { block_hash } => {
            msgpack::array(out, 2 + n_last);
            msgpack::text(out, "BlockRemoved");
            hash_array(out, form, std::slice::from_ref(block_hash));
            medium.into_iter().for_each(|medium| msgpack::text(out, medium));
        }
        KvEvent::AllBlocksCleared => {
            msgpack::array(out, 1);
            msgpack::text(out, "AllBlocksCleared");
        }
    }
}

fn pair(out: &mut Vec<u8>, key: &str, value: &str) {
    msgpack::text(out, key);
    msgpack::text(out, value);
}

fn hash_array(out: &mut Vec<u8>, form: HashForm, hashes: &[BlockHash]) {
    msgpack::array(out, hashes.len());
    hashes.iter().for_each(|hash| block_hash(out, form, hash));
}

fn block_hash(out: &mut Vec<u8>, form: HashForm, hash: &BlockHash) {
    match form {
        HashForm::Int => msgpack::uint(out, hash.event_int()),
        HashForm::Bytes => msgpack::bytes_32(out, &hash.0),
    }
}

fn optional_hash(out: &mut Vec<u8>, form: HashForm, hash: Option<&BlockHash>) {
    match hash {
        Some(hash) => block_hash(out, form, hash),
        None => msgpack::nil(out),
    }
}

fn token_array(out: &mut Vec<u8>, tokens: &[u32]) {
    msgpack::array(out, tokens.len());
    tokens.iter().for_each(|token| msgpack::uint(out, u64::from(*token)));
}

fn lora_id(out: &mut Vec<u8>, lora: Option<&LoraAdapter>) {
    match lora {
        Some(lora) => msgpack::uint(out, u64::from(lora.id)),
        None => msgpack::nil(out),
    }
}

/// Writes one entry per block: the adapter's name in each, the salt in a request's first, nil if there is neither.
fn extra_keys(out: &mut Vec<u8>, n_blocks: usize, lora: Option<&LoraAdapter>, cache_salt: Option<&str>) {
    msgpack::array(out, n_blocks);
    let name = lora.map(|lora| lora.name.as_str());
    for block in 0..n_blocks {
        let keys = [name, cache_salt.filter(|_| block == 0)];
        match keys.iter().flatten().count() {
            0 => msgpack::nil(out),
            n_keys => {
                msgpack::array(out, n_keys);
                keys.into_iter().flatten().for_each(|key| msgpack::text(out, key));
            }
        }
    }
}

/// Writers of the smallest msgpack form of each value.
mod msgpack {
    pub(super) fn nil(out: &mut Vec<u8>) {
        out.push(0xc0);
    }

    pub(super) fn float(out: &mut Vec<u8>, value: f64) {
        out.push(0xcb);
        out.extend(value.to_be_bytes());
    }

    pub(super) fn uint(out: &mut Vec<u8>, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
        match value {
            0..=0x7f => out.push(h),
            0x80..=0xff => out.extend([0xcc, h]),
            0x100..=0xffff => out.extend([0xcd, g, h]),
            0x1_0000..=0xffff_ffff => out.extend([0xce, e, f, g, h]),
            0x1_0000_0000.. => out.extend([0xcf, a, b, c, d, e, f, g, h]),
        }
    }

    pub(super) fn text(out: &mut Vec<u8>, text: &str) {
        let [a, b, c, d] = len(text.len());
        match text.len() {
            0..=31 => out.push(0xa0 | d),
            32..=0xff => out.extend([0xd9, d]),
            0x100..=0xffff => out.extend([0xda, c, d]),
            0x1_0000.. => out.extend([0xdb, a, b, c, d]),
        }
        out.extend(text.bytes());
    }

    pub(super) fn bytes_32(out: &mut Vec<u8>, bytes: &[u8; 32]) {
        out.extend([0xc4, 32]);
        out.extend(bytes);
    }

    pub(super) fn array(out: &mut Vec<u8>, n_items: usize) {
        let [a, b, c, d] = len(n_items);
        match n_items {
            0..=15 => out.push(0x90 | d),
            16..=0xffff => out.extend([0xdc, c, d]),
            0x1_0000.. => out.extend([0xdd, a, b, c, d]),
        }
    }

    /// Writes the head of a map of up to 15 pairs.
    pub(super) fn map(out: &mut Vec<u8>, n_pairs: u8) {
        debug_assert!(n_pairs < 16, "a short map has a four-bit length");
        out.push(0x80 | n_pairs);
    }

    /// Writes the head of a map with a length of two bytes, even for few pairs.
    pub(super) fn map_16(out: &mut Vec<u8>, n_pairs: u16) {
        out.push(0xde);
        out.extend(n_pairs.to_be_bytes());
    }

    fn len(n: usize) -> [u8; 4] {
        u32::try_from(n).expect("an event has fewer items than a request can have tokens").to_be_bytes()
    }
}
