//! Compares block hashes with digests that vLLM 0.33 computed.

use crate::fixtures::{N_SYSTEM_TURN, ROUND1};
use vllm_engine::hash::{BlockHash, BlockHasher, DEFAULT_SEED, ExtraKeys, HashAlgorithm};
use vllm_engine::request::LoraAdapter;

const BLOCK_SIZE: usize = 16;

fn qwen3() -> &'static [u32] {
    &ROUND1[N_SYSTEM_TURN..]
}

/// Returns the hash of block `block` of `tokens`.
fn hash(algorithm: HashAlgorithm, seed: &str, tokens: &[u32], block: usize) -> BlockHash {
    let mut hasher = BlockHasher::new(algorithm, seed);
    let chain = tokens.chunks_exact(BLOCK_SIZE).take(block + 1).fold(None, |parent, tokens| {
        // The parts may split anywhere: a block may span the end of the prompt.
        let (prompt, output) = tokens.split_at(5);
        Some(hasher.hash(parent, [prompt, output], ExtraKeys::default()))
    });
    chain.unwrap()
}

#[track_caller]
fn check(hash: BlockHash, expected: &str) {
    assert_eq!(hash.to_string(), expected);
}

#[test]
fn sha256_with_the_default_seed() {
    let of = |tokens, block| hash(HashAlgorithm::Sha256, DEFAULT_SEED, tokens, block);
    let none_hash = BlockHasher::new(HashAlgorithm::Sha256, DEFAULT_SEED).none_hash();
    check(none_hash, "066b1e8987e027138e98701c46128929378935f9b6cd1549105ae6b4f0d71198");
    check(of(&ROUND1, 0), "c5dab0182bd3e7357b0407b3a0542f9cb345a69acaee483e07e82ca577914eaf");
    check(of(&ROUND1, 6), "3e7618534cbdd571efba8b70e1ead8bb0e8a4556d9a1207472c6dad85a5c6a52");
    check(of(qwen3(), 0), "598df6e5787d1caf8320a3c15b9f68f656b95d15cb8ac5c707f8407bdd4490a7");
    check(of(qwen3(), 5), "1c75a87382a0b682dd3f25cc0658c444537d155b08dc9aa09ca825ca9d4f62dd");
}

#[test]
fn events_carry_the_last_eight_bytes() {
    let of = |tokens, block| hash(HashAlgorithm::Sha256, DEFAULT_SEED, tokens, block).event_int();
    assert_eq!(of(&ROUND1, 0), 569_754_442_049_605_295);
    assert_eq!(of(&ROUND1, 6), 8_270_538_388_476_291_666);
    assert_eq!(of(qwen3(), 0), 574_279_853_227_151_527);
    assert_eq!(of(qwen3(), 5), 11_288_314_018_156_995_293);
    assert_eq!(
        hash(HashAlgorithm::Sha256Cbor, DEFAULT_SEED, &ROUND1, 0).event_int(),
        15_216_345_187_748_044_074
    );
}

#[test]
fn sha256_with_pythonhashseed_0() {
    let of = |block| hash(HashAlgorithm::Sha256, "0", &ROUND1, block);
    let none_hash = BlockHasher::new(HashAlgorithm::Sha256, "0").none_hash();
    check(none_hash, "1973e23848344dc43a988a9b478663803cfffe1243480253f9a3cf004b14aa7c");
    check(of(0), "4f8e8f538053217eee1ea5c8ed9ba0034009b56dd15ea71c37a4fb074f19d0bc");
    check(of(6), "a7d877244b62cfd47531f41bca26b6dfa805ff4fff998507cc5216431822b278");
}

#[test]
fn sha256_cbor() {
    let of = |seed, block| hash(HashAlgorithm::Sha256Cbor, seed, &ROUND1, block);
    let none_hash = |seed| BlockHasher::new(HashAlgorithm::Sha256Cbor, seed).none_hash();
    check(none_hash(DEFAULT_SEED), "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0");
    check(of(DEFAULT_SEED, 0), "627159f703e9644c88b57c71f007a19772464e17b71ad265d32b51541f725d2a");
    check(of(DEFAULT_SEED, 6), "d6161f9afc0ae051c7d88015acf8f613df914ef837fe3a3ad26ac2ce95d7ad44");
    check(none_hash("0"), "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e");
    check(of("0", 0), "7eb067dc1da87f1d5a8f30728b57ae653d574426d38d6db0b861a36e437ece3e");
}

#[test]
fn extra_keys_are_tagged() {
    let block = &ROUND1[..BLOCK_SIZE];
    let of = |extra| BlockHasher::new(HashAlgorithm::Sha256, DEFAULT_SEED).hash(None, [block, &[]], extra);
    let salted = of(ExtraKeys { cache_salt: Some("abc"), lora: None });
    check(salted, "9eac0e7d17b07a6ccb3480b04ab4496308295d4f7f4be42ff8301c92a5850b78");
    let lora = LoraAdapter { id: 1, name: "my-lora".to_owned(), path: "/p".to_owned() };
    let adapted = of(ExtraKeys { cache_salt: None, lora: Some(&lora) });
    check(adapted, "ceaf10856673233a8eaf99914af386a2fe8ae3a063b6e965e2ba7c4dab4a1b72");
}

/// Values of CPython's pickle 5 for cases with opcodes of their own: one-byte and two-byte ints, tuples of up to three
/// items, strings of 256 bytes and more, both keys at once.
#[test]
fn rare_pickle_opcodes() {
    let of = |tokens: &[u32], extra| {
        BlockHasher::new(HashAlgorithm::Sha256, DEFAULT_SEED).hash(None, [tokens, &[]], extra)
    };
    let plain = ExtraKeys::default();
    check(of(&[7], plain), PICKLE_1);
    check(of(&[255, 256], plain), PICKLE_2);
    check(of(&[65_535, 65_536, 3], plain), PICKLE_3);
    check(of(&[0x7fff_ffff, 0x8000_0000, u32::MAX, 0], plain), PICKLE_4);
    let salt = "é".repeat(128);
    let lora = LoraAdapter { id: 1, name: "my-lora".to_owned(), path: "/p".to_owned() };
    check(of(&[1, 2, 3, 4], ExtraKeys { lora: Some(&lora), cache_salt: Some(&salt) }), PICKLE_BOTH);
}

const PICKLE_1: &str = "ad42afba4a7360560993bf7d42e4779856653b1fa26a67489cc9776a59d18d26";
const PICKLE_2: &str = "b84f361dc899e36b2347a6679ded1c44d488911a1ebb3529f6621c03918bd793";
const PICKLE_3: &str = "13930606fc473a8e34ac4541e250a171bdd2368a4c7890da169a6abc003c3379";
const PICKLE_4: &str = "7eb8e85992f0b945149adad62eb45af2b6a4a88e540fc643e578d3bdc7c9ef6f";
const PICKLE_BOTH: &str = "97bc3c827949d70fd9a5024810f17ec6ac3bd7fcca7ccbf4ad3dceab0ed41ab7";
