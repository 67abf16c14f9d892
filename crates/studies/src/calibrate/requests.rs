//! Selects the times of recorded requests that an idle server explains: those during which no other request was
//! running. It does no I/O.

use std::time::Duration;

use sim::calibrate::{Measurement, Prompt};

use crate::calibrate::csv::RequestRow;

/// Tokens of a block of the prefix cache, vLLM's default.
const BLOCK: u32 = 16;

/// Assumption about the server's prefix cache, for files that do not report cached tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// The user's own earlier turns are cached, and a start that all users share.
    OfUsers {
        shared_tokens: u32,
    },
    Off,
}

/// Samples with their line numbers, and the number of times that were left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Alone {
    pub samples: Vec<(usize, Measurement)>,
    pub n_left_out: usize,
}

/// Returns for each request a sample for the first token and one for the other tokens, if no other request was running.
pub fn samples(requests: &[(usize, RequestRow)], caching: Caching) -> Alone {
    let (mut samples, mut n_left_out) = (Vec::new(), 0);
    for (idx, (line, request)) in requests.iter().enumerate() {
        let RequestRow { prompt_tokens, generation_tokens, ttft, generation_time, launch_time, .. } =
            *request;
        let first_token = launch_time + ttft.as_secs_f64();
        let is_alone = |from: f64, until: f64| {
            let others = requests.iter().enumerate().filter(|(other, _)| *other != idx);
            others.into_iter().all(|(_, (_, other))| other.finish_time <= from || until <= other.launch_time)
        };
        let prompt = Prompt { tokens: prompt_tokens, cached_tokens: cached(requests, request, caching) };
        let decode =
            Measurement::Decode { prompt_tokens, output_tokens: generation_tokens, time: generation_time };
        let has_more = generation_tokens > 1 && generation_time > Duration::ZERO;
        let candidates = [
            Some((Measurement::FirstToken(prompt, ttft), launch_time, first_token)),
            has_more.then_some((decode, first_token, request.finish_time)),
        ];
        for (sample, from, until) in candidates.into_iter().flatten() {
            match is_alone(from, until) {
                true => samples.push((*line, sample)),
                false => n_left_out += 1,
            }
        }
    }
    Alone { samples, n_left_out }
}

/// Returns the tokens of the prompt that were in the cache: as the server reported, otherwise the whole blocks of the
/// user's last turn or of the common start. The last token of a prompt is always computed, and so is that of the
/// answer.
fn cached(requests: &[(usize, RequestRow)], request: &RequestRow, caching: Caching) -> u32 {
    if let Some(cached_tokens) = request.cached_tokens {
        return cached_tokens.min(request.prompt_tokens - 1);
    }
    let Caching::OfUsers { shared_tokens } = caching else { return 0 };
    let before = |other: &&RequestRow| other.finish_time <= request.launch_time;
    let earlier: Vec<&RequestRow> = requests.iter().map(|(_, other)| other).filter(before).collect();
    let own = earlier.iter().filter(|other| other.user_id == request.user_id);
    let last = own.max_by(|a, b| a.launch_time.total_cmp(&b.launch_time));
    let own = last
        .filter(|last| last.prompt_tokens < request.prompt_tokens)
        .map_or(0, |last| last.prompt_tokens + last.generation_tokens.saturating_sub(1));
    let shared = if earlier.is_empty() { 0 } else { shared_tokens };
    own.max(shared).min(request.prompt_tokens - 1) / BLOCK * BLOCK
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sim::calibrate::{Measurement, Prompt};

    use super::{Caching, samples};
    use crate::calibrate::csv::RequestRow;

    fn request(user_id: u32, launch_time: f64, prompt_tokens: u32) -> RequestRow {
        RequestRow {
            prompt_tokens,
            generation_tokens: 21,
            ttft: Duration::from_millis(500),
            generation_time: Duration::from_millis(800),
            user_id,
            launch_time,
            finish_time: launch_time + 1.3,
            cached_tokens: None,
        }
    }

    fn cached(requests: &[RequestRow], caching: Caching) -> Vec<u32> {
        let requests: Vec<(usize, RequestRow)> = (2..).zip(requests.iter().copied()).collect();
        let first_tokens =
            samples(&requests, caching).samples.into_iter().filter_map(|(_, sample)| match sample {
                Measurement::FirstToken(Prompt { cached_tokens, .. }, _) => Some(cached_tokens),
                Measurement::Decode { .. } | Measurement::Step(_) => None,
            });
        first_tokens.collect()
    }

    #[test]
    fn times_that_others_share_are_left_out() {
        let alone = |requests: &[RequestRow]| {
            let requests: Vec<(usize, RequestRow)> = (2..).zip(requests.iter().copied()).collect();
            let alone = samples(&requests, Caching::Off);
            (alone.samples.into_iter().map(|(line, _)| line).collect::<Vec<_>>(), alone.n_left_out)
        };
        assert_eq!(alone(&[request(1, 0.0, 100), request(2, 5.0, 100)]), (vec![2, 2, 3, 3], 0));
        // The second request begins while the first one decodes, and ends alone.
        assert_eq!(alone(&[request(1, 0.0, 100), request(2, 0.9, 100)]), (vec![2, 3], 2));
    }

    #[test]
    fn a_users_last_turn_is_cached_up_to_whole_blocks() {
        let turns = [request(1, 0.0, 2_149), request(2, 5.0, 2_149), request(1, 10.0, 2_230)];
        let shared = |shared_tokens| cached(&turns, Caching::OfUsers { shared_tokens });
        assert_eq!(shared(0), [0, 0, 2_160], "2,149 + 20 computed tokens are 135 blocks");
        assert_eq!(shared(134), [0, 128, 2_160]);
        assert_eq!(cached(&turns, Caching::Off), [0, 0, 0]);
        let told = turns.map(|turn| RequestRow { cached_tokens: Some(64), ..turn });
        assert_eq!(cached(&told, Caching::Off), [64, 64, 64]);
    }
}
