//! The exchange with arbitrary sequences of messages.

use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{HttpBody, HttpHeaders, HttpTrailers};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{prop_assert, proptest};

use crate::conversation::{BODY, Mode, body, exchange, headers, post, step, trailers};

fn any_request() -> impl Strategy<Value = Request> {
    let text = prop_oneof![
        Just(BODY.to_owned()),
        Just(BODY.replace(r#""m""#, r#""alias""#)),
        Just(r#"{"prompt":["#.to_owned()),
        Just("1,2]".to_owned()),
        Just(String::new()),
        any::<String>(),
    ];
    let chunk = (text, any::<bool>());
    prop_oneof![
        any::<bool>().prop_map(|end| headers("POST", "/v1/completions", end)),
        any::<bool>().prop_map(|end| headers("GET", "/v1/models", end)),
        chunk.clone().prop_map(|(text, end)| body(&text, end)),
        chunk.clone().prop_map(|(text, end)| body(&text, end)),
        Just(trailers()),
        any::<bool>().prop_map(|end_of_stream| {
            Request::ResponseHeaders(HttpHeaders { end_of_stream, ..HttpHeaders::default() })
        }),
        chunk.prop_map(|(text, end_of_stream)| {
            Request::ResponseBody(HttpBody { body: text.into(), end_of_stream, ..HttpBody::default() })
        }),
        Just(Request::ResponseTrailers(HttpTrailers::default())),
    ]
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::FULL_DUPLEX),
        Just(Mode::BUFFERED),
        Just(Mode::BUFFERED_PARTIAL),
        Just(Mode::STREAMED),
        Just(Mode::STREAMED_AHEAD),
        Just(Mode::NONE),
    ]
}

proptest! {
    /// The answers keep the protocol's order for any messages: at most one pick or refusal, nothing of the request
    /// after a refusal or after the end of its body, and chunks only after the pick.
    #[test]
    fn any_sequence_gets_legal_answers(
        mode in any_mode(),
        first in any::<bool>(),
        requests in proptest::collection::vec(any_request(), 0..12),
    ) {
        let mut exchange = exchange(200);
        let requests = first.then(post).into_iter().chain(requests);
        let (mut n_picks, mut refused, mut ended) = (0, false, false);
        for request in requests {
            let Ok(answers) = step(&mut exchange, mode, request) else { continue };
            for answer in answers {
                n_picks += usize::from(answer.dynamic_metadata.is_some());
                match answer.response.unwrap() {
                    Response::ImmediateResponse(_) => {
                        prop_assert!(!refused && n_picks == 0);
                        refused = true;
                    }
                    Response::RequestHeaders(_) => prop_assert!(!refused && !ended),
                    Response::RequestBody(body) => {
                        prop_assert!(!refused && n_picks == 1);
                        let mutation = body.response.unwrap().body_mutation.and_then(|change| change.mutation);
                        if let Some(Mutation::StreamedResponse(chunk)) = mutation {
                            prop_assert!(!ended);
                            ended = chunk.end_of_stream;
                        }
                    }
                    Response::RequestTrailers(_) => prop_assert!(!refused),
                    _ => {}
                }
                prop_assert!(n_picks <= 1);
            }
        }
    }
}
