//! The committed code is what the protos give.

use std::fs;
use std::path::Path;

/// Set to write the generated code anew instead of comparing it.
const REGENERATE: Option<&str> = option_env!("REGENERATE_PROTO");

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let files = protox::compile(["envoy/service/ext_proc/v3/external_processor.proto"], [root.join("proto")])
        .unwrap();
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(files)
        .unwrap();
    let committed = root.join("src/generated");
    let mut names = Vec::new();
    for entry in fs::read_dir(out.path()).unwrap() {
        let name = entry.unwrap().file_name();
        let fresh = fs::read_to_string(out.path().join(&name)).unwrap();
        let text = format!("// Generated from proto/ by `just proto`; do not edit.\n{fresh}");
        if REGENERATE.is_some() {
            fs::write(committed.join(&name), &text).unwrap();
        }
        let current = fs::read_to_string(committed.join(&name)).unwrap_or_default();
        assert!(current == text, "{} is stale: run `just proto`", name.display());
        names.push(name);
    }
    assert_eq!(names.len(), 4, "one file per package, and no package lost: {names:?}");
}

#[test]
fn field_numbers_are_envoys() {
    use envoy_proto::service::ext_proc::v3::{
        BodyMutation, BodyResponse, CommonResponse, ProcessingResponse, StreamedBodyResponse, body_mutation,
        processing_response,
    };
    use prost::Message;
    let chunk = StreamedBodyResponse { body: "hi".into(), end_of_stream: true, ..Default::default() };
    let mutation = BodyMutation { mutation: Some(body_mutation::Mutation::StreamedResponse(chunk)) };
    let body = BodyResponse {
        response: Some(CommonResponse { body_mutation: Some(mutation), ..Default::default() }),
    };
    let response = ProcessingResponse {
        response: Some(processing_response::Response::RequestBody(body)),
        ..Default::default()
    };
    // request_body = 3 { response = 1 { body_mutation = 3 { streamed_response = 3 { body = 1, end_of_stream = 2 } } } }
    assert_eq!(response.encode_to_vec(), b"\x1a\x0c\x0a\x0a\x1a\x08\x1a\x06\x0a\x02hi\x10\x01");
}
