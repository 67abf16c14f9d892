//! The text of `mock-vllm faults`: every fault with an example, and the keys that all faults share.

/// Examples with their effects. The first part of an example is the name of its fault.
pub const FAULTS: [(&str, &str); 17] = [
    ("status:code=429,rate=0.3", "three of ten requests get 429 with Retry-After: 1; codes 400 to 599"),
    ("status:code=503,retry_after=5s,times=10", "ten requests get 503 with Retry-After: 5"),
    ("status:code=503,on=health", "/health and /ping answer 503, the pod works on"),
    (
        "stall:delay=2s",
        "answers come two seconds late: after the head of a stream, before that of a plain answer",
    ),
    ("stall:tokens=5", "streams send five tokens and then nothing more, for ever"),
    ("stall:on=metrics", "scrapes never end"),
    ("reset:tokens=5", "TCP reset after five tokens, or in the middle of a plain answer; 0: before any byte"),
    ("truncate:tokens=5", "the connection is closed without a reset, before the end of the body"),
    (
        "content-length:off=10",
        "plain answers declare ten bytes more than they have; -10: fewer, and the rest follows",
    ),
    ("slow-start:delay=30s", "everything but /debug answers 503 for the first 30 seconds"),
    ("refuse:from=10s,for=5s", "connections are refused from second 10 to 15; open ones stay"),
    ("drop:rate=0.1", "one of ten new connections is reset at once"),
    (
        "crash:after=100",
        "the pod dies with its 101st request, and so does the process unless it has other pods",
    ),
    ("kv-pressure:share=0.9", "nine tenths of the KV blocks are taken, although no request holds them"),
    ("metrics-freeze:from=1m", "after a minute /metrics shows the same numbers for ever"),
    ("metrics-omit", "/metrics is an empty page"),
    (
        "metrics-omit:metric=waiting",
        "/metrics lacks vllm:num_requests_waiting; names are those of metrics-lie",
    ),
];

/// Examples of `metrics-lie`, which has several forms.
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
  from=D     the fault begins this long after it was set (default: at once)
  for=D      the fault ends this long after it began (default: never)
  pod=NAME   only this pod of --pods has the fault
Keys of faults that hit requests or connections:
  rate=P     hit only this share of them; --seed decides which: the same ones in every run
  after=N    let the first N pass
  times=N    hit at most N
Key of faults that hit requests:
  on=WHICH   api (default: all except the others), health, metrics, or all; /debug is never hit
Durations are virtual: with --time-scale 10 they end ten times sooner.";

const DOORS: &str = "\
Three ways to set a fault:
  flag       mock-vllm serve MODEL --fault status:code=429,rate=0.3 --fault kv-pressure:share=0.5
  header     x-mock-vllm-fault: stall:tokens=3,delay=2s; reset:tokens=9     only for this request
  live       curl localhost:8000/debug/faults                               show what is set, and how often it hit
             curl localhost:8000/debug/faults -H 'content-type: application/json' \\
               -d '{\"faults\":[\"refuse:for=10s\",{\"fault\":\"status\",\"code\":500,\"rate\":0.1}]}'   set these, and no others
             curl -X DELETE localhost:8000/debug/faults                      remove all
Answers with a fault name it in the header x-mock-vllm-fault.";

/// Returns the whole text.
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
