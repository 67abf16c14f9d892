//! Cost of a long chat before the engine: its template is rendered and its text converted to ids, once with nothing
//! remembered and once with all except the last turn remembered.

use divan::Bencher;
use serde_json::{Map, Value};
use std::time::Duration;
use vllm_text::tokens::Tokenizer;
use vllm_text::tokens::chat::{Chat, ChatMessage};
use vllm_text::tokens::chat_template::{ChatTemplate, ChatTemplateConfig};
use vllm_text::tokens::qwen::QwenFamily;

/// Longest context of Qwen2.5 without scaling.
const N_TOKENS: usize = 32_000;
/// Prose, code and Chinese, like users paste them.
const PASTED: [&str; 3] = [
    "The scheduler keeps two queues. Requests that wait for their first step stand in the one, those that have blocks in the \
     other; when blocks run out, the request that came last gives up its own and waits again. That isn't free: what it had \
     computed must be computed again, unless its blocks are still in the cache (and they'll often be).\n\n",
    "def schedule(self, requests: list[Request], budget: int = 2_048) -> dict[str, int]:\n    \"\"\"Tokens by request.\"\"\"\n    \
     tokens = {}\n    for idx, request in enumerate(requests):\n        n_new = min(request.n_tokens - request.n_computed, budget)\n        \
     if n_new <= 0:\n            continue  # nothing left\n        tokens[request.id] = n_new\n        budget -= n_new\n    return tokens\n\n",
    "缓存命中率取决于请求之间共享的前缀长度。路由器应当把同一会话的请求发送到同一个实例，否则每个实例都要重新计算整个提示。在2024年的测试中，命中率从百分之三十提高到了百分之七十五。\n\n",
];

fn main() {
    divan::main();
}

fn new_template(family: QwenFamily) -> ChatTemplate {
    ChatTemplate::try_new(Tokenizer::qwen(family), ChatTemplateConfig::default(), || Duration::ZERO)
        .expect("the family's template is Jinja")
}

/// Makes turns of user and assistant whose prompt has just over [`N_TOKENS`] tokens. Each turn begins differently.
fn long_chat(template: &ChatTemplate) -> Chat {
    let variables = Map::from_iter([("add_generation_prompt".to_owned(), Value::from(true))]);
    let mut chat = Chat { variables, ..Chat::default() };
    while !chat.messages.len().is_multiple_of(30) || n_tokens(template, &chat) < N_TOKENS {
        let turn = chat.messages.len();
        let role = if turn.is_multiple_of(2) { "user" } else { "assistant" };
        let pasted: String = (0..4).map(|part| PASTED[(turn + part) % PASTED.len()]).collect();
        chat.messages.push(ChatMessage::new(role, &format!("Message {turn}:\n{pasted}")));
    }
    chat
}

fn n_tokens(template: &ChatTemplate, chat: &Chat) -> usize {
    if chat.messages.is_empty() { 0 } else { template.encode(chat).expect("the chat renders").len() }
}

#[divan::bench(args = [QwenFamily::Qwen25, QwenFamily::Qwen3], sample_count = 30)]
fn encode_a_new_chat_of_32000_tokens(bencher: Bencher<'_, '_>, family: QwenFamily) {
    let chat = long_chat(&new_template(family));
    bencher
        .with_inputs(|| new_template(family))
        .bench_refs(|template| template.encode(&chat).expect("the chat renders").len());
}

#[divan::bench(args = [QwenFamily::Qwen25, QwenFamily::Qwen3])]
fn encode_a_chat_of_32000_tokens_with_one_new_turn(bencher: Bencher<'_, '_>, family: QwenFamily) {
    let template = new_template(family);
    let chat = long_chat(&template);
    let mut turn = 0;
    bencher
        .with_inputs(|| {
            let mut chat = chat.clone();
            turn += 1;
            chat.messages.push(ChatMessage::new("user", &format!("{turn}: {}", PASTED[0])));
            chat
        })
        .bench_local_values(|chat| template.encode(&chat).expect("the chat renders").len());
}

#[divan::bench]
fn render_a_chat_of_32000_tokens(bencher: Bencher<'_, '_>) {
    let template = new_template(QwenFamily::Qwen25);
    let chat = long_chat(&template);
    bencher.bench_local(|| template.render(&chat).expect("the chat renders").len());
}
