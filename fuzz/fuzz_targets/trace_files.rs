//! Fuzzes the reader of trace files, compressed or plain: any bytes give a result, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vllm_engine::trace;

fuzz_target!(|bytes: &[u8]| {
    let _ok_or_told = trace::check_bytes(bytes);
});
