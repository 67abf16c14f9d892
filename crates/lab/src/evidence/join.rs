//! One request as the client, Envoy, the picker and the pod saw it.

use load::chat::Usage;
use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::evidence::access_log::AccessEntry;
use crate::evidence::picker::Decision;
use crate::evidence::pod::PodEntry;

/// Prefix that vLLM adds to the `x-request-id` that it was given.
const CHAT_ID_PREFIX: &str = "chatcmpl-";

/// The client's record of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientSide {
    /// Name of the request in its scenario, such as `round 1` or `conversation 3, turn 2`.
    pub label: String,
    /// Scenario group of the request.
    pub group: String,
    /// Section of the scenario; each has its own pods and caches.
    pub section: String,
    /// Target of the request: `8081` or `8080`, as in the tutorial, or `pod`.
    pub via: String,
    /// Seconds since the run began.
    pub sent_at: f64,
    pub status: u16,
    /// Envoy's request id, read from the id of the answer.
    pub request_id: Option<String>,
    /// Time to first token in virtual milliseconds: wall time times the time scale.
    pub ttft_ms: Option<f64>,
    pub e2e_ms: f64,
    pub usage: Option<Usage>,
    /// Reason why the answer is not a well-formed stream.
    pub error: Option<String>,
}

/// A request with the records of Envoy, the picker and the pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestTrace {
    pub client: ClientSide,
    /// Name of the pod that answered: by Envoy's record, or by the pod's own for a direct request.
    pub served_by: Option<String>,
    pub envoy_upstream: Option<String>,
    pub envoy_attempts: Option<u32>,
    pub decision: Option<Decision>,
    pub pod: Option<PodEntry>,
}

/// Returns Envoy's request id, which is part of the answer's id.
pub fn request_id(chat_id: &str) -> Option<&str> {
    chat_id.strip_prefix(CHAT_ID_PREFIX).filter(|id| !id.is_empty())
}

/// Adds to each request the other programs' records of its id.
pub fn join(
    clients: Vec<ClientSide>,
    accesses: &[AccessEntry],
    decisions: &[Decision],
    pods: &[PodEntry],
) -> Vec<RequestTrace> {
    clients
        .into_iter()
        .map(|client| {
            let id = client.request_id.as_deref();
            let access =
                id.and_then(|id| accesses.iter().find(|entry| entry.request_id.as_deref() == Some(id)));
            let decision =
                id.and_then(|id| decisions.iter().find(|entry| entry.x_request_id.as_deref() == Some(id)));
            let pod = id.and_then(|id| pods.iter().find(|entry| entry.request_id == id));
            RequestTrace {
                served_by: None,
                envoy_upstream: access.and_then(|entry| entry.upstream_host.clone()),
                envoy_attempts: access.and_then(|entry| entry.attempts),
                decision: decision.cloned(),
                pod: pod.cloned(),
                client,
            }
        })
        .collect()
}

