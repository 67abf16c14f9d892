//! Requests at the edge of what is legal: 8081 accepts what 8080 accepts, and refuses the rest with a reason.

use anyhow::Result;
use bytes::Bytes;
use http::HeaderName;
use load::client::Reply;

use super::claim;
use crate::cluster::Fresh;
use crate::requests::body;
use crate::scenario::lab::{CHAT, Lab, Via};
use crate::scenario::texts;

/// Numbers of client headers, around Envoy's limit of 100 for all headers of a request.
const HEADER_COUNTS: [usize; 5] = [60, 85, 90, 93, 96];
/// Header that asks the picker for its reasons; [`DECISION`] is the one with its answer, which a client might forge.
const EXPLAIN: (&str, &str) = ("x-warmpath-explain", "true");
const DECISION: &str = "x-warmpath-decision";

/// A client with many headers gets its answer or a clear refusal, never an empty 500.
pub(super) async fn many_headers(lab: &Lab<'_>) -> Result<()> {
    lab.fresh(&[]).await?;
    let mut seen = Vec::new();
    let mut faults = Vec::new();
    let mut n_answered = 0;
    for n_headers in HEADER_COUNTS {
        let names: Vec<HeaderName> = (0..n_headers)
            .map(|number| HeaderName::try_from(format!("x-client-{number}")))
            .collect::<Result<_, _>>()?;
        let headers: Vec<(HeaderName, &str)> = names.into_iter().map(|name| (name, "1")).collect();
        let request = body(&texts::chat(&lab.requests.model(), "A question with many headers."));
        let reply = lab.post(Via::Picker, CHAT, &headers, request).await?;
        let status = reply.status.as_u16();
        n_answered += usize::from(status == 200);
        if !(status == 200 || status == 431 && says_why(&reply)) {
            faults.push(format!("{n_headers} headers: {status} {}", reply.text()));
        }
        seen.push(format!("{n_headers}: {status}"));
    }
    lab.check(
        claim("many-headers/answers", "Many headers are answered with 200, or with 431 and a reason")
            .holds(
                "0 other answers",
                format!("{} other answers ({})", faults.len(), seen.join(", ")),
                faults.is_empty(),
            )
            .detail(faults.join("\n")),
    );
    lab.check(claim("many-headers/control", "Some requests have fewer headers and are answered").holds(
        "at least one 200",
        format!("{n_answered} of {} with 200", HEADER_COUNTS.len()),
        n_answered > 0,
    ));
    Ok(())
}

/// A client that asks about pods gets an answer only if the operator allows it.
pub(super) async fn nosy(lab: &Lab<'_>) -> Result<()> {
    let ask = async || {
        let headers =
            [(HeaderName::from_static(EXPLAIN.0), EXPLAIN.1), (HeaderName::from_static(DECISION), "{}")];
        lab.post(Via::Picker, CHAT, &headers, body(&texts::chat(&lab.requests.model(), "Which pod is it?")))
            .await
    };
    lab.start_anew(Fresh { explains: false, ..Fresh::default() }).await?;
    let silent = ask().await?;
    let addresses: Vec<String> = lab.cluster.pods().iter().map(|pod| pod.address.to_string()).collect();
    let is_told = |reply: &Reply| {
        let text = format!("{:?} {}", reply.headers, reply.text());
        reply.headers.contains_key(DECISION) || addresses.iter().any(|address| text.contains(address))
    };
    lab.check(
        claim("nosy/silent", "A client learns nothing about pods unless the operator allows it").equal(
            "200, no decision, no address".to_owned(),
            format!(
                "{}, {}",
                silent.status.as_u16(),
                if is_told(&silent) { "told" } else { "no decision, no address" }
            ),
        ),
    );
    lab.fresh(&[]).await?;
    let told = ask().await?;
    lab.check(claim("nosy/control", "The same request gets the reasons if the operator allows it").equal(
        "200, decision".to_owned(),
        format!(
            "{}, {}",
            told.status.as_u16(),
            if told.headers.contains_key(DECISION) { "decision" } else { "no decision" }
        ),
    ));
    Ok(())
}

