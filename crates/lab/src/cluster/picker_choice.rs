//! The choice between the lab's picker and the user's own.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The program that picks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PickerChoice {
    /// The lab's picker, whatever Deployments of pickers are among the files.
    #[default]
    Ours,
    /// The programs of the Deployments: this one, or the one that the command names, on the `PATH`.
    Theirs { program: Option<PathBuf> },
}

impl FromStr for PickerChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "ours" => Ok(Self::Ours),
            None if text == "theirs" => Ok(Self::Theirs { program: None }),
            Some(("theirs", program)) if !program.is_empty() => {
                Ok(Self::Theirs { program: Some(program.into()) })
            }
            Some(_) | None => Err("only `ours`, `theirs` and `theirs=FILE` are".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PickerChoice;

    #[test]
    fn a_choice_is_ours_or_theirs() {
        assert_eq!("ours".parse(), Ok(PickerChoice::Ours));
        assert_eq!("theirs".parse(), Ok(PickerChoice::Theirs { program: None }));
        let program = Some("/bin/epp".into());
        assert_eq!("theirs=/bin/epp".parse(), Ok(PickerChoice::Theirs { program }));
        for text in ["", "theirs=", "mine", "ours=/bin/epp"] {
            assert!(text.parse::<PickerChoice>().is_err(), "{text}");
        }
    }
}