impl RequestTrace {
    /// Returns the pod that all records of a request through the picker name. The error says what each names. Pods of a
    /// real engine have no record.
    pub fn agreed_pod(&self, engine: Engine) -> Result<&str, String> {
        let envoy = self.served_by.as_deref();
        let picked = self.decision.as_ref().and_then(|decision| decision.pod.as_deref());
        let mut records = vec![("Envoy", envoy), ("picker", picked)];
        if engine == Engine::Mock {
            records.push(("pod", self.pod.as_ref().map(|entry| entry.pod.as_str())));
        }
        match envoy {
            Some(pod) if records.iter().all(|(_, name)| *name == Some(pod)) => Ok(pod),
            Some(_) | None => {
                let show =
                    |(whose, name): &(&str, Option<&str>)| format!("{whose} {}", name.unwrap_or("nothing"));
                Err(records.iter().map(show).collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// Returns the pod that answered, by its own record if it keeps one.
    pub fn answered_by(&self, engine: Engine) -> Option<&str> {
        match engine {
            Engine::Mock => self.pod.as_ref().map(|entry| entry.pod.as_str()),
            Engine::Vllm => self.served_by.as_deref(),
        }
    }

    /// Returns the tokens that the picker expected in its pod's cache: its ratio times the prompt's tokens.
    pub fn predicted_tokens(&self) -> Option<f64> {
        let decision = self.decision.as_ref()?;
        Some(decision.ratio * f64::from(self.client.usage?.prompt_tokens))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{ClientSide, join, request_id};
    use crate::engine::Engine;
    use crate::evidence::access_log::AccessEntry;
    use crate::evidence::picker::parse_decisions;
    use crate::evidence::pod::PodEntry;

    pub(crate) fn client(request_id: Option<&str>) -> ClientSide {
        ClientSide {
            label: "round 1".to_owned(),
            group: "tutorial".to_owned(),
            section: "requests as bash writes them".to_owned(),
            via: "8081".to_owned(),
            sent_at: 0.0,
            status: 200,
            request_id: request_id.map(str::to_owned),
            ttft_ms: Some(120.0),
            e2e_ms: 900.0,
            usage: None,
            error: None,
        }
    }

    fn access(request_id: Option<&str>, host: &str) -> AccessEntry {
        AccessEntry {
            path: None,
            code: 200,
            flags: None,
            details: None,
            request_id: request_id.map(str::to_owned),
            upstream_cluster: None,
            upstream_host: Some(host.to_owned()),
            attempts: Some(1),
            picked: None,
            served: None,
        }
    }

    #[test]
    fn logs_join_by_request_id_only() {
        let pod = PodEntry {
            pod: "q-1".to_owned(),
            request_id: "b".to_owned(),
            status: 200,
            prompt_tokens: 127,
            cached_tokens: 0,
            completion_tokens: 24,
            ttft_ms: None,
        };
        let accesses = [access(None, "nobody"), access(Some("a"), "host-a"), access(Some("b"), "host-b")];
        let traces = join(vec![client(Some("b")), client(None), client(Some("c"))], &accesses, &[], &[pod]);
        assert_eq!(traces[0].envoy_upstream.as_deref(), Some("host-b"));
        assert_eq!(traces[0].pod.as_ref().map(|pod| pod.pod.as_str()), Some("q-1"));
        assert!(traces[1..].iter().all(|trace| trace.envoy_upstream.is_none() && trace.pod.is_none()));
    }

    /// The control: a mock whose record is missing does not agree.
    #[test]
    fn a_real_engine_has_no_say_in_who_answered() {
        let mut trace = join(vec![client(Some("a"))], &[], &[], &[]).remove(0);
        trace.served_by = Some("q-1".to_owned());
        let decisions = br#"{"decisions":[{"seq":1,"request":"r","x_request_id":"a","strategy":null,"outcome":"picked","endpoint":"e","pod":"q-1","reason":null,"threshold":null}]}"#;
        trace.decision = Some(parse_decisions(decisions).unwrap().remove(0));
        assert_eq!(trace.agreed_pod(Engine::Vllm), Ok("q-1"));
        let missing = trace.agreed_pod(Engine::Mock).unwrap_err();
        assert_eq!(missing, "Envoy q-1, picker q-1, pod nothing");
        assert_eq!((trace.answered_by(Engine::Vllm), trace.answered_by(Engine::Mock)), (Some("q-1"), None));
        trace.served_by = Some("q-2".to_owned());
        assert_eq!(trace.agreed_pod(Engine::Vllm).unwrap_err(), "Envoy q-2, picker q-1");
    }

    #[test]
    fn the_answers_id_carries_envoys() {
        assert_eq!(request_id("chatcmpl-1-2"), Some("1-2"));
        assert_eq!((request_id("cmpl-1"), request_id("chatcmpl-")), (None, None));
    }
}
