//! What `mock-vllm faults` prints: every fault with an example, and the keys that all share.

/// Example, and what it does. The first part of an example is the name of its fault.
pub const FAULTS: [(&str, &str); 17] = [
    ("status:code=429,rate=0.3", "three of ten requests get 429 with Retry-After: 1; codes 400 to 599"),
    (
        "status:code=503,retry_after=5s,times=10",
        "ten requests get 503 and are told to come back in 5 seconds",
    ),
    ("status:code=503,on=health", "/health and /ping say 503, the pod works on"),
    (
        "stall:delay=2s",
        "answers come two seconds late: after the head of a stream, before that of a plain answer",
    ),
    ("stall:tokens=5", "streams send five tokens and then nothing more, for ever"),
    ("stall:on=metrics", "scrapes never end"),
    ("reset:tokens=5", "TCP reset after five tokens; in the middle of a plain answer; 0: before any byte"),
    ("truncate:tokens=5", "the connection closes in order and without the end of the body"),
    (
        "content-length:off=10",
        "plain answers declare ten bytes more than they have; -10: fewer, and the rest follows",
    ),
    ("slow-start:delay=30s", "everything but /debug says 503 for the first 30 seconds"),
    ("refuse:from=10s,for=5s", "connections are refused from second 10 to 15; those that are open stay"),
    ("drop:rate=0.1", "one of ten new connections is reset at once"),
    ("crash:after=100", "the pod dies with its 101st request: the process too, unless it has other pods"),
    ("kv-pressure:share=0.9", "nine tenths of the KV blocks are in use by nobody"),
    ("metrics-freeze:from=1m", "after a minute /metrics shows the same numbers for ever"),
    ("metrics-omit", "/metrics is an empty page"),
    (
        "metrics-omit:metric=waiting",
        "/metrics lacks vllm:num_requests_waiting; names are those of metrics-lie",
    ),
];

/// The lies have examples of their own.
pub const LIES: [(&str, &str); 3] = [
    ("metrics-lie:metric=waiting,value=0", "vllm:num_requests_waiting is 0; also: running, kv_cache_usage"),
    ("metrics-lie:metric=kv_cache_usage,value=ramp:0:1:60s", "from 0 to 1 in a minute, then 1"),
    (
        "metrics-lie:metric=vllm:num_requests_running,value=oscillate:0:10:30s",
        "any metric by its name; forms: ramp, rampreset, oscillate, squarewave as form:start:end:period",
    ),
];

const KEYS: &str = "\
Keys of every fault:
  from=D     begins so long after it was set (default: at once)
  for=D      ends so long after it began (default: never)
  pod=NAME   only this pod, of --pods
Keys of faults that hit requests or connections as they come:
  rate=P     only this share of them, by the pod's --seed: the same requests in every run
  after=N    the first N are let through
  times=N    at most N are hit
Key of faults of requests:
  on=WHICH   api (default: all but the others), health, metrics, or all; /debug is never hit
Durations are virtual: with --time-scale 10 they are over ten times sooner.";

const DOORS: &str = "\
Three doors:
  flag       mock-vllm serve MODEL --fault status:code=429,rate=0.3 --fault kv-pressure:share=0.5
  header     x-mock-vllm-fault: stall:tokens=3,delay=2s; reset:tokens=9     for this request only
  live       curl localhost:8000/debug/faults                               what is set, and how often it has hit
             curl localhost:8000/debug/faults -H 'content-type: application/json' \\
               -d '{\"faults\":[\"refuse:for=10s\",{\"fault\":\"status\",\"code\":500,\"rate\":0.1}]}'   these, and no others
             curl -X DELETE localhost:8000/debug/faults                      none
Answers with a fault name it in the header x-mock-vllm-fault.";

/// The whole text.
pub fn text() -> String {
    let examples = FAULTS.iter().chain(&LIES);
    let width = FAULTS.iter().map(|(example, _)| example.len()).max().unwrap_or_default();
    let lines: String = examples
        .map(|(example, effect)| {
            if example.len() > width {
                format!("  {example}\n  {:width$}  {effect}\n", "")
            } else {
                format!("  {example:width$}  {effect}\n")
            }
        })
        .collect();
    format!("Faults, by example:\n{lines}\n{KEYS}\n\n{DOORS}\n")
}
