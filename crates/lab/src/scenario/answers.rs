//! Several answers in the words of a check.

use crate::scenario::lab::Answer;

/// Counts well-formed answers: `3 of 4 answered`.
pub(super) fn answered(answers: &[Answer]) -> String {
    let good = answers.iter().filter(|answer| answer.chat.is_some()).count();
    format!("{good} of {} answered", answers.len())
}

pub(super) fn all_answered(n_answers: usize) -> String {
    format!("{n_answers} of {n_answers} answered")
}

/// Describes the problem of each answer that is not a well-formed stream.
pub(super) fn problems(answers: &[Answer]) -> String {
    let problems: Vec<String> =
        answers.iter().filter(|answer| answer.chat.is_none()).map(Answer::verdict).collect();
    problems.join("\n")
}