/// Sends bodies that engines accept or refuse. The picker refuses no body that the engine accepts, and never fails.
pub(super) async fn odd_bodies(lab: &Lab<'_>) -> Result<()> {
    lab.fresh(&[]).await?;
    let model = lab.requests.model();
    let mut differences = Vec::new();
    let (mut n_legal, mut n_refused) = (0, 0);
    let bodies = odd(&model);
    for (name, path, text) in &bodies {
        let plain = lab.post(Via::Plain, path, &[], text.clone()).await?.status.as_u16();
        let picked = lab.post(Via::Picker, path, &[], text.clone()).await?;
        let status = picked.status.as_u16();
        let is_legal = plain < 400;
        n_legal += usize::from(is_legal);
        n_refused += usize::from(!is_legal);
        let is_right =
            if is_legal { status == plain } else { (400..500).contains(&status) && says_why(&picked) };
        if !is_right {
            differences.push(format!("{name}: 8080 {plain}, 8081 {status} {}", picked.text()));
        }
    }
    lab.check(
        claim(
            "odd-bodies/same",
            "8081 accepts every body that 8080 accepts, and refuses others with a reason",
        )
        .equal(
            format!("{} of {}", bodies.len(), bodies.len()),
            format!("{} of {}", bodies.len() - differences.len(), bodies.len()),
        )
        .detail(differences.join("\n")),
    );
    lab.check(claim("odd-bodies/control", "The bodies are of both kinds").holds(
        "legal ones and others",
        format!("8080 accepts {n_legal} and refuses {n_refused}"),
        n_legal >= 5 && n_refused >= 5,
    ));
    Ok(())
}

/// Returns name, path and body of each odd request.
fn odd(model: &str) -> Vec<(&'static str, &'static str, Bytes)> {
    const COMPLETIONS: &str = "/v1/completions";
    let chat = texts::chat(model, "An odd question.").to_string();
    let with = |extra: &str| format!("{},{extra}}}", &chat[..chat.len() - 1]);
    let deep = |n_levels: usize| with(&format!("\"x\":{}{}", "[".repeat(n_levels), "]".repeat(n_levels)));
    let texts: Vec<(&'static str, &'static str, Vec<u8>)> = vec![
        ("a plain chat", CHAT, chat.clone().into()),
        ("a byte order mark", CHAT, [b"\xef\xbb\xbf", chat.as_bytes()].concat()),
        ("white space around it", CHAT, format!(" \r\n\t{chat}\n\n").into()),
        ("an empty body", CHAT, Vec::new()),
        ("null", CHAT, "null".into()),
        ("a list", CHAT, format!("[{chat}]").into()),
        ("a truncated body", CHAT, chat.as_bytes()[..chat.len() / 2].to_vec()),
        ("two documents", CHAT, format!("{chat}{chat}").into()),
        ("invalid UTF-8", CHAT, [b"{\"model\":\"", &[0xff, 0xfe][..], b"\"}"].concat()),
        ("a key that comes twice", CHAT, with("\"max_tokens\":1,\"max_tokens\":2").into()),
        ("100 levels", CHAT, deep(100).into()),
        ("a model that is a number", CHAT, chat.replacen(&format!("\"{model}\""), "7", 1).into()),
        ("an unknown model", CHAT, chat.replacen(model, "nobody/knows-it", 1).into()),
        ("messages of another type", CHAT, format!("{{\"model\":\"{model}\",\"messages\":7}}").into()),
        ("no messages", CHAT, format!("{{\"model\":\"{model}\",\"messages\":[]}}").into()),
        (
            "a prompt of token ids",
            COMPLETIONS,
            format!("{{\"model\":\"{model}\",\"prompt\":[1,2,3],\"max_tokens\":1}}").into(),
        ),
        (
            "two prompts",
            COMPLETIONS,
            format!("{{\"model\":\"{model}\",\"prompt\":[\"a b\",\"c d\"],\"max_tokens\":1}}").into(),
        ),
        (
            "a prompt of negative ids",
            COMPLETIONS,
            format!("{{\"model\":\"{model}\",\"prompt\":[-1],\"max_tokens\":1}}").into(),
        ),
        (
            "a trailing query",
            "/v1/completions?a=b",
            format!("{{\"model\":\"{model}\",\"prompt\":\"x\",\"max_tokens\":1}}").into(),
        ),
        ("a tokenizer's question", "/tokenize", format!("{{\"model\":\"{model}\",\"prompt\":\"x\"}}").into()),
    ];
    texts.into_iter().map(|(name, path, text)| (name, path, Bytes::from(text))).collect()
}

/// True if a refusal is JSON with a message for people, in a place where clients of OpenAI or FastAPI look for it.
fn says_why(reply: &Reply) -> bool {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&reply.body) else { return false };
    [&value["error"]["message"], &value["message"], &value["detail"]]
        .into_iter()
        .any(|text| text.as_str().is_some_and(|text| !text.is_empty()) || text.is_array())
}
