//! The committed code is what the protos give.

use std::fs;
use std::path::Path;

use prost::Message as _;

/// Set to write the generated files again instead of comparing them.
const REGENERATE: Option<&str> = option_env!("REGENERATE_PROTO");

/// Services of the generated code; what they use is imported by them.
const CODE: [&str; 3] = [
    "envoy/service/accesslog/v3/als.proto",
    "envoy/service/ext_proc/v3/external_processor.proto",
    "extension/service.proto",
];

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let files = protox::compile(CODE, [root.join("proto")]).unwrap();
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
    assert_eq!(names.len(), 7, "one file per package, and no package lost: {names:?}");
}

/// Messages of the configuration that Warmpath writes; the others are imported by them.
const XDS: [&str; 21] = [
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/route/v3/route.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/grpc/v3/als.proto",
    "envoy/extensions/common/matching/v3/extension_matcher.proto",
    "envoy/extensions/filters/common/matcher/action/v3/skip_action.proto",
    "envoy/extensions/filters/http/buffer/v3/buffer.proto",
    "envoy/extensions/filters/http/ext_proc/v3/ext_proc.proto",
    "envoy/extensions/filters/http/lua/v3/lua.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/http/early_header_mutation/header_mutation/v3/header_mutation.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/override_host/v3/override_host.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/matching/common_inputs/network/v3/network_inputs.proto",
    "envoy/extensions/matching/input_matchers/metadata/v3/metadata.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
    "google/protobuf/wrappers.proto",
];

#[test]
fn descriptors_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = protox::compile(XDS, [root.join("proto")]).unwrap();
    for file in &mut files.file {
        file.source_code_info = None;
    }
    let fresh = files.encode_to_vec();
    let committed = root.join("src/generated/xds.binpb");
    if REGENERATE.is_some() {
        fs::write(&committed, &fresh).unwrap();
    }
    assert!(fs::read(&committed).unwrap() == fresh, "{} is stale: run `just proto`", committed.display());
}

/// Every proto is used: by the generated code or by the descriptors.
#[test]
fn no_proto_is_left_over() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = protox::compile(XDS.into_iter().chain(CODE), [root.join("proto")]).unwrap();
    let used: Vec<&str> = files.file.iter().map(prost_types::FileDescriptorProto::name).collect();
    let mut folders = vec![root.join("proto")];
    let mut n_files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            n_files += 1;
            let name = path.strip_prefix(root.join("proto")).unwrap().to_str().unwrap();
            assert!(used.contains(&name), "{name} is used by nothing");
        }
    }
    assert!(n_files > 25, "{n_files}");
}

#[test]
fn field_numbers_are_envoys() {
    use envoy_proto::service::ext_proc::v3::{
        BodyMutation, BodyResponse, CommonResponse, ProcessingResponse, StreamedBodyResponse, body_mutation,
        processing_response,
    };
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
